"""The memory provider: for tests only. It isolates nothing: commands run on this machine, as you.

A sandbox is a directory and its commands are ordinary processes. File methods see that directory as `/`.
Commands see the machine's own `/`; so that they find the working directory all the same, `/workspace` in an
argument or environment value is replaced by its place on this machine, and so is a `cwd`. Limits and the
network policy are not enforced. The registry does not know this provider: only a test constructs it.

    <directory>/sandboxes/<name>/record.json    what `describe` tells
    <directory>/sandboxes/<name>/disk/          the sandbox's `/`
    <directory>/sandboxes/<name>/detached/      one file for each detached command
    <directory>/snapshots/<name>/               record.json and disk/ again

One process at a time uses a directory: `open` ends whatever an earlier one left running.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fermata.kit.errors import (
    FermataError,
    SandboxExistsError,
    SandboxFailedError,
    SandboxGoneError,
    SandboxStoppedError,
)
from fermata.sandboxes.contract import (
    Abilities,
    ProviderReport,
    Sandbox,
    SandboxInfo,
    SandboxSpec,
    SandboxStatus,
    SnapshotInfo,
)
from fermata.sandboxes.names import check_labels, check_name, is_name
from fermata.sandboxes.providers.memory_commands import kill_marked
from fermata.sandboxes.providers.memory_disk import Disk
from fermata.sandboxes.providers.memory_sandbox import WORKING_DIRECTORY, Machine, MemorySandbox


class MemoryProvider:
    """Implements `contract.SandboxProvider` in `directory`, which is made if it is missing."""

    def __init__(self, directory: Path) -> None:
        self._sandboxes = directory / "sandboxes"
        self._snapshots = directory / "snapshots"
        self._mark = hashlib.sha256(os.fsencode(directory.absolute())).hexdigest()[:16]
        self._running: dict[str, Machine] = {}
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def name(self) -> str:
        return "memory"

    @property
    def abilities(self) -> Abilities:
        return Abilities(snapshots=True, isolated=False)

    async def open(self) -> ProviderReport:
        for directory in (self._sandboxes, self._snapshots):
            directory.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(kill_marked, f"{self._mark}/")
        return ProviderReport(True, "memory: no isolation at all, commands run as you; for tests only")

    async def close(self) -> None:
        for name in list(self._running):
            with contextlib.suppress(SandboxGoneError):
                await self.stop(name)

    async def create(self, spec: SandboxSpec) -> Sandbox:
        check_name(spec.name)
        check_labels(spec.labels)
        async with self._turns[spec.name]:
            await _to_its_end(self._make, spec)
            return self._run(spec.name)

    async def connect(self, name: str) -> Sandbox:
        if name not in self._running:
            self._record(name)
            raise SandboxStoppedError(f"the sandbox {name} is stopped")
        return MemorySandbox(name, self._machine)

    async def resume(self, name: str) -> Sandbox:
        async with self._turns[name]:
            return MemorySandbox(name, self._machine) if name in self._running else self._run(name)

    async def stop(self, name: str) -> None:
        async with self._turns[name]:
            self._record(name)
            await self._end(name, SandboxStoppedError(f"the sandbox {name} was stopped"))

    async def destroy(self, name: str) -> None:
        if not is_name(name):
            return
        async with self._turns[name]:
            await self._end(name, SandboxGoneError(f"the sandbox {name} was destroyed"))
            await _to_its_end(_remove, self._sandboxes / name)

    async def describe(self, name: str) -> SandboxInfo:
        record = self._record(name)
        return SandboxInfo(
            name=name,
            status=SandboxStatus.RUNNING if name in self._running else SandboxStatus.STOPPED,
            created_at=datetime.fromisoformat(record["created_at"]),
            labels=record["labels"],
        )

    async def list_sandboxes(self) -> list[SandboxInfo]:
        return [await self.describe(name) for name in _names(self._sandboxes)]

    async def snapshot(self, name: str, snapshot: str) -> SnapshotInfo:
        check_name(snapshot)
        async with self._turns[name]:
            self._record(name)
            if name in self._running:
                raise SandboxFailedError(f"the sandbox {name} is running: stop it before its snapshot")
            created_at = datetime.now(UTC)
            with _appearing(self._snapshots / snapshot) as fresh:
                await _to_its_end(_copy, self._sandboxes / name / "disk", fresh / "disk")
                (fresh / "record.json").write_text(json.dumps({"created_at": created_at.isoformat()}))
            return SnapshotInfo(snapshot, created_at)

    async def list_snapshots(self) -> list[SnapshotInfo]:
        return [
            SnapshotInfo(name, datetime.fromisoformat(_load(self._snapshots / name)["created_at"]))
            for name in _names(self._snapshots)
        ]

    async def delete_snapshot(self, snapshot: str) -> None:
        if is_name(snapshot):
            await _to_its_end(_remove, self._snapshots / snapshot)

    def _make(self, spec: SandboxSpec) -> None:
        with _appearing(self._sandboxes / spec.name) as fresh:
            if spec.base is None:
                for inside in (WORKING_DIRECTORY, "/root", "/tmp"):  # noqa: S108 - a path inside
                    (fresh / f"disk{inside}").mkdir(parents=True)
            elif is_name(spec.base) and (self._snapshots / spec.base).exists():
                _copy(self._snapshots / spec.base / "disk", fresh / "disk")
            else:
                raise SandboxGoneError(f"there is no snapshot {spec.base[:128]!r}")
            (fresh / "detached").mkdir()
            record = {
                "created_at": datetime.now(UTC).isoformat(),
                "labels": dict(spec.labels),
                "environment": dict(spec.environment),
            }
            (fresh / "record.json").write_text(json.dumps(record))

    def _run(self, name: str) -> Sandbox:
        record = self._record(name)
        home = self._sandboxes / name
        self._running[name] = Machine(
            disk=Disk(home / "disk", WORKING_DIRECTORY),
            detached_at=home / "detached",
            environment=record["environment"],
            mark=f"{self._mark}/{name}/",
        )
        return MemorySandbox(name, self._machine)

    async def _end(self, name: str, error: FermataError) -> None:
        machine = self._running.pop(name, None)
        if machine is not None:
            await machine.end(error)

    def _machine(self, name: str) -> Machine:
        machine = self._running.get(name)
        if machine is None:
            self._record(name)
            raise SandboxStoppedError(f"the sandbox {name} is stopped")
        return machine

    def _record(self, name: str) -> Any:
        if not is_name(name) or not (self._sandboxes / name / "record.json").exists():
            raise SandboxGoneError(f"there is no sandbox {name[:128]!r}")
        return _load(self._sandboxes / name)


async def _to_its_end(work: Callable[..., None], *args: object) -> None:
    """Run `work` in a thread. A cancelled caller waits for it all the same: a thread cannot be stopped, and
    what it does belongs under the lock of the name."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        await asyncio.shield(task)
    finally:
        await asyncio.wait([task])


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A new directory that becomes `target` at the end of the block, whole or not at all."""
    fresh = target.parent / f".new-{secrets.token_hex(8)}"
    fresh.mkdir()
    try:
        if target.exists():
            raise SandboxExistsError(f"{target.name} exists already")
        yield fresh
        try:
            fresh.rename(target)
        except OSError as error:
            raise SandboxExistsError(f"{target.name} exists already") from error
    finally:
        _remove(fresh)


def _names(directory: Path) -> list[str]:
    return sorted(found.name for found in directory.iterdir() if is_name(found.name))


def _load(home: Path) -> Any:
    return json.loads((home / "record.json").read_bytes())


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--", source, target], check=True, capture_output=True)


def _remove(directory: Path) -> None:
    """Delete it with all below. Its name is free at once, and nothing half deleted is ever listed."""
    gone = directory.parent / f".old-{secrets.token_hex(8)}"
    try:
        directory.rename(gone)
    except FileNotFoundError:
        return
    subprocess.run(["chmod", "-R", "u+rwx", "--", gone], check=True, capture_output=True)
    shutil.rmtree(gone)
