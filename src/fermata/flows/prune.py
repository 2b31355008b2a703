"""Forget runs and streams that ended long ago. Sessions, chats and messages are kept."""

from datetime import datetime, timedelta
from typing import Any

import structlog

from fermata.kit.database import Connection
from fermata.runs import store as runs
from fermata.runs.contract import Later, RunHandle
from fermata.runs.model import RetryPolicy, Run
from fermata.stream import store as stream

log = structlog.get_logger()

KIND = "prune"
#: The one run of this kind has one key.
KEY = "all"
EVERY = timedelta(hours=1)
#: Rows of each table that one transaction deletes: others wait for it no longer than for any write.
AT_ONCE = 100


class Prune:
    """Handler of one run that comes back every hour."""

    kind = KIND
    at_once = 1
    policy = RetryPolicy(attempts=100)

    def __init__(self, *, keep_for: timedelta) -> None:
        self._keep_for = keep_for

    async def work(self, handle: RunHandle) -> Later:
        before = handle.now() - self._keep_for
        forgotten = 0
        while count := await handle.write(lambda connection: _prune(connection, before)):
            forgotten += count
        if forgotten:
            log.info("pruned", rows=forgotten, before=before.isoformat())
        return Later(handle.now() + EVERY)

    def give_up(self, connection: Connection, run: Run, error: dict[str, Any], now: datetime) -> None:
        """The next start of a server begins a new one."""


def _prune(connection: Connection, before: datetime) -> int:
    return runs.prune(connection, before, AT_ONCE) + stream.prune(connection, before, AT_ONCE)
