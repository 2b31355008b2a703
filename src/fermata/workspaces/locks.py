"""One holder at a time, over tasks and processes, by a lock on a file. A dead holder's lock is free."""

import asyncio
import fcntl
import os
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from fermata.kit.errors import TimedOutError

_POLL_FIRST = 0.01
_POLL_MOST = 0.5


class FileLocks:
    """Locks on files that are made when needed and never deleted (a deleted one could be held twice)."""

    def __init__(self) -> None:
        # Tasks of this process queue here, in order; only the first of them polls the file.
        self._queues: weakref.WeakValueDictionary[Path, asyncio.Lock] = weakref.WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, path: Path, *, time_limit_for: timedelta) -> AsyncIterator[int]:
        """Hold the lock on `path`, whose directory exists. Gives the descriptor: a child process that
        inherits it keeps the lock until it ends, also when this process dies. `TimedOutError`."""
        queue = self._queues.setdefault(path, asyncio.Lock())
        try:
            async with asyncio.timeout(time_limit_for.total_seconds()):
                await queue.acquire()
        except TimeoutError as error:
            raise TimedOutError("Somebody else has been using the repository for too long.") from error
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                await _lock(descriptor, time_limit_for)
                yield descriptor
            finally:
                os.close(descriptor)
        finally:
            queue.release()


async def _lock(descriptor: int, time_limit_for: timedelta) -> None:
    pause = _POLL_FIRST
    deadline = asyncio.get_running_loop().time() + time_limit_for.total_seconds()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if asyncio.get_running_loop().time() > deadline:
                raise TimedOutError("Somebody else has been using the repository for too long.") from None
            await asyncio.sleep(pause)
            pause = min(pause * 2, _POLL_MOST)
        else:
            return
