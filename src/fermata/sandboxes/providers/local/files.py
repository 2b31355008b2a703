"""Files of a sandbox, through descriptors that its first process opened. Such a descriptor is not trusted."""

import asyncio
import errno
import heapq
import os
import stat
from collections.abc import Sequence
from datetime import UTC, datetime

from fermata.kit.errors import FermataError, SandboxFailedError, SandboxPathError
from fermata.sandboxes.contract import DirectoryEntry, FileKind, FileStat
from fermata.sandboxes.providers.local.walls import WORKING_DIRECTORY

#: Reads and listings larger than this leave the event loop.
_INLINE_BYTES = 256 * 1024
_CHUNK = 4 * 1024 * 1024
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk's share is used up"}
_KINDS = {
    stat.S_IFREG: FileKind.FILE,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFLNK: FileKind.SYMLINK,
}


def encode(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def absolute(path: str) -> str:
    return path if path.startswith("/") else f"{WORKING_DIRECTORY}/{path}"


def path_bytes(path: str) -> bytes:
    if not path or "\0" in path:
        raise SandboxPathError("a path is not empty and holds no NUL character")
    encoded = encode(absolute(path))
    if len(encoded) >= 4096:
        raise SandboxPathError("a path has at most 4095 bytes")
    return encoded


def path_error(number: int, path: str) -> FermataError:
    if number in _FULL:
        return SandboxFailedError(f"{path!r} was not written: {_FULL[number]}")
    if number == errno.EFBIG:
        return SandboxFailedError(f"{path!r} was not written: larger than the largest file allowed here")
    if number in (errno.ENOMEM, errno.ENFILE, errno.EMFILE, errno.EIO, errno.EAGAIN):
        return SandboxFailedError(f"{path!r} could not be used: {os.strerror(number)}")
    if number == errno.EINVAL:
        return SandboxPathError(f"{path!r} is not a regular file")
    return SandboxPathError(f"{path!r}: {os.strerror(number)}")


async def read(descriptor: int, path: str, offset: int, limit: int) -> bytes:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise SandboxPathError(f"{path!r} is not a regular file")
    if offset < 0 or limit < 0:
        raise SandboxPathError("offset and limit are not negative")
    try:
        if min(limit, max(0, found.st_size - offset)) <= _INLINE_BYTES:
            return _read(descriptor, offset, limit)
        # A copy, so that a cancelled call cannot close the number under the thread's hands.
        return await asyncio.to_thread(_read_and_close, os.dup(descriptor), offset, limit)
    except OSError as error:
        raise path_error(error.errno or errno.EIO, path) from error


def _read_and_close(descriptor: int, offset: int, limit: int) -> bytes:
    try:
        return _read(descriptor, offset, limit)
    finally:
        os.close(descriptor)


def _read(descriptor: int, offset: int, limit: int) -> bytes:
    """Up to the limit: a file of /proc says it is empty, and any file may be growing."""
    pieces = []
    while limit > 0:
        piece = os.pread(descriptor, min(limit, _CHUNK), offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        limit -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def entries(descriptor: int, limit: int) -> list[DirectoryEntry]:
    if os.fstat(descriptor).st_size <= _INLINE_BYTES:
        return _entries(descriptor, limit)
    return await asyncio.to_thread(_entries_and_close, os.dup(descriptor), limit)


def _entries_and_close(descriptor: int, limit: int) -> list[DirectoryEntry]:
    try:
        return _entries(descriptor, limit)
    finally:
        os.close(descriptor)


def _entries(descriptor: int, limit: int) -> list[DirectoryEntry]:
    with os.scandir(descriptor) as found:
        first = heapq.nsmallest(max(0, limit), found, key=lambda entry: entry.name)
        return [DirectoryEntry(entry.name, _kind_of(entry)) for entry in first]


def _kind_of(entry: os.DirEntry[str]) -> FileKind:
    if entry.is_symlink():
        return FileKind.SYMLINK
    if entry.is_dir(follow_symlinks=False):
        return FileKind.DIRECTORY
    return FileKind.FILE if entry.is_file(follow_symlinks=False) else FileKind.OTHER


def to_stat(values: Sequence[int]) -> FileStat:
    mode, size, seconds, nanoseconds = values[:4]
    try:
        modified_at = datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanoseconds // 1000)
    except (ValueError, OverflowError, OSError):
        modified_at = datetime.fromtimestamp(0, UTC)  # code inside may set any time, also one no calendar has
    return FileStat(
        kind=_KINDS.get(stat.S_IFMT(mode), FileKind.OTHER),
        size=size,
        modified_at=modified_at,
        mode=stat.S_IMODE(mode),
    )
