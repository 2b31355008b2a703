"""How rows are read and written: Core statements, compiled once, on SQLite or PostgreSQL.

Work on the database is a plain function of a `Connection`, called by `Database.read` or `Database.write`.
A write is one transaction, committed when `write` returns; on an exception nothing of it remains. The
function may run in another thread (SQLite) or be run again after a deadlock (PostgreSQL), so it must do
nothing but work on rows, and may not await.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from fermata.kit.hints import Hints

T = TypeVar("T")

#: All tables of all rooms. Migrations make them; a test compares the two.
metadata = sa.MetaData()

Row = Sequence[Any]


class Statement:
    """A Core statement that is compiled once per dialect. Parameters are given by name.

    An insert names every column of its table. IN needs `is_any`: a list of unknown length has no fixed text.
    """

    def __init__(self, source: sa.sql.expression.ClauseElement) -> None:
        self._source = source
        self._compiled: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {}

    def for_dialect(self, dialect: sa.Dialect, params: dict[str, Any]) -> tuple[str, tuple[Any, ...]]:
        """SQL text and its positional values."""
        found = self._compiled.get(dialect.name)
        if found is None:
            compiled = self._source.compile(dialect=dialect)
            order = tuple(getattr(compiled, "positiontup", None) or ())
            found = self._compiled[dialect.name] = (str(compiled), order, dict(compiled.params))
        sql, order, defaults = found
        return sql, tuple([params[name] if name in params else defaults[name] for name in order])


def is_any(column: sa.ColumnElement[Any], values: Iterable[str]) -> sa.ColumnElement[bool]:
    """`column` is one of these fixed words."""
    return sa.or_(*(column == str(value) for value in values))


class Connection(Protocol):
    """An open transaction (in `write`) or a consistent enough look (in `read`)."""

    @property
    def dialect_name(self) -> str: ...

    def row(self, statement: Statement, /, **params: Any) -> Row | None:
        """The first row, or None."""
        ...

    def rows(self, statement: Statement, /, **params: Any) -> Sequence[Row]: ...

    def run(self, statement: Statement, /, **params: Any) -> int:
        """Execute and return the number of rows that were changed."""
        ...

    def hint(self, topic: str) -> None:
        """Publish a hint once this transaction has been committed, here and in other processes."""
        ...


class Database(Protocol):
    hints: Hints

    @property
    def dialect_name(self) -> str: ...

    async def read(self, work: Callable[[Connection], T]) -> T: ...

    async def write(self, work: Callable[[Connection], T]) -> T: ...

    async def close(self) -> None: ...


def insert_or_ignore(table: sa.Table) -> Statement:
    """Insert a row unless its key is taken; `run` returns 0 then. Both dialects read this construct."""
    return Statement(postgresql.insert(table).on_conflict_do_nothing())


def upsert(table: sa.Table, *, key: Sequence[str], values: Sequence[str]) -> Statement:
    """Insert a row, or set `values` on the one with the same `key`."""
    statement = postgresql.insert(table)
    return Statement(
        statement.on_conflict_do_update(
            index_elements=list(key), set_={name: statement.excluded[name] for name in values}
        )
    )


_PING = Statement(sa.select(sa.literal(1)))


def ping(connection: Connection) -> None:
    """Work that only proves that the database answers."""
    connection.row(_PING)
