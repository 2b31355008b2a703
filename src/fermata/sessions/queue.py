"""Rows of received messages, and the queue that those among them form which wait.

A move out of `queued` is one UPDATE guarded by that state: of two who want the same message, one gets it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from fermata.kit.database import Connection, Statement, insert_or_ignore
from fermata.kit.rows import instant_to_column
from fermata.sessions.model import Busy, Received, ReceivedState
from fermata.sessions.tables import RECEIVED, received_messages

_r = received_messages.c


@dataclass(frozen=True, slots=True)
class Counts:
    answered: int
    queued: int
    cancelled: int

    @property
    def received(self) -> int:
        return self.answered + self.queued + self.cancelled


def _big(name: str) -> sa.BindParameter[Any]:
    return bindparam(name, type_=sa.BigInteger)


def _word(name: str) -> sa.BindParameter[Any]:
    return bindparam(name, type_=sa.Text)


_in_chat = _r.chat_id == bindparam("chat_id")
_one = sa.and_(_r.chat_id == bindparam("key_chat"), _r.id == bindparam("key_id"))
_queued = _r.state == ReceivedState.QUEUED.value

_INSERT = insert_or_ignore(received_messages)
_FIND = Statement(sa.select(*RECEIVED.columns).where(_in_chat, _r.id == bindparam("id")))
_FIND_FOR_RUN = Statement(
    sa.select(*RECEIVED.columns).where(_r.run_id == bindparam("run_id"), _r.step.is_(None)).limit(1)
)
_LIST = Statement(sa.select(*RECEIVED.columns).where(_in_chat, _queued).order_by(_r.position, _r.created_at))
_ORDER = Statement(
    sa.select(_r.id, _r.busy, _r.position).where(_in_chat, _queued).order_by(_r.position, _r.created_at)
)
_FIRST = Statement(
    sa.select(*RECEIVED.columns).where(_in_chat, _queued).order_by(_r.position, _r.created_at).limit(1)
)
_steering = sa.and_(_in_chat, _queued, _r.busy == Busy.STEER.value)
_HAS_STEERING = Statement(sa.select(_r.id).where(_steering).limit(1))
_STEERING = Statement(
    # Locked: an edit that was confirmed is in what the turn takes.
    sa.select(*RECEIVED.columns).where(_steering).order_by(_r.position, _r.created_at).with_for_update()
)
_STEERED = Statement(
    sa.select(*RECEIVED.columns)
    .where(_r.run_id == bindparam("run_id"), _r.step.is_not(None))
    .order_by(_r.step, _r.ended_at, _r.position)
)
_SHIFT = Statement(
    sa.update(received_messages)
    .values(position=_r.position + 1)
    .where(_r.chat_id == bindparam("key_chat"), _queued, _r.position >= _big("least"))
)
_MOVE = Statement(sa.update(received_messages).values(position=_big("to_position")).where(_one, _queued))
_EDIT = Statement(
    sa.update(received_messages)
    .values(message=_word("to_message"), history=_word("to_history"))
    .where(_one, _queued)
)
_END = Statement(
    sa.update(received_messages)
    .values(
        state=_word("to_state"),
        run_id=_word("to_run"),
        step=_big("to_step"),
        message=None,
        history=_word("to_history"),
        ended_at=_big("to_ended"),
    )
    .where(_one, _queued)
)
_UNSTEER = Statement(
    sa.update(received_messages)
    .values(busy=Busy.QUEUE.value)
    .where(_r.chat_id == bindparam("key_chat"), _queued, _r.busy == Busy.STEER.value)
    .returning(_r.run_id)
)
_COUNT = Statement(sa.select(_r.state, sa.func.count()).where(_in_chat).group_by(_r.state))
_FORGET = Statement(sa.delete(received_messages).where(_one))


def insert(connection: Connection, received: Received) -> bool:
    """False, and nothing written, when the chat has received a message of this id before."""
    return connection.run(_INSERT, **RECEIVED.write(received)) == 1


def enqueue(connection: Connection, received: Received) -> int:
    """Insert a message at the place that its `busy` asks for: at the end; in front of those that were queued;
    or in front of all. Returns its place, counting from 1. The caller holds the session's lock."""
    waiting = connection.rows(_ORDER, chat_id=received.chat_id)
    ahead = {
        Busy.INTERRUPT: 0,
        Busy.STEER: sum(1 for row in waiting if row[1] != Busy.QUEUE.value),
    }.get(received.busy, len(waiting))
    if ahead < len(waiting):
        position = waiting[ahead][2]
        connection.run(_SHIFT, key_chat=received.chat_id, least=position)
    else:
        position = waiting[-1][2] + 1 if waiting else 0
    insert(connection, replace(received, position=position))
    return ahead + 1


def find(connection: Connection, chat_id: str, message_id: str) -> Received | None:
    row = connection.row(_FIND, chat_id=chat_id, id=message_id)
    return RECEIVED.read(row) if row else None


def find_for_run(connection: Connection, run_id: str) -> Received | None:
    """The message whose own run this is, or would have been."""
    row = connection.row(_FIND_FOR_RUN, run_id=run_id)
    return RECEIVED.read(row) if row else None


def find_first(connection: Connection, chat_id: str) -> Received | None:
    """The message that is next."""
    row = connection.row(_FIRST, chat_id=chat_id)
    return RECEIVED.read(row) if row else None


def list_queued(connection: Connection, chat_id: str) -> Sequence[Received]:
    """Those that wait, the next one first."""
    return [RECEIVED.read(row) for row in connection.rows(_LIST, chat_id=chat_id)]


def order(connection: Connection, chat_id: str) -> list[str]:
    """Ids of those that wait, the next one first."""
    return [row[0] for row in connection.rows(_ORDER, chat_id=chat_id)]


def has_steering(connection: Connection, chat_id: str) -> bool:
    return connection.row(_HAS_STEERING, chat_id=chat_id) is not None


def list_steering(connection: Connection, chat_id: str) -> Sequence[Received]:
    """Those that wait to be taken by the running turn, kept from other writers."""
    return [RECEIVED.read(row) for row in connection.rows(_STEERING, chat_id=chat_id)]


def list_steered(connection: Connection, run_id: str) -> Sequence[Received]:
    """Those that a turn has taken on its way, in the order in which its model saw them."""
    return [RECEIVED.read(row) for row in connection.rows(_STEERED, run_id=run_id)]


def move_to(connection: Connection, chat_id: str, message_id: str, place: int) -> int:
    """Put a waiting message at `place`, counting from 1; behind the end is the end. Returns where it is then.
    The caller holds the session's lock."""
    rest = [name for name in order(connection, chat_id) if name != message_id]
    index = min(place - 1, len(rest))
    for position, name in enumerate([*rest[:index], message_id, *rest[index:]]):
        connection.run(_MOVE, key_chat=chat_id, key_id=name, to_position=position)
    return index + 1


def edit(connection: Connection, chat_id: str, message_id: str, message: str, history: str) -> bool:
    """False, and nothing written, when it waits no more."""
    edited = connection.run(
        _EDIT, key_chat=chat_id, key_id=message_id, to_message=message, to_history=history
    )
    return edited == 1


def mark_answered(connection: Connection, received: Received, at: datetime) -> bool:
    """Its own run begins. False, and nothing written, when it waits no more."""
    return _end(connection, received, ReceivedState.ANSWERED, at)


def mark_steered(
    connection: Connection, received: Received, run_id: str, step: int, at: datetime
) -> Received | None:
    """A running turn takes it before its model call `step`: the message as it is then, or None, and nothing
    written, when it waits no more."""
    if not _end(connection, received, ReceivedState.ANSWERED, at, run_id=run_id, step=step, keeps=True):
        return None
    return replace(received, state=ReceivedState.ANSWERED, run_id=run_id, step=step, ended_at=at)


def mark_cancelled(connection: Connection, received: Received, at: datetime) -> bool:
    """Its words are forgotten, its row stays. False, and nothing written, when it waits no more."""
    return _end(connection, received, ReceivedState.CANCELLED, at)


def _end(
    connection: Connection,
    received: Received,
    state: ReceivedState,
    at: datetime,
    *,
    run_id: str | None = None,
    step: int | None = None,
    keeps: bool = False,
) -> bool:
    ended = connection.run(
        _END,
        key_chat=received.chat_id,
        key_id=received.id,
        to_state=state.value,
        to_run=run_id or received.run_id,
        to_step=step,
        to_history=received.history if keeps else None,
        to_ended=instant_to_column(at),
    )
    return ended == 1


def end_steering(connection: Connection, chat_id: str) -> list[str]:
    """The running turn is over: what it has not taken waits like any other message. Their own runs' ids."""
    return [row[0] for row in connection.rows(_UNSTEER, key_chat=chat_id)]


def count(connection: Connection, chat_id: str) -> Counts:
    found = {row[0]: int(row[1]) for row in connection.rows(_COUNT, chat_id=chat_id)}
    return Counts(*(found.get(state.value, 0) for state in _COUNTED))


_COUNTED = (ReceivedState.ANSWERED, ReceivedState.QUEUED, ReceivedState.CANCELLED)


def forget(connection: Connection, chat_id: str, message_id: str) -> None:
    """The message was deleted: its id is free again."""
    connection.run(_FORGET, key_chat=chat_id, key_id=message_id)
