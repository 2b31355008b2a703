"""Checks of `Sandbox.start` and the process it gives."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from fermata.kit.errors import SandboxPathError
from fermata.sandboxes.contract import OutputStream, Process, Sandbox
from fermata.testing.provider_checks_support import (
    PATIENCE,
    PULSE,
    Checks,
    Refused,
    eventually,
    has_pulse,
    pulse_begins,
    size_of,
)


async def read_all(process: Process) -> dict[OutputStream, bytes]:
    read = dict.fromkeys(OutputStream, b"")
    async for piece in process.output():
        read[piece.stream] += piece.data
    return read


class StreamChecks(Checks):
    async def test_output_arrives_while_the_command_runs_and_input_can_answer_it(self, box: Sandbox) -> None:
        asked = asyncio.Event()

        async def answer() -> AsyncIterator[bytes]:
            await asked.wait()
            yield b"Fermata\n"

        script = "echo name?; read -r name; echo hello $name; echo bye >&2; exit 5"
        read = dict.fromkeys(OutputStream, b"")
        async with asyncio.timeout(PATIENCE.total_seconds()):
            async with box.start(["sh", "-c", script], stdin=answer()) as process:
                async for piece in process.output():
                    assert piece.data
                    read[piece.stream] += piece.data
                    if b"name?\n" in read[OutputStream.STDOUT]:
                        asked.set()
                assert await process.wait() == 5
        assert read == {OutputStream.STDOUT: b"name?\nhello Fermata\n", OutputStream.STDERR: b"bye\n"}

    async def test_a_large_output_arrives_whole(self, box: Sandbox) -> None:
        await box.exec(["sh", "-c", "head -c 20000000 /dev/urandom > big"])
        digest = hashlib.sha256()
        async with box.start(["cat", "big"]) as process:
            async for piece in process.output():
                digest.update(piece.data)
            assert await process.wait() == 0
        assert (await box.exec(["sha256sum", "big"])).stdout.split()[0].decode() == digest.hexdigest()

    async def test_a_slow_reader_slows_the_command(self, box: Sandbox) -> None:
        script = "while head -c 65536 /dev/zero; do printf x >> written; done"
        async with box.start(["sh", "-c", script]) as process:
            pieces = process.output()
            await anext(pieces)

            async def stands_still() -> bool:
                before = await size_of(box, "written")
                await asyncio.sleep(0.4)
                return 0 < before == await size_of(box, "written")

            await eventually(stands_still)
            # It wrote no more than some buffers' worth, and goes on when it is read again.
            written = await size_of(box, "written")
            assert written < 500
            read = 0
            async with asyncio.timeout(PATIENCE.total_seconds()):
                while read < (written + 20) * 65_536:
                    read += len((await anext(pieces)).data)
            assert await size_of(box, "written") > written

    async def test_waiting_drops_output_that_nobody_read(self, box: Sandbox) -> None:
        async with asyncio.timeout(PATIENCE.total_seconds()):
            async with box.start(["sh", "-c", "head -c 5000000 /dev/zero; exit 6"]) as process:
                assert await process.wait() == 6
                assert await process.wait() == 6
                assert await read_all(process) == dict.fromkeys(OutputStream, b"")

    async def test_kill_ends_the_command_and_all_that_it_started(self, box: Sandbox) -> None:
        async with box.start(["sh", "-c", f"{PULSE} & echo on; sleep 300"]) as process:
            await pulse_begins(box)
            await process.kill()
            await process.kill()
            assert await process.wait() == 137
            await process.kill()
        assert not await has_pulse(box)

    async def test_killing_a_command_that_has_ended_changes_nothing(self, box: Sandbox) -> None:
        async with box.start(["sh", "-c", "echo out; exit 7"]) as process:
            assert (await read_all(process))[OutputStream.STDOUT] == b"out\n"
            assert await process.wait() == 7
            await process.kill()
            assert await process.wait() == 7

    @pytest.mark.parametrize("way", ["end", "error", "cancel", "after-exit"])
    async def test_leaving_the_block_ends_all_that_the_command_started(self, box: Sandbox, way: str) -> None:
        tail = "exit 0" if way == "after-exit" else "sleep 300"

        async def use() -> None:
            async with box.start(["sh", "-c", f"{PULSE} & {tail}"]) as process:
                await pulse_begins(box)
                if way == "after-exit":
                    assert await process.wait() == 0
                if way == "error":
                    raise KeyError(way)
                if way == "cancel":
                    await asyncio.sleep(300)

        task = asyncio.ensure_future(use())
        await pulse_begins(box)
        if way == "cancel":
            task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        kinds = {"error": KeyError, "cancel": asyncio.CancelledError}
        assert isinstance(outcome, kinds.get(way, type(None)))
        assert not await has_pulse(box)

    async def test_the_block_may_be_left_in_the_middle_of_the_output(self, box: Sandbox) -> None:
        async with asyncio.timeout(PATIENCE.total_seconds()):
            async with box.start(["yes"]) as process:
                async for _ in process.output():
                    break
        assert (await box.exec(["true"])).exit_code == 0

    async def test_output_ends_with_the_command_though_a_child_holds_it_open(self, box: Sandbox) -> None:
        async with asyncio.timeout(PATIENCE.total_seconds()):
            async with box.start(["sh", "-c", "sleep 300 & echo last; exit 8"]) as process:
                assert (await read_all(process))[OutputStream.STDOUT] == b"last\n"
                assert await process.wait() == 8

    async def test_the_time_limit_ends_it_and_leaves_no_status(self, box: Sandbox) -> None:
        limit = timedelta(seconds=0.7)
        async with box.start(["sh", "-c", f"{PULSE} & echo on; sleep 300"], time_limit_for=limit) as process:
            assert (await read_all(process))[OutputStream.STDOUT] == b"on\n"
            assert await process.wait() is None
        assert not await has_pulse(box)

    async def test_what_cannot_start_is_told_as_by_exec(self, box: Sandbox, refused: Refused) -> None:
        async with box.start(["no-such-program"]) as process:
            read = await read_all(process)
            assert await process.wait() == 127
        assert read[OutputStream.STDERR].endswith(b"\n")
        with refused(SandboxPathError):
            async with box.start(["true"], cwd="missing"):
                pass
