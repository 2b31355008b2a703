"""Frozen disks. A snapshot is a list of layers over a base; making one moves the stopped sandbox's `upper`
into the layer store and gives it an empty one above. Nothing is copied, whatever the size.

A layer is referred to by records and snapshots alone. Whoever adds a reference holds the lock of the layer
store shared, whoever looks for layers without one holds it exclusively.
"""

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fermata.kit.errors import SandboxExistsError, SandboxFailedError, SandboxGoneError
from fermata.sandboxes.contract import SnapshotInfo
from fermata.sandboxes.names import check_name, is_name
from fermata.sandboxes.providers.local.locks import holding
from fermata.sandboxes.providers.local.records import (
    Home,
    Layout,
    Record,
    frozen,
    load_record,
    sync_directory,
    write_file,
)

#: Looking up a name takes a step per layer. Past this a sandbox would be slow for reasons nobody sees.
LAYERS_AT_MOST = 64


@dataclass(frozen=True, slots=True)
class Snapshot:
    created_at: datetime
    base: str
    layers: tuple[str, ...]


class SnapshotStore:
    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    @contextlib.asynccontextmanager
    async def starting_from(self, name: str) -> AsyncIterator[Snapshot]:
        """What a new sandbox stands on. Its layers stay until the block is left; by then the sandbox's record
        must be written. `SandboxGoneError` when there is no such snapshot."""
        async with holding(self._lock, shared=True):
            yield self._read(name)

    async def freeze(self, home: Home, record: Record, name: str, first_id: int | None) -> SnapshotInfo:
        """The caller holds the sandbox's gate, and the sandbox is stopped."""
        check_name(name)
        async with holding(self._lock):
            if self._path(name).exists():
                raise SandboxExistsError(f"there is a snapshot {name!r} already")
            if len(record.layers) >= LAYERS_AT_MOST:
                raise SandboxFailedError(
                    f"the sandbox stands on {len(record.layers)} snapshots, one upon the other, which is the "
                    "most: copy its files into a new sandbox and go on there"
                )
            snapshot = await asyncio.to_thread(self._freeze, home, record, name, first_id)
        return SnapshotInfo(name, snapshot.created_at)

    def _freeze(self, home: Home, record: Record, name: str, first_id: int | None) -> Snapshot:
        layer = secrets.token_hex(8)
        record = replace(record, freezing=layer)
        home.write(record)
        home.upper.rename(self._layout.layers / layer)
        sync_directory(self._layout.layers)
        record = self.settle(home, record, first_id)
        snapshot = Snapshot(datetime.now(UTC), record.base, record.layers)
        values = {
            "created_at": snapshot.created_at.isoformat(),
            "base": snapshot.base,
            "layers": snapshot.layers,
        }
        write_file(self._path(name), json.dumps(values).encode())
        return snapshot

    def settle(self, home: Home, record: Record, first_id: int | None) -> Record:
        """Finish, or take back, a freezing that a dead process left half done. The caller holds the gate."""
        if record.freezing is None:
            return record
        layer = self._layout.layers / record.freezing
        record = frozen(record, record.freezing) if layer.exists() else replace(record, freezing=None)
        if not home.upper.exists():
            shape = layer.stat()
            home.upper.mkdir(mode=0o700)
            home.upper.chmod(shape.st_mode & 0o7777)
            if first_id is not None:
                os.chown(home.upper, shape.st_uid, shape.st_gid)
        home.write(record)
        return record

    def all(self) -> list[SnapshotInfo]:
        found = []
        for path in sorted(self._layout.snapshots.glob("*.json")):
            with contextlib.suppress(SandboxGoneError):
                found.append(SnapshotInfo(path.stem, self._read(path.stem).created_at))
        return found

    async def delete(self, name: str, remove: Callable[[Path], Awaitable[None]]) -> None:
        if not is_name(name):
            return
        self._path(name).unlink(missing_ok=True)
        await self.collect(remove)

    async def collect(self, remove: Callable[[Path], Awaitable[None]]) -> None:
        """Delete the layers that nothing stands on."""
        async with holding(self._lock):
            discarded = await asyncio.to_thread(self._discard_unused)
        for path in discarded:
            await remove(path)

    def _discard_unused(self) -> list[Path]:
        used: set[str] = set()
        for path in self._layout.snapshots.glob("*.json"):
            used.update(json.loads(path.read_bytes())["layers"])
        for place in (self._layout.sandboxes, self._layout.staging):
            for path in place.glob("*/sandbox.json"):
                with contextlib.suppress(FileNotFoundError):
                    record = load_record(path.read_bytes())
                    used.update(record.layers)
                    used.add(record.freezing or "")
        found = []
        for entry in os.listdir(self._layout.layers):
            if entry not in used and entry != self._lock.name:
                moved = self._layout.discard(self._layout.layers / entry)
                if moved is not None:
                    found.append(moved)
        return found

    def _read(self, name: str) -> Snapshot:
        try:
            values = json.loads(self._path(name).read_bytes()) if is_name(name) else None
        except FileNotFoundError:
            values = None
        if values is None:
            raise SandboxGoneError(f"there is no snapshot {name!r}")
        return Snapshot(datetime.fromisoformat(values["created_at"]), values["base"], tuple(values["layers"]))

    def _path(self, name: str) -> Path:
        return self._layout.snapshots / f"{name}.json"

    @property
    def _lock(self) -> Path:
        return self._layout.layers / "lock"
