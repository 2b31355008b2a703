"""One holder at a time, over tasks and processes, by a lock on a file. A dead holder's lock is free."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from fermata.kit.errors import TimedOutError

_POLL_FIRST = 0.005
_POLL_MOST = 0.25


@asynccontextmanager
async def hold_lock(path: Path, *, time_limit_for: timedelta) -> AsyncIterator[int]:
    """Hold the lock on the file `path`, made if missing and never deleted (else two could hold it).

    Gives its descriptor: a child process that inherits it keeps the lock until it ends, also when this
    process dies. `TimedOutError` when the lock was not free in time.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        await _lock(descriptor, time_limit_for)
        yield descriptor
    finally:
        os.close(descriptor)


async def _lock(descriptor: int, time_limit_for: timedelta) -> None:
    clock = asyncio.get_running_loop().time
    deadline = clock() + time_limit_for.total_seconds()
    pause = _POLL_FIRST
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if clock() > deadline:
                raise TimedOutError("Somebody else has been using the repository for too long.") from None
            await asyncio.sleep(pause)
            pause = min(pause * 2, _POLL_MOST)
        else:
            return
