"""Rows of the feed.

Numbers are given out before a transaction is over, so on PostgreSQL a lower one may become visible after a
higher one. A reader that went by them alone would step over it. So each row names its transaction too, and
is read only when every older transaction is over (`get_end`).
"""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from fermata.events.model import PRUNED_AFTER, Position
from fermata.kit.database import Connection, Statement, metadata
from fermata.kit.rows import instant_to_column, json_to_column

events = sa.Table(
    "account_events",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("transaction_id", sa.BigInteger, nullable=False),
    sa.Column("account_id", sa.Text, nullable=False),
    sa.Column("organization_id", sa.Text),
    sa.Column("session_id", sa.Text),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Index("ix_account_events_order", "transaction_id", "id"),
    # Numbers are never given out again, also when every row was pruned.
    sqlite_autoincrement=True,
)

#: One in this many appends looks for rows to prune, and prunes so many at most.
PRUNE_EVERY = 50
PRUNED_AT_ONCE = 200
LARGEST = 2**63 - 1

_given = {
    name: bindparam(name, type_=events.c[name].type)
    for name in ("account_id", "organization_id", "session_id", "kind", "data", "at")
}
_INSERT = {
    "sqlite": Statement(sa.insert(events).values(transaction_id=0, **_given).returning(events.c.id)),
    "postgresql": Statement(
        sa.insert(events)
        .values(transaction_id=sa.text("pg_current_xact_id()::text::bigint"), **_given)
        .returning(events.c.id)
    ),
}
_END = {
    "sqlite": Statement(sa.text("SELECT 0, seq FROM sqlite_sequence WHERE name = 'account_events'")),
    "postgresql": Statement(
        sa.text(f"SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1, {LARGEST}")
    ),
}
_UNSETTLED = Statement(
    sa.select(events.c.id)
    .where(events.c.transaction_id > bindparam("end", type_=sa.BigInteger))
    .limit(sa.literal(1, sa.BigInteger))
)
_old = (
    sa.select(events.c.id)
    .where(events.c.at < bindparam("before", type_=sa.BigInteger))
    .order_by(events.c.id)
    .limit(PRUNED_AT_ONCE)
    .with_for_update(skip_locked=True)
)
_PRUNE = Statement(sa.delete(events).where(events.c.id.in_(_old)))


def topic(account_id: str) -> str:
    return f"events:{account_id}"


def append(
    connection: Connection,
    kind: str,
    *,
    at: datetime,
    account_id: str,
    organization_id: str | None = None,
    session_id: str | None = None,
    data: dict[str, Any],
) -> None:
    """Tell an account, and the members of an organization, in the transaction of what is told.

    An event of a session reaches the members of the session's organization in any case; naming it here tells
    them at once, and also when the session is no more.
    """
    row = connection.row(
        _INSERT[connection.dialect_name],
        account_id=account_id,
        organization_id=organization_id,
        session_id=session_id,
        kind=kind,
        data=json_to_column(data),
        at=instant_to_column(at),
    )
    assert row is not None, "an insert returns its row"
    for reader in (account_id, organization_id):
        if reader is not None:
            connection.hint(topic(reader))
    if row[0] % PRUNE_EVERY == 0:
        connection.run(_PRUNE, before=instant_to_column(at - PRUNED_AFTER))


def get_end(connection: Connection) -> Position:
    """Up to here no event can appear any more that is not there now."""
    row = connection.row(_END[connection.dialect_name])
    return Position(row[0], row[1]) if row else Position(0, 0)


def has_unsettled(connection: Connection, end: Position) -> bool:
    """Whether there are events that wait for an older transaction to be over."""
    return connection.row(_UNSETTLED, end=end.transaction_id) is not None
