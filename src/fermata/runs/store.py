"""Rows of runs, steps and effects. What a run writes proves its fence in the same transaction."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy import bindparam

from fermata.kit.database import Connection, Statement, insert_or_ignore, is_any, metadata
from fermata.kit.errors import InternalError, LeaseLostError
from fermata.kit.rows import Shape, instant_to_column, json_to_column
from fermata.runs.model import EffectRecord, Run, RunState, Step

_LIVE = sa.text("state IN ('queued', 'running')")

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("input", sa.Text, nullable=False),
    sa.Column("result", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("due_at", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.BigInteger, nullable=False),
    sa.Column("lease_owner", sa.Text),
    sa.Column("lease_until", sa.BigInteger),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("stop_requested_at", sa.BigInteger),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("ended_at", sa.BigInteger),
    sa.Index("uq_runs_live", "kind", "key", unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE),
    sa.Index("ix_runs_due", "due_at", sqlite_where=_LIVE, postgresql_where=_LIVE),
    sa.Index("ix_runs_owner", "lease_owner", sqlite_where=_LIVE, postgresql_where=_LIVE),
)

steps = sa.Table(
    "run_steps",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

effects = sa.Table(
    "run_effects",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("input", sa.Text, nullable=False),
    sa.Column("result", sa.Text),
    sa.Column("intended_at", sa.BigInteger, nullable=False),
    sa.Column("ended_at", sa.BigInteger),
)

RUN = Shape(Run, runs)
STEP = Shape(Step, steps)
EFFECT = Shape(EffectRecord, effects)

_live = is_any(runs.c.state, (RunState.QUEUED, RunState.RUNNING))
_mine = sa.and_(
    runs.c.id == bindparam("key_id"),
    runs.c.fence == bindparam("key_fence"),
    runs.c.state == RunState.RUNNING.value,
)


def _big(name: str) -> sa.BindParameter[Any]:
    return bindparam(name, type_=sa.BigInteger)


def _word(name: str) -> sa.BindParameter[Any]:
    return bindparam(name, type_=sa.Text)


_INSERT = insert_or_ignore(runs)
_GET = Statement(sa.select(*RUN.columns).where(runs.c.id == bindparam("id")))
_live_of = sa.select(*RUN.columns).where(
    runs.c.kind == bindparam("kind"), runs.c.key == bindparam("key"), _live
)
_GET_LIVE = Statement(_live_of)
_LOCK_LIVE = Statement(_live_of.with_for_update())
_DUE = Statement(
    sa.select(*RUN.columns)
    .where(_live, runs.c.due_at <= _big("now"), runs.c.kind == bindparam("kind"))
    .order_by(runs.c.due_at)
    .limit(_big("count"))
    .with_for_update(skip_locked=True)
)
_NEXT_DUE = Statement(sa.select(sa.func.min(runs.c.due_at)).where(_live))
_CLAIM = Statement(
    sa.update(runs)
    .values(
        state=RunState.RUNNING.value,
        lease_owner=_word("to_owner"),
        lease_until=_big("to_until"),
        due_at=_big("to_until"),
        fence=runs.c.fence + 1,
        attempts=runs.c.attempts + 1,
    )
    .where(runs.c.id == bindparam("key_id"), runs.c.fence == bindparam("key_fence"), _live)
)
_RENEW = Statement(
    sa.update(runs)
    .values(lease_until=_big("to_until"), due_at=_big("to_until"))
    .where(_mine)
    .returning(runs.c.stop_requested_at)
)
_EXPIRE_ALL = Statement(
    sa.update(runs).values(due_at=_big("to_due")).where(runs.c.state == RunState.RUNNING.value)
)
_GUARD = Statement(sa.select(runs.c.id).where(_mine).with_for_update())
_END = Statement(
    sa.update(runs)
    .values(
        state=_word("to_state"),
        result=_word("to_result"),
        error=_word("to_error"),
        ended_at=_big("to_ended"),
        lease_owner=None,
        lease_until=None,
    )
    .where(_mine)
)
_RELEASE = Statement(
    sa.update(runs)
    .values(
        state=RunState.QUEUED.value,
        due_at=_big("to_due"),
        error=_word("to_error"),
        attempts=_big("to_attempts"),
        lease_owner=None,
        lease_until=None,
    )
    .where(_mine)
)
_REQUEST_STOP = Statement(
    sa.update(runs).values(stop_requested_at=_big("to_stop")).where(runs.c.id == bindparam("key_id"), _live)
)
_CANCEL_QUEUED = Statement(
    sa.update(runs)
    .values(state=RunState.CANCELLED.value, ended_at=_big("to_ended"))
    .where(runs.c.id == bindparam("key_id"), runs.c.state == RunState.QUEUED.value)
)
_PRUNE = Statement(
    sa.delete(runs).where(
        runs.c.id.in_(
            sa.select(runs.c.id)
            .where(runs.c.ended_at < _big("before"))
            .order_by(runs.c.id)
            .limit(_big("count"))
            .scalar_subquery()
        )
    )
)
_INSERT_STEP = Statement(sa.insert(steps))
_STEPS = Statement(
    sa.select(*STEP.columns).where(steps.c.run_id == bindparam("run_id")).order_by(steps.c.number)
)
_INSERT_EFFECT = insert_or_ignore(effects)
_EFFECTS = Statement(sa.select(*EFFECT.columns).where(effects.c.run_id == bindparam("run_id")))
_END_EFFECT = Statement(
    sa.update(effects)
    .values(result=_word("to_result"), ended_at=_big("to_ended"))
    .where(effects.c.run_id == bindparam("key_run"), effects.c.id == bindparam("key_id"))
)


def insert(connection: Connection, run: Run) -> Run:
    """Accept a run, or find the live one of the same kind and key. The answer says which: compare the ids.

    One that is found does not end before this transaction: what a handler reads in the transaction in which
    it ends its run (`RunHandle.end`) includes what is written here.
    """
    while connection.run(_INSERT, **RUN.write(run)) == 0:
        found = connection.row(_LOCK_LIVE, kind=run.kind, key=run.key)
        if found is not None:
            return RUN.read(found)
        if find(connection, run.id) is not None:
            raise InternalError("A run with this id has been accepted before.")
        # It ended between the two statements (PostgreSQL only): the place is free now.
    connection.hint("runs")
    return run


def find(connection: Connection, run_id: str) -> Run | None:
    row = connection.row(_GET, id=run_id)
    return RUN.read(row) if row else None


def find_live(connection: Connection, kind: str, key: str) -> Run | None:
    row = connection.row(_GET_LIVE, kind=kind, key=key)
    return RUN.read(row) if row else None


def claim_due(
    connection: Connection, *, kind: str, owner: str, now: datetime, lease: timedelta, count: int
) -> list[Run]:
    """Take up to `count` runs whose time has come, or whose worker's lease has run out."""
    until = instant_to_column(now + lease)
    claimed = []
    for row in connection.rows(_DUE, now=instant_to_column(now), kind=kind, count=count):
        run = RUN.read(row)
        if connection.run(_CLAIM, key_id=run.id, key_fence=run.fence, to_owner=owner, to_until=until):
            claimed.append(
                replace(
                    run,
                    state=RunState.RUNNING,
                    lease_owner=owner,
                    lease_until=now + lease,
                    fence=run.fence + 1,
                    attempts=run.attempts + 1,
                )
            )
    return claimed


def next_due(connection: Connection) -> int | None:
    """When the next run is due or may be taken over, in microseconds since 1970."""
    row = connection.row(_NEXT_DUE)
    return row[0] if row else None


def renew(connection: Connection, held: Iterable[tuple[str, int]], until: datetime) -> dict[str, bool]:
    """Prolong the leases of runs, given as (id, fence). Those that are still held: id -> stop requested."""
    renewed = {}
    for run_id, fence in held:
        row = connection.row(_RENEW, key_id=run_id, key_fence=fence, to_until=instant_to_column(until))
        if row is not None:
            renewed[run_id] = row[0] is not None
    return renewed


def expire_all(connection: Connection, now: datetime) -> None:
    """Declare every lease over, for a process that knows itself to be the only one."""
    connection.run(_EXPIRE_ALL, to_due=instant_to_column(now))


def guard(connection: Connection, run_id: str, fence: int) -> None:
    """Prove, in this transaction, that the run is still ours; `LeaseLostError` otherwise."""
    if connection.row(_GUARD, key_id=run_id, key_fence=fence) is None:
        raise LeaseLostError("Another worker has taken this run over.")


def end(
    connection: Connection,
    run_id: str,
    fence: int,
    state: RunState,
    *,
    at: datetime,
    result: dict[str, Any] | None = None,
    error: dict[str, Any] | None = None,
) -> None:
    """End a run that is ours; `LeaseLostError` when it is not."""
    ended = connection.run(
        _END,
        key_id=run_id,
        key_fence=fence,
        to_state=str(state),
        to_result=None if result is None else json_to_column(result),
        to_error=None if error is None else json_to_column(error),
        to_ended=instant_to_column(at),
    )
    if ended == 0:
        raise LeaseLostError("Another worker has taken this run over.")
    connection.hint(f"run:{run_id}")


def release(
    connection: Connection,
    run_id: str,
    fence: int,
    *,
    due_at: datetime,
    attempts: int,
    error: dict[str, Any] | None = None,
) -> None:
    """Give a run back, to be begun again at `due_at`. Not ours any more is no error."""
    connection.run(
        _RELEASE,
        key_id=run_id,
        key_fence=fence,
        to_due=instant_to_column(due_at),
        to_attempts=attempts,
        to_error=None if error is None else json_to_column(error),
    )
    connection.hint("runs")


def request_stop(connection: Connection, run_id: str, at: datetime) -> bool:
    """Ask whoever works on a run to end it soon. False when it has ended. Twice is once."""
    if connection.run(_REQUEST_STOP, key_id=run_id, to_stop=instant_to_column(at)) == 0:
        return False
    connection.hint(f"stop:{run_id}")
    return True


def cancel_queued(connection: Connection, run_id: str, at: datetime) -> bool:
    """End a run that nobody is working on. False when somebody is, or it has ended."""
    if connection.run(_CANCEL_QUEUED, key_id=run_id, to_ended=instant_to_column(at)) == 0:
        return False
    connection.hint(f"run:{run_id}")
    return True


def prune(connection: Connection, before: datetime, count: int) -> int:
    """Forget up to `count` runs that ended before then, with their steps and effects. How many it were."""
    return connection.run(_PRUNE, before=instant_to_column(before), count=count)


def insert_step(connection: Connection, step: Step) -> None:
    connection.run(_INSERT_STEP, **STEP.write(step))


def list_steps(connection: Connection, run_id: str) -> Sequence[Step]:
    return [STEP.read(row) for row in connection.rows(_STEPS, run_id=run_id)]


def insert_effect(connection: Connection, effect: EffectRecord) -> None:
    """Record an intent. A second intent of the same id keeps the first."""
    connection.run(_INSERT_EFFECT, **_effect_row(effect))


def end_effect(
    connection: Connection, run_id: str, effect_id: str, result: dict[str, Any], at: datetime
) -> None:
    """Record what came of an intent. `InternalError` when there is none: an effect without one is a fault."""
    ended = connection.run(
        _END_EFFECT,
        key_run=run_id,
        key_id=effect_id,
        to_result=json_to_column(result),
        to_ended=instant_to_column(at),
    )
    if ended == 0:
        raise InternalError("An effect ended that was never intended.")


def list_effects(connection: Connection, run_id: str) -> Sequence[EffectRecord]:
    return [_read_effect(row) for row in connection.rows(_EFFECTS, run_id=run_id)]


def _effect_row(effect: EffectRecord) -> dict[str, Any]:
    return EFFECT.write(effect) | {"input": json_to_column(effect.input)}


def _read_effect(row: Sequence[Any]) -> EffectRecord:
    effect = EFFECT.read(row)
    return replace(effect, input=orjson.loads(effect.input))
