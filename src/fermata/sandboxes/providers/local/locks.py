"""File locks that tasks of one process and other processes share. The kernel frees them with their holder."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

from fermata.kit.errors import SandboxGoneError

_FIRST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.02


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """A descriptor that holds the lock until it is closed, or None while another holds it.

    Raises `FileNotFoundError` when the directory of the lock is gone.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_held(path: Path) -> bool:
    """Whether anybody holds the lock; a lock file that is not there is not held."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.asynccontextmanager
async def holding(path: Path, *, shared: bool = False) -> AsyncIterator[None]:
    """Hold the lock on a file that stays where it is, waiting as long as it takes.

    A file that was moved away with its directory while we waited is another thing's lock:
    `SandboxGoneError`.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            descriptor = try_lock(path, shared=shared)
        except (FileNotFoundError, NotADirectoryError):
            raise SandboxGoneError(f"there is no sandbox {path.parent.name!r}") from None
        if descriptor is not None:
            break
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
    try:
        if not _is_at(descriptor, path):
            raise SandboxGoneError(f"there is no sandbox {path.parent.name!r}")
        yield
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(os.fstat(descriptor), there)
