"""Checks of snapshots, and of the refusal where a provider has none."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from fermata.kit.errors import (
    InvalidRequestError,
    SandboxExistsError,
    SandboxFailedError,
    SandboxGoneError,
    SandboxPathError,
    SandboxUnsupportedError,
)
from fermata.sandboxes.contract import Sandbox, SandboxProvider, SandboxSpec, SandboxStatus
from fermata.testing.provider_checks_support import Checks, MakeProvider, Refused, fresh_name, shell


class Shelf:
    """Makes snapshots and sandboxes from them, and clears them away."""

    def __init__(self, provider: SandboxProvider) -> None:
        self.provider = provider
        self.made: list[str] = []
        self.kept: list[str] = []

    async def keep(self, box: Sandbox) -> str:
        """Stop a sandbox and keep its disk."""
        name = fresh_name("snapshot")
        await self.provider.stop(box.name)
        info = await self.provider.snapshot(box.name, name)
        assert info.name == name
        self.kept.append(name)
        return name

    async def start(self, snapshot: str) -> Sandbox:
        name = fresh_name()
        self.made.append(name)
        return await self.provider.create(SandboxSpec(name, base=snapshot))

    async def clear(self) -> None:
        for name in self.made:
            await self.provider.destroy(name)
        for name in self.kept:
            await self.provider.delete_snapshot(name)


class SnapshotChecks(Checks):
    @pytest_asyncio.fixture(loop_scope="class")
    async def shelf(self, provider: SandboxProvider) -> AsyncIterator[Shelf]:
        if not provider.abilities.snapshots:
            pytest.skip(f"{provider.name} has no snapshots")
        shelf = Shelf(provider)
        yield shelf
        await shelf.clear()

    async def test_a_provider_without_snapshots_says_so(
        self, provider: SandboxProvider, box: Sandbox, refused: Refused
    ) -> None:
        if provider.abilities.snapshots:
            pytest.skip(f"{provider.name} has snapshots")
        await provider.stop(box.name)
        with refused(SandboxUnsupportedError):
            await provider.snapshot(box.name, fresh_name("snapshot"))
        assert await provider.list_snapshots() == []

    async def test_a_new_sandbox_holds_everything_the_snapshot_held(self, shelf: Shelf, box: Sandbox) -> None:
        await shell(
            box,
            "mkdir -p a/empty; echo text > a/file; chmod 640 a/file; ln -s file a/link; ln a/file a/hard;"
            r"""chmod 711 a; printf '#!/bin/sh\necho ran' > run; chmod 755 run; : > "$(printf 'n\377')";"""
            'echo home > "$HOME/file"',
        )
        child = await shelf.start(await shelf.keep(box))
        assert child.working_directory == box.working_directory
        names = [entry.name for entry in await child.list_directory(".")]
        assert names == ["a", "n\udcff", "run"]
        assert (await child.stat("a/file")).mode == 0o640
        assert (await child.stat("a")).mode == 0o711
        script = './run; readlink a/link; cat a/link; [ a/file -ef a/hard ]; ls a/empty; cat "$HOME/file"'
        assert await shell(child, script) == b"ran\nfile\ntext\nhome\n"

    async def test_the_sandbox_stays_stopped_and_can_be_resumed(
        self, shelf: Shelf, provider: SandboxProvider, box: Sandbox
    ) -> None:
        await box.write_file("file", b"content")
        await shelf.keep(box)
        assert (await provider.describe(box.name)).status is SandboxStatus.STOPPED
        assert await (await provider.resume(box.name)).read_file("file") == b"content"

    async def test_later_writes_reach_neither_the_snapshot_nor_its_other_sandboxes(
        self, shelf: Shelf, provider: SandboxProvider, box: Sandbox
    ) -> None:
        await shell(box, "echo old > file; echo old > gone; mkdir dir; echo old > dir/inner")
        snapshot = await shelf.keep(box)
        change = "echo new >> file; rm gone; rm -r dir; mkdir dir; echo new > dir/other; chmod 600 file"
        box = await provider.resume(box.name)
        await shell(box, change)
        first = await shelf.start(snapshot)
        await shell(first, change)
        for untouched in (await shelf.start(snapshot), await shelf.start(snapshot)):
            assert await shell(untouched, "cat file gone dir/inner; ls; ls dir") == (
                b"old\nold\nold\ndir\nfile\ngone\ninner\n"
            )
            assert (await untouched.stat("file")).mode == 0o644
        for changed in (box, first):
            assert await shell(changed, "cat file dir/other; ls; ls dir") == (
                b"old\nnew\nnew\ndir\nfile\nother\n"
            )

    async def test_what_was_deleted_or_replaced_stays_so_through_a_chain(
        self, shelf: Shelf, provider: SandboxProvider, box: Sandbox
    ) -> None:
        await shell(box, "mkdir d; touch d/one d/two; echo x > to-dir; mkdir to-file; touch to-file/x")
        for step in (
            "rm -r d; mkdir d; touch d/three",
            "rm to-dir; mkdir to-dir; touch to-dir/x; rm -r to-file; echo y > to-file",
            "mv d moved; touch d",
        ):
            box = await shelf.start(await shelf.keep(box))
            await shell(box, step)
        box = await shelf.start(await shelf.keep(box))
        assert await shell(box, "find . -mindepth 1 | LC_ALL=C sort; cat to-file") == (
            b"./d\n./moved\n./moved/three\n./to-dir\n./to-dir/x\n./to-file\ny\n"
        )
        with pytest.raises(SandboxPathError):
            await box.stat("moved/one")

    async def test_a_long_chain_keeps_what_every_step_wrote(self, shelf: Shelf, box: Sandbox) -> None:
        for step in range(12):
            await shell(box, f"echo {step} >> log; echo {step} > step-{step}")
            box = await shelf.start(await shelf.keep(box))
        assert await box.read_file("log") == b"".join(b"%d\n" % step for step in range(12))
        assert await box.read_file("step-0") == b"0\n"

    async def test_a_snapshot_survives_the_sandbox_it_was_taken_of(
        self, shelf: Shelf, provider: SandboxProvider, box: Sandbox
    ) -> None:
        await box.write_file("file", b"content")
        snapshot = await shelf.keep(box)
        await provider.destroy(box.name)
        again = await provider.create(SandboxSpec(box.name))
        assert await again.list_directory(".") == []
        assert await (await shelf.start(snapshot)).read_file("file") == b"content"

    async def test_disks_that_started_from_a_deleted_snapshot_stay_whole(
        self, shelf: Shelf, provider: SandboxProvider, box: Sandbox, refused: Refused
    ) -> None:
        await box.write_file("file", b"content")
        snapshot = await shelf.keep(box)
        child = await shelf.start(snapshot)
        await provider.destroy(box.name)
        await provider.delete_snapshot(snapshot)
        await provider.delete_snapshot(snapshot)
        assert snapshot not in [info.name for info in await provider.list_snapshots()]
        with refused(SandboxGoneError):
            await provider.create(SandboxSpec(fresh_name(), base=snapshot))
        assert await child.read_file("file") == b"content"
        grandchild = await shelf.start(await shelf.keep(child))
        child = await provider.resume(child.name)
        assert await child.read_file("file") == await grandchild.read_file("file") == b"content"

    async def test_deleting_what_is_unknown_is_no_error(self, provider: SandboxProvider) -> None:
        for name in (fresh_name("unknown"), "", "..", "a/b", "a\0b"):
            await provider.delete_snapshot(name)

    async def test_a_running_sandbox_has_no_snapshot_taken(
        self, shelf: Shelf, provider: SandboxProvider, box: Sandbox, refused: Refused
    ) -> None:
        name = fresh_name("snapshot")
        with refused(SandboxFailedError):
            await provider.snapshot(box.name, name)
        assert name not in [info.name for info in await provider.list_snapshots()]
        assert (await box.exec(["true"])).exit_code == 0

    @pytest.mark.parametrize("name", ["", "..", "a/b", "../a", "a\0b", "a" * 129], ids=ascii)
    async def test_a_bad_name_is_refused(
        self, shelf: Shelf, provider: SandboxProvider, box: Sandbox, refused: Refused, name: str
    ) -> None:
        await provider.stop(box.name)
        before = await provider.list_snapshots()
        with refused(InvalidRequestError):
            await provider.snapshot(box.name, name)
        assert await provider.list_snapshots() == before

    async def test_an_existing_snapshot_is_neither_replaced_nor_changed(
        self, shelf: Shelf, provider: SandboxProvider, box: Sandbox, refused: Refused
    ) -> None:
        await box.write_file("file", b"first")
        snapshot = await shelf.keep(box)
        before = [info for info in await provider.list_snapshots() if info.name == snapshot]
        await (await provider.resume(box.name)).write_file("file", b"second")
        await provider.stop(box.name)
        with refused(SandboxExistsError):
            await provider.snapshot(box.name, snapshot)
        assert [info for info in await provider.list_snapshots() if info.name == snapshot] == before
        assert await (await shelf.start(snapshot)).read_file("file") == b"first"
        assert await (await provider.resume(box.name)).read_file("file") == b"second"

    async def test_of_two_snapshots_at_once_under_one_name_one_is_made(
        self, shelf: Shelf, provider: SandboxProvider, box: Sandbox
    ) -> None:
        await box.write_file("file", b"content")
        await provider.stop(box.name)
        name = fresh_name("snapshot")
        shelf.kept.append(name)
        results = await asyncio.gather(
            *(provider.snapshot(box.name, name) for _ in range(3)), return_exceptions=True
        )
        assert len([result for result in results if isinstance(result, SandboxExistsError)]) == 2, results
        assert await (await shelf.start(name)).read_file("file") == b"content"

    async def test_snapshots_are_listed_with_their_time_and_survive_a_restart(
        self, shelf: Shelf, make_provider: MakeProvider, tmp_path: Path
    ) -> None:
        first = make_provider(tmp_path)
        await first.open()
        box = await first.create(SandboxSpec("box"))
        await box.write_file("file", b"content")
        await first.stop("box")
        info = await first.snapshot("box", "kept")
        assert abs(info.created_at - datetime.now(UTC)) < timedelta(minutes=1)
        assert await first.list_snapshots() == [info]
        await first.destroy("box")
        await first.close()
        second = make_provider(tmp_path)
        await second.open()
        try:
            assert await second.list_snapshots() == [info]
            box = await second.create(SandboxSpec("again", base="kept"))
            assert await box.read_file("file") == b"content"
            await second.destroy("again")
            await second.delete_snapshot("kept")
        finally:
            await second.close()
