"""Providers with one fault each. `test_provider_kit.py` runs the kit over them and expects it to object.

Not collected by itself: what is in here has to fail.
"""

import asyncio
import dataclasses
import shutil
from typing import Any

import pytest

from fermata.kit.errors import SandboxExistsError, SandboxPathError
from fermata.sandboxes.contract import Abilities, Sandbox, SandboxProvider, SandboxSpec, SnapshotInfo
from fermata.sandboxes.providers.memory import MemoryProvider
from fermata.testing.provider_checks_support import MakeProvider
from fermata.testing.provider_kit import ProviderKit


class Box:
    """A handle that does what the honest one does, except for what a fault overrides."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Faulty(MemoryProvider):
    box: type[Box] = Box

    async def create(self, spec: SandboxSpec) -> Sandbox:
        return self.box(await super().create(spec))

    async def connect(self, name: str) -> Sandbox:
        return self.box(await super().connect(name))

    async def resume(self, name: str) -> Sandbox:
        return self.box(await super().resume(name))


class Cancelled(Box):
    async def exec(self, *args: Any, **keywords: Any) -> Any:
        return await asyncio.shield(asyncio.ensure_future(self.inner.exec(*args, **keywords)))


class LeavesCancelledCommandsRunning(Faulty):
    box = Cancelled


class Unlimited(Box):
    async def exec(self, *args: Any, output_limit: int = 0, **keywords: Any) -> Any:
        return await self.inner.exec(*args, output_limit=1 << 30, **keywords)


class IgnoresTheOutputLimit(Faulty):
    box = Unlimited


class Killed(Box):
    async def exec(self, *args: Any, **keywords: Any) -> Any:
        result = await self.inner.exec(*args, **keywords)
        return dataclasses.replace(result, exit_code=137) if result.timed_out else result


class GivesAStatusAtTheTimeLimit(Faulty):
    box = Killed


class InPlace(Box):
    async def write_file(self, path: str, data: bytes, *, mode: int | None = None) -> None:
        half = len(data) // 2
        await self.inner.exec(["sh", "-c", 'cat > "$1"', "sh", path], stdin=data[:half])
        await self.inner.exec(["sh", "-c", 'cat >> "$1"', "sh", path], stdin=data[half:])


class WritesInPlace(Faulty):
    box = InPlace


class Talkative(Box):
    async def read_file(self, path: str, **keywords: Any) -> bytes:
        try:
            return bytes(await self.inner.read_file(path, **keywords))
        except SandboxPathError as error:
            where = self.inner._find(self.inner.name).disk.root
            raise SandboxPathError(f"{where}/{path}: {error.message}") from error


class TellsPathsOfTheHost(Faulty):
    box = Talkative


class CreatesOverWhatExists(Faulty):
    async def create(self, spec: SandboxSpec) -> Sandbox:
        try:
            return await super().create(spec)
        except SandboxExistsError:
            return await self.resume(spec.name)


class LosesTheDiskAtAStop(Faulty):
    async def stop(self, name: str) -> None:
        await super().stop(name)
        workspace = self._sandboxes / name / "disk/workspace"
        shutil.rmtree(workspace)
        workspace.mkdir()


class SnapshotsWhatRuns(Faulty):
    async def snapshot(self, name: str, snapshot: str) -> SnapshotInfo:
        await self.stop(name)
        return await super().snapshot(name, snapshot)


class SharesTheDiskOfASnapshot(Faulty):
    async def create(self, spec: SandboxSpec) -> Sandbox:
        box = await super().create(spec)
        if spec.base is not None:
            disk = self._sandboxes / spec.name / "disk"
            shutil.rmtree(disk)
            disk.symlink_to(self._snapshots / spec.base / "disk")
        return box


class ForgetsLabelsAtARestart(Faulty):
    async def open(self) -> Any:
        report = await super().open()
        for record in self._sandboxes.glob("*/record.json"):
            record.write_text(record.read_text().replace('"a": "b"', ""))
        return report


class ClaimsWallsItDoesNotHave(Faulty):
    @property
    def abilities(self) -> Abilities:
        return Abilities(snapshots=True, isolated=True)


#: Each fault and the check that has to object.
FAULTS: dict[type[SandboxProvider], str] = {
    LeavesCancelledCommandsRunning: "test_a_cancelled_exec_takes_all_that_it_started_with_it",
    IgnoresTheOutputLimit: "test_output_over_the_limit_keeps_its_head_and_tail[1000]",
    GivesAStatusAtTheTimeLimit: "test_the_time_limit_kills_everything_and_returns_its_output",
    WritesInPlace: "test_a_reader_sees_the_old_content_or_the_new",
    TellsPathsOfTheHost: "test_what_is_no_regular_file_cannot_be_read['missing']",
    CreatesOverWhatExists: "test_creating_an_existing_name_is_refused_and_changes_nothing[running]",
    LosesTheDiskAtAStop: "test_stop_ends_everything_and_keeps_the_disk",
    SnapshotsWhatRuns: "test_a_running_sandbox_has_no_snapshot_taken",
    SharesTheDiskOfASnapshot: "test_later_writes_reach_neither_the_snapshot_nor_its_other_sandboxes",
    ForgetsLabelsAtARestart: "test_closing_stops_every_sandbox_and_keeps_the_disks",
    ClaimsWallsItDoesNotHave: "test_files_of_the_host_are_not_there",
}


def kit_over(fault: type[SandboxProvider]) -> type[ProviderKit]:
    def make_provider(cls: type) -> MakeProvider:
        return fault

    fixture = pytest.fixture(scope="class")(classmethod(make_provider))
    return type(f"Test{fault.__name__}", (ProviderKit,), {"make_provider": fixture})


globals().update({f"Test{fault.__name__}": kit_over(fault) for fault in FAULTS})
