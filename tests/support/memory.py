"""A database in memory without an event loop, for machines that take thousands of steps."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from fermata.kit.database import metadata
from fermata.kit.sqlite import SqliteConnection


class MemoryRows:
    def __init__(self) -> None:
        self._raw = sqlite3.connect(":memory:", isolation_level=None)
        self._raw.execute("PRAGMA foreign_keys=ON")
        engine = sa.create_engine("sqlite://", creator=lambda: self._raw, poolclass=sa.StaticPool)
        metadata.create_all(engine)

    @contextmanager
    def transaction(self) -> Iterator[SqliteConnection]:
        self._raw.execute("BEGIN")
        try:
            yield SqliteConnection(self._raw)
        except BaseException:
            self._raw.execute("ROLLBACK")
            raise
        self._raw.execute("COMMIT")

    def close(self) -> None:
        self._raw.close()
