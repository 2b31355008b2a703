"""Checks of names, states and the moves between them."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from fermata.kit.errors import (
    FermataError,
    InvalidRequestError,
    SandboxExistsError,
    SandboxGoneError,
    SandboxStoppedError,
)
from fermata.sandboxes.contract import (
    Abilities,
    DetachedStatus,
    Sandbox,
    SandboxProvider,
    SandboxSpec,
    SandboxStatus,
)
from fermata.testing.provider_checks_support import (
    PULSE,
    Checks,
    Refused,
    fresh_name,
    has_pulse,
    pulse_begins,
    shell,
)

BAD_NAMES = ("", ".", "..", "a/b", "../a", "a b", "-a", ".a", "a\0b", "a\n", "ä", "a" * 129)

#: Every method of a handle, as a call that would succeed on a fresh sandbox.
CALLS: dict[str, Callable[[Sandbox], Awaitable[object]]] = {
    "exec": lambda box: box.exec(["true"]),
    "start": lambda box: _start(box),
    "start_detached": lambda box: box.start_detached(["true"]),
    "get_detached": lambda box: box.get_detached("x"),
    "kill_detached": lambda box: box.kill_detached("x"),
    "read_file": lambda box: box.read_file("missing"),
    "write_file": lambda box: box.write_file("new", b""),
    "stat": lambda box: box.stat("."),
    "list_directory": lambda box: box.list_directory("."),
}


async def _start(box: Sandbox) -> int | None:
    async with box.start(["true"]) as process:
        return await process.wait()


async def _status(provider: SandboxProvider, name: str) -> SandboxStatus | None:
    found = {sandbox.name: sandbox.status for sandbox in await provider.list_sandboxes()}
    return found.get(name)


class LifecycleChecks(Checks):
    async def test_it_says_its_name_and_abilities(self, provider: SandboxProvider) -> None:
        assert provider.name.isidentifier()
        assert provider.name == provider.name.lower()
        assert isinstance(provider.abilities, Abilities)

    async def test_a_new_sandbox_is_running_and_listed_with_its_labels(
        self, provider: SandboxProvider
    ) -> None:
        labels = {"session": "s-1", "Grüße": "x" * 200} | {f"k{n}": "" for n in range(14)}
        name = fresh_name()
        before = datetime.now(UTC) - timedelta(seconds=2)
        box = await provider.create(SandboxSpec(name, labels=labels))
        info = await provider.describe(name)
        assert box.name == info.name == name
        assert info.status is SandboxStatus.RUNNING
        assert dict(info.labels) == labels
        assert before < info.created_at < datetime.now(UTC) + timedelta(seconds=2)
        assert info in await provider.list_sandboxes()
        await provider.destroy(name)
        assert await _status(provider, name) is None

    async def test_a_new_sandbox_has_an_empty_working_directory(self, box: Sandbox) -> None:
        assert box.working_directory.startswith("/")
        assert await box.list_directory(box.working_directory) == []
        assert await box.list_directory(".") == []

    @pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
    async def test_nothing_can_be_made_or_found_under_a_bad_name(
        self, provider: SandboxProvider, refused: Refused, name: str
    ) -> None:
        before = await provider.list_sandboxes()
        with refused(InvalidRequestError):
            await provider.create(SandboxSpec(name))
        for find in (provider.connect, provider.resume, provider.stop, provider.describe):
            with refused(SandboxGoneError):
                await find(name)
        await provider.destroy(name)
        assert await provider.list_sandboxes() == before

    @pytest.mark.parametrize("name", ["a" * 128, "A.b_c-9..", "0"], ids=ascii)
    async def test_any_name_within_the_rule_will_do(self, provider: SandboxProvider, name: str) -> None:
        box = await provider.create(SandboxSpec(name))
        assert await shell(box, "echo here") == b"here\n"
        await provider.stop(name)
        assert (await (await provider.resume(name)).exec(["true"])).exit_code == 0
        await provider.destroy(name)

    @pytest.mark.parametrize(
        "labels", [{f"k{n}": "" for n in range(17)}, {"k" * 201: ""}, {"k": "v" * 201}], ids=len
    )
    async def test_too_many_or_too_long_labels_are_refused(
        self, provider: SandboxProvider, refused: Refused, labels: dict[str, str]
    ) -> None:
        name = fresh_name()
        with refused(InvalidRequestError):
            await provider.create(SandboxSpec(name, labels=labels))
        assert await _status(provider, name) is None

    @pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
    async def test_creating_an_existing_name_is_refused_and_changes_nothing(
        self, provider: SandboxProvider, box: Sandbox, refused: Refused, stopped: bool
    ) -> None:
        await box.write_file("kept", b"kept")
        if stopped:
            await provider.stop(box.name)
        before = await provider.describe(box.name)
        with refused(SandboxExistsError):
            await provider.create(SandboxSpec(box.name, labels={"other": "label"}))
        assert await provider.describe(box.name) == before
        assert await (await provider.resume(box.name)).read_file("kept") == b"kept"

    async def test_of_two_creates_at_once_one_succeeds(self, provider: SandboxProvider) -> None:
        name = fresh_name()
        results = await asyncio.gather(
            *(provider.create(SandboxSpec(name)) for _ in range(4)), return_exceptions=True
        )
        refusals = [result for result in results if isinstance(result, SandboxExistsError)]
        assert len(refusals) == 3, results
        assert (await (await provider.connect(name)).exec(["true"])).exit_code == 0
        await provider.destroy(name)

    async def test_many_sandboxes_can_be_made_at_once(self, provider: SandboxProvider) -> None:
        names = [fresh_name() for _ in range(6)]
        boxes = await asyncio.gather(*(provider.create(SandboxSpec(name)) for name in names))
        await asyncio.gather(*(box.write_file("name", box.name.encode()) for box in boxes))
        assert [await box.read_file("name") for box in boxes] == [name.encode() for name in names]
        await asyncio.gather(*(provider.destroy(name) for name in names))

    async def test_connect_gives_another_handle_on_the_same_sandbox(
        self, provider: SandboxProvider, box: Sandbox
    ) -> None:
        await box.write_file("seen", b"by both")
        assert await (await provider.connect(box.name)).read_file("seen") == b"by both"

    async def test_what_is_unknown_is_gone(self, provider: SandboxProvider, refused: Refused) -> None:
        name = fresh_name("unknown")
        for find in (provider.connect, provider.resume, provider.stop, provider.describe):
            with refused(SandboxGoneError):
                await find(name)
        await provider.destroy(name)
        with refused(SandboxGoneError):
            await provider.snapshot(name, fresh_name("snapshot"))

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    async def test_every_call_on_a_stopped_sandbox_says_stopped_and_on_a_destroyed_one_gone(
        self,
        provider: SandboxProvider,
        box: Sandbox,
        refused: Refused,
        call: Callable[[Sandbox], Awaitable[object]],
    ) -> None:
        await provider.stop(box.name)
        with refused(SandboxStoppedError):
            await call(box)
        with refused(SandboxStoppedError):
            await provider.connect(box.name)
        assert (await provider.describe(box.name)).status is SandboxStatus.STOPPED
        await provider.destroy(box.name)
        with refused(SandboxGoneError):
            await call(box)
        with refused(SandboxGoneError):
            await provider.connect(box.name)

    @pytest.mark.parametrize("error", [SandboxStoppedError, SandboxGoneError])
    async def test_a_call_under_way_is_told_when_its_sandbox_ends(
        self, provider: SandboxProvider, box: Sandbox, refused: Refused, error: type[FermataError]
    ) -> None:
        async def run() -> None:
            with refused(error):
                await box.exec(["sh", "-c", PULSE])

        async def read() -> None:
            with refused(error):
                async with box.start(["sh", "-c", "echo begun; sleep 300"]) as process:
                    async for _ in process.output():
                        pass

        async def wait() -> None:
            with refused(error):
                async with box.start(["sleep", "300"]) as process:
                    await process.wait()

        calls = [asyncio.ensure_future(call()) for call in (run, read, wait)]
        await pulse_begins(box)
        await (provider.stop if error is SandboxStoppedError else provider.destroy)(box.name)
        await asyncio.gather(*calls)

    async def test_stop_ends_everything_and_keeps_the_disk(
        self, provider: SandboxProvider, box: Sandbox
    ) -> None:
        await box.start_detached(["sh", "-c", PULSE])
        await pulse_begins(box)
        await shell(
            box,
            "mkdir -p a/empty; echo text > a/file; chmod 640 a/file; chmod 711 a; ln a/file a/hard;"
            "ln -s file a/link; ln -s /nowhere a/dangling;"
            "printf '#!/bin/sh\\necho ran' > a/run; chmod 755 a/run",
        )
        await provider.stop(box.name)
        box = await provider.resume(box.name)
        assert not await has_pulse(box)
        assert await box.read_file("a/file") == await box.read_file("a/link") == b"text\n"
        assert (await box.stat("a/file")).mode == 0o640
        assert (await box.stat("a")).mode == 0o711
        script = (
            "readlink a/dangling; ./a/run; [ a/file -ef a/hard ]; echo more >> a/hard; cat a/file; ls a/empty"
        )
        assert await shell(box, script) == b"/nowhere\nran\ntext\nmore\n"

    async def test_a_sandbox_can_be_stopped_and_resumed_again_and_again(
        self, provider: SandboxProvider, box: Sandbox
    ) -> None:
        for turn in range(5):
            await shell(box, f"echo {turn} >> log")
            await provider.stop(box.name)
            box = await provider.resume(box.name)
        assert await box.read_file("log") == b"0\n1\n2\n3\n4\n"

    async def test_the_environment_of_the_sandbox_survives_a_stop(self, provider: SandboxProvider) -> None:
        name = fresh_name()
        await provider.create(SandboxSpec(name, environment={"KEPT": "a b\nc"}))
        await provider.stop(name)
        box = await provider.resume(name)
        assert await shell(box, 'printf %s "$KEPT"') == b"a b\nc"
        await provider.destroy(name)

    async def test_resuming_a_running_sandbox_leaves_it_as_it_is(
        self, provider: SandboxProvider, box: Sandbox
    ) -> None:
        command = await box.start_detached(["sleep", "300"])
        again = await provider.resume(box.name)
        assert (await again.get_detached(command)).status is DetachedStatus.RUNNING

    async def test_doing_it_twice_or_at_once_is_doing_it_once(
        self, provider: SandboxProvider, box: Sandbox, refused: Refused
    ) -> None:
        await box.write_file("kept", b"kept")
        await asyncio.gather(*(provider.stop(box.name) for _ in range(4)))
        await provider.stop(box.name)
        assert await _status(provider, box.name) is SandboxStatus.STOPPED
        handles = await asyncio.gather(*(provider.resume(box.name) for _ in range(4)))
        assert [await handle.read_file("kept") for handle in handles] == [b"kept"] * 4
        await handles[0].write_file("shared", b"one disk")
        assert await handles[3].read_file("shared") == b"one disk"
        await asyncio.gather(*(provider.destroy(box.name) for _ in range(4)))
        await provider.destroy(box.name)
        with refused(SandboxGoneError):
            await provider.resume(box.name)

    async def test_stop_and_resume_at_once_end_in_one_of_the_two_states(
        self, provider: SandboxProvider, box: Sandbox
    ) -> None:
        await box.write_file("kept", b"kept")
        await asyncio.gather(*(move(box.name) for _ in range(3) for move in (provider.stop, provider.resume)))
        box = await provider.resume(box.name)
        assert await box.read_file("kept") == b"kept"
        assert await shell(box, "cat kept") == b"kept"

    async def test_a_destroyed_name_can_be_used_again_and_starts_empty(
        self, provider: SandboxProvider, box: Sandbox
    ) -> None:
        await box.write_file("old", b"old")
        await provider.destroy(box.name)
        again = await provider.create(SandboxSpec(box.name))
        assert await again.list_directory(".") == []

    async def test_a_create_from_a_missing_snapshot_leaves_nothing(
        self, provider: SandboxProvider, refused: Refused
    ) -> None:
        name = fresh_name()
        for base in (fresh_name("missing"), "../escape"):
            with refused(SandboxGoneError):
                await provider.create(SandboxSpec(name, base=base))
            assert await _status(provider, name) is None

    @pytest.mark.parametrize("after", [0, 0.001, 0.005, 0.02])
    async def test_a_cancelled_create_leaves_nothing_that_is_not_listed(
        self, provider: SandboxProvider, after: float
    ) -> None:
        name = fresh_name()
        task = asyncio.ensure_future(provider.create(SandboxSpec(name)))
        await asyncio.sleep(after)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if await _status(provider, name) is not None:
            assert (await (await provider.resume(name)).exec(["true"])).exit_code == 0
        await provider.destroy(name)
        box = await provider.create(SandboxSpec(name))
        assert await shell(box, "ls") == b""
        await provider.destroy(name)

    @pytest.mark.parametrize("after", [0, 0.001, 0.005, 0.02])
    async def test_a_cancelled_resume_leaves_the_disk_and_can_be_tried_again(
        self, provider: SandboxProvider, box: Sandbox, after: float
    ) -> None:
        await box.write_file("kept", b"kept")
        await provider.stop(box.name)
        task = asyncio.ensure_future(provider.resume(box.name))
        await asyncio.sleep(after)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await _status(provider, box.name) is not None
        assert await (await provider.resume(box.name)).read_file("kept") == b"kept"
