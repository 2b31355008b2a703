"""Rows of streams. Chunks that were appended together share a row."""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import bindparam

from fermata.kit.database import Connection, Statement, insert_or_ignore, metadata
from fermata.kit.errors import ConflictError, NotFoundError
from fermata.kit.rows import instant_to_column
from fermata.stream.model import Batch, Page, StreamState

streams = sa.Table(
    "streams",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("length", sa.BigInteger, nullable=False),
    sa.Column("closed", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

chunks = sa.Table(
    "stream_chunks",
    metadata,
    sa.Column("stream_id", sa.Text, sa.ForeignKey("streams.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("first", sa.BigInteger, primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Column("lines", sa.Text, nullable=False),
)

#: Rows read at a time: bounds what one viewer holds in memory.
PAGE = 64

_CREATE = insert_or_ignore(streams)
_STATE = Statement(sa.select(streams.c.length, streams.c.closed).where(streams.c.id == bindparam("id")))
_GROW = Statement(
    sa.update(streams)
    .values(length=streams.c.length + bindparam("more", type_=sa.BigInteger))
    .where(streams.c.id == bindparam("key"), streams.c.closed == sa.false())
    .returning(streams.c.length)
)
_INSERT = Statement(sa.insert(chunks))
_CLOSE = Statement(sa.update(streams).values(closed=True).where(streams.c.id == bindparam("key")))
_PRUNE = Statement(
    sa.delete(streams).where(
        streams.c.id.in_(
            sa.select(streams.c.id)
            .where(streams.c.closed, streams.c.created_at < bindparam("before", type_=sa.BigInteger))
            .order_by(streams.c.id)
            .limit(bindparam("count", type_=sa.BigInteger))
            .scalar_subquery()
        )
    )
)
_older = chunks.alias("older")
_first = (
    sa.select(sa.func.coalesce(sa.func.max(_older.c.first), 0))
    .where(_older.c.stream_id == bindparam("id"), _older.c.first <= bindparam("at", type_=sa.BigInteger))
    .scalar_subquery()
)
#: Chunks and state in one statement, so that both are of the same moment.
_PAGE = Statement(
    sa.select(streams.c.length, streams.c.closed, chunks.c.first, chunks.c.count, chunks.c.lines)
    .select_from(
        streams.outerjoin(chunks, sa.and_(chunks.c.stream_id == streams.c.id, chunks.c.first >= _first))
    )
    .where(streams.c.id == bindparam("id"))
    .order_by(chunks.c.first)
    .limit(PAGE)
)
_READ_ALL = Statement(
    sa.select(chunks.c.lines).where(chunks.c.stream_id == bindparam("id")).order_by(chunks.c.first)
)


def topic(stream_id: str) -> str:
    return f"stream:{stream_id}"


def create(connection: Connection, stream_id: str, at: datetime) -> None:
    """Make an empty stream. One that exists is left as it is."""
    connection.run(_CREATE, id=stream_id, length=0, closed=False, created_at=instant_to_column(at))


def append(connection: Connection, stream_id: str, lines: Sequence[str]) -> int:
    """Add chunks and return the index of the first. `ConflictError` on a closed stream."""
    row = connection.row(_GROW, key=stream_id, more=len(lines))
    if row is None:
        raise ConflictError("The stream is closed.")
    first = int(row[0]) - len(lines)
    connection.run(_INSERT, stream_id=stream_id, first=first, count=len(lines), lines="\n".join(lines))
    connection.hint(topic(stream_id))
    return first


def close(connection: Connection, stream_id: str) -> None:
    connection.run(_CLOSE, key=stream_id)
    connection.hint(topic(stream_id))


def prune(connection: Connection, before: datetime, count: int) -> int:
    """Forget up to `count` closed streams that were created before then. How many it were."""
    return connection.run(_PRUNE, before=instant_to_column(before), count=count)


def find_state(connection: Connection, stream_id: str) -> StreamState | None:
    row = connection.row(_STATE, id=stream_id)
    return StreamState(length=row[0], closed=bool(row[1])) if row else None


def get_state(connection: Connection, stream_id: str) -> StreamState:
    state = find_state(connection, stream_id)
    if state is None:
        raise NotFoundError("Stream not found")
    return state


def find_page(connection: Connection, stream_id: str, start: int) -> Page | None:
    """Chunks from index `start`, at most `PAGE` rows of them."""
    rows = connection.rows(_PAGE, id=stream_id, at=start)
    if not rows:
        return None
    found: list[str] = []
    for _, _, first, count, lines in rows:
        if first is not None and first + count > start:
            found += lines.split("\n")[max(start - first, 0) :]
    return Page(Batch(start, tuple(found)), StreamState(length=rows[0][0], closed=bool(rows[0][1])))


def read_all(connection: Connection, stream_id: str) -> list[str]:
    """Every chunk so far, for whoever continues the stream."""
    return [line for (lines,) in connection.rows(_READ_ALL, id=stream_id) for line in lines.split("\n")]
