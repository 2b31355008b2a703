"""SQLite, embedded: reads on the event loop's thread, writes through one thread with group commit.

A keyed read takes microseconds, less than a hop to a thread. Writers wait for each other anyway, so they
queue here, and those that wait together share one commit and one fsync (`synchronous=FULL`: a write that
was answered survives a power cut). Each transaction of a group has its own savepoint.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.dialects import sqlite

from fermata.kit.database import Row, Statement
from fermata.kit.errors import UnavailableError
from fermata.kit.hints import Hints

T = TypeVar("T")

#: Transactions that share a commit at most: bounds how long the first of them waits.
GROUP = 64

_DIALECT = sqlite.dialect(paramstyle="qmark")


class SqliteConnection:
    dialect_name = "sqlite"

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._raw = raw
        self.topics: list[str] = []

    def row(self, statement: Statement, /, **params: Any) -> Row | None:
        sql, values = statement.for_dialect(_DIALECT, params)
        found: Row | None = self._raw.execute(sql, values).fetchone()
        return found

    def rows(self, statement: Statement, /, **params: Any) -> Sequence[Row]:
        sql, values = statement.for_dialect(_DIALECT, params)
        return self._raw.execute(sql, values).fetchall()

    def run(self, statement: Statement, /, **params: Any) -> int:
        sql, values = statement.for_dialect(_DIALECT, params)
        return self._raw.execute(sql, values).rowcount

    def hint(self, topic: str) -> None:
        self.topics.append(topic)


class _Transaction:
    """Work that waits for the writer thread, and the future of whoever asked for it."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.result: Any = None
        self.error: BaseException | None = None
        self.topics: list[str] = []

    def settle(self, hints: Hints) -> None:
        for topic in self.topics:
            hints.publish(topic)
        if self.future.done():  # the caller was cancelled; the commit stands
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def _connect(path: Path) -> sqlite3.Connection:
    raw = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=512)
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "busy_timeout=10000",
        "temp_store=MEMORY",
        "cache_size=-32768",
        # Checkpoints stop the writer: fewer and larger ones. 16 MiB of write-ahead log.
        "wal_autocheckpoint=4000",
    ):
        raw.execute(f"PRAGMA {pragma}")
    return raw


class SqliteDatabase:
    dialect_name = "sqlite"

    def __init__(self, path: Path) -> None:
        self.hints = Hints()
        self._raw_reader = _connect(path)
        self._reader = SqliteConnection(self._raw_reader)
        self._queue: queue.SimpleQueue[_Transaction | None] = queue.SimpleQueue()
        self._closed = False
        self._writer = threading.Thread(target=self._write_all, args=(_connect(path),), name="sqlite-writer")
        self._writer.start()

    async def read(self, work: Callable[[Any], T]) -> T:
        return work(self._reader)

    async def write(self, work: Callable[[Any], T]) -> T:
        if self._closed:
            raise UnavailableError("The server is shutting down.")
        transaction = _Transaction(work)
        self._queue.put(transaction)
        result: T = await transaction.future
        return result

    async def close(self) -> None:
        """Finish what is queued, then close. Twice is once."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._writer.join)
        self._raw_reader.close()

    def _write_all(self, raw: sqlite3.Connection) -> None:
        running = True
        while running:
            group: list[_Transaction] = []
            taken = self._queue.get()
            while True:
                if taken is None:
                    running = False
                    break
                group.append(taken)
                if len(group) == GROUP or self._queue.empty():
                    break
                taken = self._queue.get()
            if group:
                self._write_group(raw, group)
        raw.close()

    def _write_group(self, raw: sqlite3.Connection, group: list[_Transaction]) -> None:
        try:
            raw.execute("BEGIN IMMEDIATE")
            for transaction in group:
                self._write_one(raw, transaction, alone=len(group) == 1)
            raw.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - handed to everyone who waits
            if raw.in_transaction:
                raw.execute("ROLLBACK")
            for transaction in group:
                transaction.error = transaction.error or error
                transaction.topics.clear()
        by_loop: dict[asyncio.AbstractEventLoop, list[_Transaction]] = {}
        for transaction in group:
            by_loop.setdefault(transaction.loop, []).append(transaction)
        for loop, settled in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._settle, settled)

    def _settle(self, group: list[_Transaction]) -> None:
        for transaction in group:
            transaction.settle(self.hints)

    @staticmethod
    def _write_one(raw: sqlite3.Connection, transaction: _Transaction, *, alone: bool) -> None:
        connection = SqliteConnection(raw)
        if alone:
            transaction.result = transaction.work(connection)
            transaction.topics = connection.topics
            return
        raw.execute("SAVEPOINT one")
        try:
            transaction.result = transaction.work(connection)
            transaction.topics = connection.topics
        except BaseException as error:  # noqa: BLE001 - handed to the one who waits
            raw.execute("ROLLBACK TO one")
            transaction.error = error
        finally:
            raw.execute("RELEASE one")
