"""Rows of sandboxes and their history. Every change of state goes through `move`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from fermata.events import store as events
from fermata.kit.database import Connection, Statement, insert_or_ignore, metadata
from fermata.kit.errors import ConflictError, NotFoundError, VersionMismatchError
from fermata.kit.rows import Shape
from fermata.sandboxes.model import LifecycleState, Move, SandboxRecord, may_move

sandboxes = sa.Table(
    "sandboxes",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("session_id", sa.Text, unique=True),
    sa.Column("account_id", sa.Text, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("has_disk", sa.Boolean, nullable=False),
    sa.Column("repository", sa.Text),
    sa.Column("branch", sa.Text),
    sa.Column("is_new_branch", sa.Boolean, nullable=False),
    sa.Column("run_id", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("last_activity_at", sa.BigInteger),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("hibernate_after", sa.BigInteger),
    sa.Column("snapshot_created_at", sa.BigInteger),
    sa.Column("snapshot_size_bytes", sa.BigInteger),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Index("ix_sandboxes_expires", "state", "expires_at"),
)

moves = sa.Table(
    "sandbox_moves",
    metadata,
    sa.Column("sandbox_id", sa.Text, sa.ForeignKey("sandboxes.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("from_state", sa.Text),
    sa.Column("to_state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

SANDBOX = Shape(SandboxRecord, sandboxes)
MOVE = Shape(Move, moves)

#: Rows that are looked at together.
PAGE = 500

_INSERT = insert_or_ignore(sandboxes)
_INSERT_MOVE = Statement(sa.insert(moves))
_GET = Statement(sa.select(*SANDBOX.columns).where(sandboxes.c.id == bindparam("id")))
_FOR_SESSION = Statement(sa.select(*SANDBOX.columns).where(sandboxes.c.session_id == bindparam("session_id")))
_HISTORY = Statement(
    sa.select(*MOVE.columns).where(moves.c.sandbox_id == bindparam("id")).order_by(moves.c.version)
)
_ACTIVE = Statement(
    sa.select(*SANDBOX.columns)
    .where(
        sandboxes.c.provider == bindparam("provider"),
        sandboxes.c.state == LifecycleState.ACTIVE.value,
        sandboxes.c.id > bindparam("after"),
    )
    .order_by(sandboxes.c.id)
    .limit(PAGE)
)
_IDS = Statement(sa.select(sandboxes.c.id).where(sandboxes.c.provider == bindparam("provider")))
_DELETE = Statement(sa.delete(sandboxes).where(sandboxes.c.id == bindparam("id")))
_DOOM = Statement(sa.update(sandboxes).values(session_id=None).where(sandboxes.c.id == bindparam("key")))
_TOUCH = Statement(
    sa.update(sandboxes)
    .values(
        last_activity_at=bindparam("to_activity", type_=sa.BigInteger),
        hibernate_after=bindparam("to_hibernate", type_=sa.BigInteger),
    )
    .where(sandboxes.c.id == bindparam("key"), sandboxes.c.state == LifecycleState.ACTIVE.value)
)
#: Everything a move may change besides the state; a move writes all of them.
_EXTEND = Statement(
    sa.update(sandboxes)
    .values(expires_at=bindparam("to_expires", type_=sa.BigInteger))
    .where(
        sandboxes.c.id == bindparam("key"),
        sandboxes.c.state == LifecycleState.ACTIVE.value,
        sandboxes.c.expires_at < bindparam("to_expires", type_=sa.BigInteger),
    )
)
_CHANGEABLE = (
    "has_disk",
    "run_id",
    "error",
    "last_activity_at",
    "expires_at",
    "hibernate_after",
    "snapshot_created_at",
    "branch",
    "repository",
)
_MOVE = Statement(
    sa.update(sandboxes)
    .values(
        state=bindparam("to_state", type_=sa.Text),
        version=sandboxes.c.version + 1,
        updated_at=bindparam("to_updated_at", type_=sa.BigInteger),
        **{name: bindparam(f"to_{name}", type_=sandboxes.c[name].type) for name in _CHANGEABLE},
    )
    .where(
        sandboxes.c.id == bindparam("key"),
        sandboxes.c.version == bindparam("seen_version"),
        sandboxes.c.state == bindparam("seen_state"),
    )
)


def insert_new(connection: Connection, record: SandboxRecord, *, actor: str, reason: str = "created") -> bool:
    """Write a new sandbox and its first row of history. False, and nothing written, when the id is taken."""
    if connection.run(_INSERT, **SANDBOX.write(record)) == 0:
        return False
    first = Move(record.id, record.version, None, record.state, reason, actor, record.created_at)
    connection.run(_INSERT_MOVE, **MOVE.write(first))
    return True


def find(connection: Connection, sandbox_id: str) -> SandboxRecord | None:
    row = connection.row(_GET, id=sandbox_id)
    return SANDBOX.read(row) if row else None


def get(connection: Connection, sandbox_id: str) -> SandboxRecord:
    record = find(connection, sandbox_id)
    if record is None:
        raise NotFoundError("Sandbox not found")
    return record


def find_for_session(connection: Connection, session_id: str) -> SandboxRecord | None:
    row = connection.row(_FOR_SESSION, session_id=session_id)
    return SANDBOX.read(row) if row else None


def list_active(connection: Connection, provider: str, after: str) -> Sequence[SandboxRecord]:
    """A page of running sandboxes by id, beginning after the id `after`."""
    return [SANDBOX.read(row) for row in connection.rows(_ACTIVE, provider=provider, after=after)]


def list_ids(connection: Connection, provider: str) -> set[str]:
    return {row[0] for row in connection.rows(_IDS, provider=provider)}


def list_moves(connection: Connection, sandbox_id: str) -> Sequence[Move]:
    return [MOVE.read(row) for row in connection.rows(_HISTORY, id=sandbox_id)]


def move(
    connection: Connection,
    seen: SandboxRecord,
    to_state: LifecycleState,
    *,
    reason: str,
    actor: str,
    at: datetime,
    **changes: Any,
) -> SandboxRecord:
    """Move the sandbox that the caller has seen as `seen`; write the history and tell, in this transaction.

    `changes` are further fields of the record. Raises `VersionMismatchError` when somebody else has moved it
    since, and `ConflictError` when the table of moves does not allow it.
    """
    if not may_move(seen.state, to_state):
        raise ConflictError(f"A sandbox that is {seen.state} cannot become {to_state}.")
    values = SANDBOX.column_values(
        {name: changes.pop(name, getattr(seen, name)) for name in _CHANGEABLE} | {"updated_at": at}
    )
    if changes:
        raise TypeError(f"a move cannot change {', '.join(changes)}")
    moved = connection.run(
        _MOVE,
        key=seen.id,
        seen_version=seen.version,
        seen_state=str(seen.state),
        to_state=str(to_state),
        **{f"to_{name}": value for name, value in values.items()},
    )
    if moved == 0:
        raise VersionMismatchError("The sandbox was changed by someone else meanwhile.")
    step = Move(seen.id, seen.version + 1, seen.state, to_state, reason, actor, at)
    connection.run(_INSERT_MOVE, **MOVE.write(step))
    connection.hint(f"sandbox:{seen.id}")
    events.append(
        connection,
        "sandbox.moved",
        at=at,
        account_id=seen.account_id,
        session_id=seen.session_id,
        data={
            "sessionId": seen.session_id,
            "sandboxId": seen.id,
            "state": to_state.value,
            "version": step.version,
            "reason": reason,
        },
    )
    return get(connection, seen.id)


def touch(connection: Connection, sandbox_id: str, *, at: datetime, hibernate_after: datetime) -> None:
    """Note activity on a running sandbox. No move: the version stays."""
    values = SANDBOX.column_values({"last_activity_at": at, "hibernate_after": hibernate_after})
    connection.run(
        _TOUCH,
        key=sandbox_id,
        to_activity=values["last_activity_at"],
        to_hibernate=values["hibernate_after"],
    )


def extend(connection: Connection, sandbox_id: str, expires_at: datetime) -> None:
    """Let a running sandbox live until then at least. No move: the version stays."""
    connection.run(
        _EXTEND, key=sandbox_id, to_expires=SANDBOX.column_values({"expires_at": expires_at})["expires_at"]
    )


def mark_doomed(connection: Connection, sandbox_id: str) -> None:
    """Part it from its session, so that nothing finds it but the run that destroys it."""
    connection.run(_DOOM, key=sandbox_id)


def delete(connection: Connection, sandbox_id: str) -> None:
    """Forget a sandbox whose machine and disk are gone, with its history."""
    connection.run(_DELETE, id=sandbox_id)
