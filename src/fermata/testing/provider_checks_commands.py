"""Checks of `Sandbox.exec`."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest

from fermata.kit.errors import InvalidRequestError, SandboxPathError
from fermata.sandboxes.contract import Sandbox, SandboxProvider, SandboxSpec
from fermata.testing.provider_checks_support import (
    PATIENCE,
    PULSE,
    Checks,
    Refused,
    fresh_name,
    has_pulse,
    pulse_begins,
    shell,
)

ALL_BYTES = bytes(range(256))
SHORT = timedelta(seconds=0.7)


class CommandChecks(Checks):
    @pytest.mark.parametrize("status", [0, 1, 2, 42, 126, 127, 128, 255])
    async def test_the_exit_status_is_the_commands_own(self, box: Sandbox, status: int) -> None:
        result = await box.exec(["sh", "-c", f"exit {status}"])
        assert (result.exit_code, result.timed_out, result.truncated) == (status, False, False)

    @pytest.mark.parametrize(("name", "number"), [("KILL", 9), ("TERM", 15), ("SEGV", 11), ("PIPE", 13)])
    async def test_a_command_ended_by_a_signal_is_128_and_the_signal(
        self, box: Sandbox, name: str, number: int
    ) -> None:
        assert (await box.exec(["sh", "-c", f"kill -{name} $$"])).exit_code == 128 + number

    async def test_both_streams_come_back_apart_and_byte_for_byte(self, box: Sandbox) -> None:
        await box.write_file("bytes", ALL_BYTES)
        result = await box.exec(["sh", "-c", "cat bytes; echo error >&2; cat bytes >&2"])
        assert (result.stdout, result.stderr) == (ALL_BYTES, b"error\n" + ALL_BYTES)

    async def test_arguments_arrive_as_they_are(self, box: Sandbox) -> None:
        arguments = [
            "",
            "a b",
            "'\"$HOME`id`\\",
            "line\nbreak",
            "-n",
            "ß€😀",
            "\udcff\udc80",
            "*",
            "x" * 100_000,
        ]
        result = await box.exec(["printf", "[%s]", *arguments])
        assert result.stdout == b"".join(
            b"[%b]" % argument.encode("utf-8", "surrogateescape") for argument in arguments
        )

    @pytest.mark.parametrize(
        ("command", "status"),
        [
            (["no-such-program"], 127),
            (["./no-such-file"], 127),
            (["/no/such/file"], 127),
            (["./plain"], 126),
            (["./directory"], 126),
            (["true", "x" * 200_000], 126),
        ],
        ids=["name", "relative", "absolute", "mode", "directory", "too-long"],
    )
    async def test_a_program_that_cannot_run_is_a_status_and_a_line(
        self, box: Sandbox, command: Sequence[str], status: int
    ) -> None:
        await box.write_file("plain", b"#!/bin/sh\n", mode=0o644)
        await box.exec(["mkdir", "directory"])
        result = await box.exec(command)
        assert result.exit_code == status
        assert result.stdout == b""
        assert result.stderr.endswith(b"\n")
        assert 1 < len(result.stderr) < 10_000

    @pytest.mark.parametrize(
        ("command", "environment"),
        [([], {}), ([""], {}), (["true", "a\0b"], {}), (["true"], {"A": "a\0b"}), (["true"], {"a\0b": ""})],
        ids=ascii,
    )
    async def test_a_command_that_cannot_be_one_is_refused(
        self, box: Sandbox, refused: Refused, command: Sequence[str], environment: dict[str, str]
    ) -> None:
        with refused(InvalidRequestError):
            await box.exec(command, environment=environment)
        with refused(InvalidRequestError):
            await box.start_detached(command, environment=environment)

    async def test_commands_start_in_the_working_directory_or_where_they_are_told(self, box: Sandbox) -> None:
        await box.write_file("here", b"working")
        await box.write_file("a/b/here", b"below")
        await shell(box, "ln -s a/b link")
        home = box.working_directory
        for cwd, content in (
            (None, b"working"),
            (".", b"working"),
            (home, b"working"),
            ("a/b", b"below"),
            (f"{home}/a/b/", b"below"),
            ("a/../a/./b", b"below"),
            ("link", b"below"),
            (f"{home}/a/b/../..", b"working"),
        ):
            assert (await box.exec(["cat", "here"], cwd=cwd)).stdout == content, cwd

    @pytest.mark.parametrize("cwd", ["missing", "/no/such", "file", "file/", "dangling", "loop", "a\0b"])
    async def test_a_directory_that_is_none_is_refused(
        self, box: Sandbox, refused: Refused, cwd: str
    ) -> None:
        await box.write_file("file", b"")
        await shell(box, "ln -s nowhere dangling; ln -s loop loop")
        with refused(SandboxPathError):
            await box.exec(["true"], cwd=cwd)

    async def test_the_commands_environment_goes_over_the_sandboxs(self, provider: SandboxProvider) -> None:
        name = fresh_name()
        box = await provider.create(SandboxSpec(name, environment={"A": "box", "B": "box"}))
        result = await box.exec(
            ["sh", "-c", 'printf "%s|" "$A" "$B" "$C"'], environment={"B": "command", "C": "x = y\nz"}
        )
        assert result.stdout == b"box|command|x = y\nz|"
        assert await shell(box, 'printf "%s|" "$A" "$B" "$C"') == b"box|box||"
        assert (
            await shell(box, '[ -n "$PATH" ]; [ -d "$HOME" ]; cd "$HOME"; touch writable; echo ok') == b"ok\n"
        )
        await provider.destroy(name)

    async def test_the_environment_of_the_server_is_not_the_commands(
        self, box: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FERMATA_KIT_SECRET", "sesame")
        assert b"FERMATA_KIT_SECRET" not in await shell(box, "env")

    async def test_standard_input_is_what_was_given_and_ends(self, box: Sandbox) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one "
            yield b""
            await asyncio.sleep(0)
            yield b"two"

        assert (await box.exec(["cat"])).stdout == b""
        assert (await box.exec(["cat"], stdin=ALL_BYTES)).stdout == ALL_BYTES
        assert (await box.exec(["cat"], stdin=pieces())).stdout == b"one two"
        assert (await box.exec(["wc", "-c"], stdin=b"x" * 5_000_000)).stdout.strip() == b"5000000"

    async def test_input_that_nobody_reads_holds_nothing_up(self, box: Sandbox) -> None:
        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 65_536

        async with asyncio.timeout(PATIENCE.total_seconds()):
            assert (await box.exec(["true"], stdin=b"x" * 5_000_000)).exit_code == 0
            assert (await box.exec(["head", "-c", "3"], stdin=endless())).stdout == b"xxx"
            # The writer waits for a pipe that is open in a background child, but never read.
            result = await box.exec(["sh", "-c", "sleep 300 <&0 & exit 4"], stdin=b"x" * 5_000_000)
            assert result.exit_code == 4

    async def test_the_time_limit_kills_everything_and_returns_its_output(self, box: Sandbox) -> None:
        script = f"echo before; echo error >&2; {PULSE} & sleep 300"
        result = await box.exec(["sh", "-c", script], time_limit_for=SHORT)
        assert (result.exit_code, result.timed_out) == (None, True)
        assert (result.stdout, result.stderr) == (b"before\n", b"error\n")
        assert not await has_pulse(box)

    async def test_a_command_that_ignores_signals_meets_the_time_limit_too(self, box: Sandbox) -> None:
        script = "trap '' TERM INT HUP; echo on; while :; do sleep 1; done"
        result = await box.exec(["sh", "-c", script], time_limit_for=SHORT)
        assert (result.timed_out, result.stdout) == (True, b"on\n")

    async def test_a_background_child_neither_delays_the_return_nor_ends_with_it(self, box: Sandbox) -> None:
        async with asyncio.timeout(PATIENCE.total_seconds()):
            result = await box.exec(["sh", "-c", f"{PULSE} & echo done; exit 3"])
        assert (result.exit_code, result.stdout, result.timed_out) == (3, b"done\n", False)
        await pulse_begins(box)
        assert await has_pulse(box)

    async def test_a_background_child_that_writes_on_does_not_delay_the_return(self, box: Sandbox) -> None:
        async with asyncio.timeout(PATIENCE.total_seconds()):
            result = await box.exec(["sh", "-c", "yes & sleep 0.2; exit 3"], output_limit=1000)
        assert result.exit_code == 3

    @pytest.mark.parametrize("limit", [1000, 1001])
    async def test_output_over_the_limit_keeps_its_head_and_tail(self, box: Sandbox, limit: int) -> None:
        whole = b"".join(b"%07d\n" % number for number in range(12_500))
        await box.write_file("whole", whole)
        result = await box.exec(["sh", "-c", "cat whole; cat whole >&2"], output_limit=limit)
        assert result.truncated
        for kept in (result.stdout, result.stderr):
            head, tail = whole[: limit // 2], whole[-(limit // 2) :]
            assert kept.startswith(head)
            assert kept.endswith(tail)
            between = kept[len(head) : -len(tail)]
            assert str(len(whole) - limit).encode() in between
            assert between[-1:] == b"\n"
            assert len(between) < 200

    async def test_output_at_the_limit_is_whole(self, box: Sandbox) -> None:
        result = await box.exec(
            ["sh", "-c", "head -c 1000 /dev/zero; head -c 1001 /dev/zero >&2"], output_limit=1000
        )
        assert result.stdout == b"\0" * 1000
        assert result.truncated
        assert len(result.stderr) > 1001
        result = await box.exec(["head", "-c", "1000", "/dev/zero"], output_limit=1000)
        assert (result.stdout, result.truncated) == (b"\0" * 1000, False)

    async def test_a_flood_of_output_ends_in_bounds(self, box: Sandbox) -> None:
        result = await box.exec(["head", "-c", "60000000", "/dev/zero"])
        assert (result.exit_code, result.truncated) == (0, True)
        assert 1_000_000 < len(result.stdout) < 1_000_300

    async def test_a_cancelled_exec_takes_all_that_it_started_with_it(self, box: Sandbox) -> None:
        task = asyncio.ensure_future(box.exec(["sh", "-c", f"{PULSE} & sleep 300"]))
        await pulse_begins(box)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert not await has_pulse(box)
        assert (await box.exec(["true"])).exit_code == 0

    async def test_an_exec_cancelled_at_once_starts_nothing_that_stays(self, box: Sandbox) -> None:
        for turn in range(10):
            task = asyncio.ensure_future(box.exec(["sh", "-c", f"{PULSE} & sleep 300"]))
            await asyncio.sleep(turn / 2000)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert not await has_pulse(box)

    async def test_many_commands_run_at_once(self, box: Sandbox) -> None:
        async def run(number: int) -> None:
            result = await box.exec(["sh", "-c", f"cat; echo {number}; exit {number}"], stdin=b"%d " % number)
            assert (result.stdout, result.exit_code) == (b"%d %d\n" % (number, number), number)

        await asyncio.gather(*(run(number) for number in range(40)))

    async def test_a_pipeline_ends_quietly_when_its_reader_leaves(self, box: Sandbox) -> None:
        result = await box.exec(["sh", "-c", "yes | head -n 1"])
        assert (result.stdout, result.stderr) == (b"y\n", b"")

    async def test_a_command_inherits_three_descriptors_and_no_blocked_or_ignored_signals(
        self, provider: SandboxProvider, box: Sandbox
    ) -> None:
        if not provider.abilities.isolated:
            pytest.skip("commands are children of whoever runs these checks, and inherit as they do")
        # The fourth is that of the directory which ls reads.
        assert (await shell(box, "exec ls /proc/self/fd")).split() == [b"0", b"1", b"2", b"3"]
        status = await box.exec(["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"])
        assert status.stdout.split()[1::2] == [b"0" * 16, b"0" * 16], status
