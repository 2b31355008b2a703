"""Answers kept by `Idempotency-Key`, so that a request sent twice is done once."""

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from fermata.kit.database import Connection, Statement, insert_or_ignore, metadata
from fermata.kit.errors import ConflictError
from fermata.kit.rows import instant_to_column

KEPT_FOR = timedelta(hours=24)
#: Expired rows that one keyed write clears away at most.
PRUNED_AT_ONCE = 20

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("account_id", sa.Text, sa.ForeignKey("accounts.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    # Of method, path and body: the same key with something else is refused.
    sa.Column("request_hash", sa.Text, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Index("ix_idempotency_keys_created", "created_at"),
)


def _big(name: str) -> sa.BindParameter[Any]:
    return bindparam(name, type_=sa.BigInteger)


_FIND = Statement(
    sa.select(idempotency_keys.c.request_hash, idempotency_keys.c.answer).where(
        idempotency_keys.c.account_id == bindparam("account"),
        idempotency_keys.c.key == bindparam("key"),
        idempotency_keys.c.created_at > _big("expired_at"),
    )
)
_FORGET = Statement(
    sa.delete(idempotency_keys).where(
        idempotency_keys.c.account_id == bindparam("account"),
        idempotency_keys.c.key == bindparam("key"),
        idempotency_keys.c.created_at <= _big("expired_at"),
    )
)
_KEEP = insert_or_ignore(idempotency_keys)
_expired = (
    sa.select(idempotency_keys.c.account_id, idempotency_keys.c.key)
    .where(idempotency_keys.c.created_at <= _big("expired_at"))
    .order_by(idempotency_keys.c.created_at)
    .limit(PRUNED_AT_ONCE)
    .with_for_update(skip_locked=True)
)
_PRUNE = Statement(
    sa.delete(idempotency_keys).where(
        sa.tuple_(idempotency_keys.c.account_id, idempotency_keys.c.key).in_(_expired)
    )
)


def find_answer(
    connection: Connection, account_id: str, key: str, request_hash: str, now: datetime
) -> str | None:
    """The answer to the same request, if one was given in the last 24 hours.

    `ConflictError` when the key was used for another request.
    """
    row = connection.row(_FIND, account=account_id, key=key, expired_at=instant_to_column(now - KEPT_FOR))
    if row is None:
        return None
    if row[0] != request_hash:
        raise ConflictError("This Idempotency-Key was used for a different request")
    return str(row[1])


def keep_answer(
    connection: Connection, account_id: str, key: str, request_hash: str, answer: str, now: datetime
) -> bool:
    """Keep the answer of a request that this transaction carries out.

    False when another transaction was faster: then write nothing more, and ask `find_answer` again.
    """
    expired_at = instant_to_column(now - KEPT_FOR)
    connection.run(_FORGET, account=account_id, key=key, expired_at=expired_at)
    connection.run(_PRUNE, expired_at=expired_at)
    kept = connection.run(
        _KEEP,
        account_id=account_id,
        key=key,
        request_hash=request_hash,
        answer=answer,
        created_at=instant_to_column(now),
    )
    return kept == 1
