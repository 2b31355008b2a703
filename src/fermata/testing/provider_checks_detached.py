"""Checks of detached commands."""

import asyncio

import pytest

from fermata.kit.errors import SandboxPathError
from fermata.sandboxes.contract import DetachedCommand, DetachedStatus, Sandbox, SandboxProvider
from fermata.testing.provider_checks_support import (
    PULSE,
    Checks,
    Refused,
    eventually,
    has_pulse,
    pulse_begins,
)


async def ended(box: Sandbox, command_id: str) -> DetachedCommand:
    async def is_over() -> bool:
        return (await box.get_detached(command_id)).status is not DetachedStatus.RUNNING

    await eventually(is_over)
    return await box.get_detached(command_id)


class DetachedChecks(Checks):
    async def test_a_detached_command_runs_on_and_is_seen_to_end(self, box: Sandbox) -> None:
        script = "echo out; echo err >&2; until [ -e go ]; do sleep 0.02; done; echo end; exit 9"
        command_id = await box.start_detached(["sh", "-c", script])

        async def has_written() -> bool:
            return (await box.get_detached(command_id)).output == b"out\nerr\n"

        await eventually(has_written)
        running = await box.get_detached(command_id)
        assert (running.id, running.status, running.exit_code) == (command_id, DetachedStatus.RUNNING, None)
        await box.write_file("go", b"")
        over = await ended(box, command_id)
        assert (over.status, over.exit_code, over.output) == (DetachedStatus.EXITED, 9, b"out\nerr\nend\n")

    async def test_it_is_known_to_every_handle(self, provider: SandboxProvider, box: Sandbox) -> None:
        command_id = await box.start_detached(["sleep", "300"])
        other = await provider.connect(box.name)
        assert (await other.get_detached(command_id)).status is DetachedStatus.RUNNING
        await other.kill_detached(command_id)
        assert (await ended(box, command_id)).exit_code == 137

    async def test_it_takes_a_directory_and_an_environment(self, box: Sandbox, refused: Refused) -> None:
        await box.write_file("below/file", b"content ")
        command_id = await box.start_detached(
            ["sh", "-c", 'cat file; printf %s "$WORD"; cat'], cwd="below", environment={"WORD": "word"}
        )
        assert (await ended(box, command_id)).output == b"content word"
        with refused(SandboxPathError):
            await box.start_detached(["true"], cwd="missing")

    async def test_of_its_output_the_last_64_kib_are_kept(self, box: Sandbox) -> None:
        whole = b"".join(b"%07d\n" % number for number in range(25_000))
        await box.write_file("whole", whole)
        command_id = await box.start_detached(["cat", "whole"])
        over = await ended(box, command_id)
        assert over.output == whole[-65_536:]

    async def test_a_killed_one_takes_its_children_with_it(self, box: Sandbox) -> None:
        command_id = await box.start_detached(["sh", "-c", f"{PULSE} & echo on; sleep 300"])
        await pulse_begins(box)
        await box.kill_detached(command_id)
        await box.kill_detached(command_id)
        over = await ended(box, command_id)
        assert (over.status, over.exit_code, over.output) == (DetachedStatus.EXITED, 137, b"on\n")
        assert not await has_pulse(box)
        await box.kill_detached(command_id)
        assert await box.get_detached(command_id) == over

    async def test_killing_one_leaves_the_others(self, box: Sandbox) -> None:
        first, second = [await box.start_detached(["sleep", "300"]) for _ in range(2)]
        await box.kill_detached(first)
        assert (await box.get_detached(second)).status is DetachedStatus.RUNNING

    async def test_a_program_that_does_not_exist_ends_with_127(self, box: Sandbox) -> None:
        over = await ended(box, await box.start_detached(["no-such-program"]))
        assert (over.status, over.exit_code) == (DetachedStatus.EXITED, 127)
        assert over.output.endswith(b"\n")

    @pytest.mark.parametrize("command_id", ["", "x", "../x", "a\0b", "0" * 300, "f" * 16], ids=ascii)
    async def test_an_unknown_id_is_refused(self, box: Sandbox, refused: Refused, command_id: str) -> None:
        with refused(SandboxPathError):
            await box.get_detached(command_id)
        with refused(SandboxPathError):
            await box.kill_detached(command_id)

    async def test_many_run_at_once(self, box: Sandbox) -> None:
        ids = await asyncio.gather(*(box.start_detached(["echo", str(n)]) for n in range(20)))
        assert len(set(ids)) == 20
        outputs = [(await ended(box, command_id)).output for command_id in ids]
        assert outputs == [b"%d\n" % number for number in range(20)]

    async def test_a_stop_ends_it_and_afterwards_it_is_lost(
        self, provider: SandboxProvider, box: Sandbox
    ) -> None:
        over = await box.start_detached(["echo", "before"])
        running = await box.start_detached(["sh", "-c", PULSE])
        assert (await ended(box, over)).status is DetachedStatus.EXITED
        await pulse_begins(box)
        await provider.stop(box.name)
        box = await provider.resume(box.name)
        assert (await box.get_detached(running)).status is DetachedStatus.LOST
        assert (await box.get_detached(running)).exit_code is None
        kept = await box.get_detached(over)
        if provider.abilities.keeps_detached_output:
            assert (kept.status, kept.exit_code, kept.output) == (DetachedStatus.EXITED, 0, b"before\n")
        else:
            assert kept.status in (DetachedStatus.EXITED, DetachedStatus.LOST)
        await box.kill_detached(running)
        assert not await has_pulse(box)
