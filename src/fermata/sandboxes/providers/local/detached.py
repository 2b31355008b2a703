"""Commands that nobody waits for. Each has a file on the host that its keeper inside writes to: a head with
its status, then a ring with the last of its output (native/wire.h). The keeper holds a lock on the file, so
that a status `running` without a lock means that the end was not seen."""

import fcntl
import os
import re
import secrets
import struct
from dataclasses import dataclass
from pathlib import Path

from fermata.kit.errors import SandboxPathError
from fermata.sandboxes.contract import DetachedCommand, DetachedStatus
from fermata.sandboxes.providers.local.locks import is_held

_HEAD = struct.Struct("<QQii")
_MAGIC = 0x3152444554544146
_RING = 64 * 1024
_EXITED = 1
_KILLED = 137
_ID = re.compile(r"[0-9a-f]{16}")
#: Records of ended commands that are kept for a sandbox.
_KEPT_AT_MOST = 256


@dataclass(frozen=True, slots=True)
class NewRecord:
    id: str
    number: int
    #: Holds the lock; whoever gets a copy goes on holding it.
    descriptor: int


def create(directory: Path) -> NewRecord:
    _prune(directory)
    number = secrets.randbits(63)
    name = f"{number:016x}"
    descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return NewRecord(name, number, descriptor)


def forget(directory: Path, command_id: str) -> None:
    (directory / command_id).unlink(missing_ok=True)


def read(directory: Path, command_id: str) -> DetachedCommand:
    head, output = _load(directory, command_id)
    _, _, state, code = head
    if state == _EXITED:
        return DetachedCommand(command_id, DetachedStatus.EXITED, code & 0xFF, output)
    if is_held(directory / command_id):
        return DetachedCommand(command_id, DetachedStatus.RUNNING, None, output)
    # It may have ended between the two looks.
    head, output = _load(directory, command_id)
    if head[2] == _EXITED:
        return DetachedCommand(command_id, DetachedStatus.EXITED, head[3] & 0xFF, output)
    return DetachedCommand(command_id, DetachedStatus.LOST, None, output)


def mark_killed(directory: Path, command_id: str) -> None:
    """After its keeper was killed, which so could not write down the end."""
    path = directory / command_id
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        magic, written, state, _ = _HEAD.unpack(os.pread(descriptor, _HEAD.size, 0))
        if state != _EXITED:
            os.pwrite(descriptor, _HEAD.pack(magic, written, _EXITED, _KILLED), 0)
    finally:
        os.close(descriptor)


def _load(directory: Path, command_id: str) -> tuple[tuple[int, int, int, int], bytes]:
    if not _ID.fullmatch(command_id):
        raise SandboxPathError(f"no detached command has the id {command_id!r}")
    try:
        data = (directory / command_id).read_bytes()
    except FileNotFoundError:
        raise SandboxPathError(f"no detached command has the id {command_id!r}") from None
    if len(data) < _HEAD.size:
        return (_MAGIC, 0, 0, 0), b""
    magic, written, state, code = _HEAD.unpack_from(data)
    ring = data[_HEAD.size : _HEAD.size + _RING]
    if written <= _RING:
        return (magic, written, state, code), ring[:written]
    seam = written % _RING
    return (magic, written, state, code), ring[seam:] + ring[:seam]


def _prune(directory: Path) -> None:
    found = list(os.scandir(directory))
    if len(found) <= _KEPT_AT_MOST:
        return
    ended = [entry for entry in found if not is_held(Path(entry.path))]
    ended.sort(key=lambda entry: entry.stat().st_mtime_ns)
    for entry in ended[: len(found) - _KEPT_AT_MOST]:
        os.unlink(entry.path)
