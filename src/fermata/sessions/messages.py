"""Rows that a turn writes: messages in their order, the chat's slot, and which run answered what."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from fermata.kit.database import Connection, Statement, insert_or_ignore
from fermata.kit.rows import instant_to_column
from fermata.sessions.model import NEW_CHAT_TITLE, ChatRun, Role, StoredMessage
from fermata.sessions.tables import CHAT_RUN, chat_runs, chats, messages


def _big(name: str) -> sa.BindParameter[Any]:
    return bindparam(name, type_=sa.BigInteger)


def _word(name: str) -> sa.BindParameter[Any]:
    return bindparam(name, type_=sa.Text)


_LOCK_CHAT = Statement(sa.select(chats.c.id).where(chats.c.id == bindparam("id")).with_for_update())
_LAST_POSITION = Statement(
    sa.select(sa.func.max(messages.c.position)).where(messages.c.chat_id == bindparam("chat_id"))
)
_INSERT = insert_or_ignore(messages)
_UPDATE_ANSWER = Statement(
    sa.update(messages)
    .values(message=_word("to_message"), history=_word("to_history"))
    .where(
        messages.c.chat_id == bindparam("key_chat"),
        messages.c.id == bindparam("key_id"),
        messages.c.role == Role.ASSISTANT.value,
    )
)
_SET_HISTORY = Statement(
    sa.update(messages)
    .values(history=_word("to_history"))
    .where(messages.c.chat_id == bindparam("key_chat"), messages.c.id == bindparam("key_id"))
)
_ANSWERED = Statement(
    sa.update(chats)
    .values(last_assistant_message_at=_big("to_at"), updated_at=_big("to_at"))
    .where(chats.c.id == bindparam("key"))
)
_FIND = Statement(
    sa.select(messages.c.id, messages.c.role, messages.c.message, messages.c.history).where(
        messages.c.chat_id == bindparam("chat_id"), messages.c.id == bindparam("id")
    )
)
_LIST = Statement(
    sa.select(messages.c.id, messages.c.role, messages.c.message, messages.c.history)
    .where(messages.c.chat_id == bindparam("chat_id"))
    .order_by(messages.c.position)
)
_HISTORY = Statement(
    sa.select(messages.c.history)
    .where(messages.c.chat_id == bindparam("chat_id"), messages.c.history.is_not(None))
    .order_by(messages.c.position)
)
_CLAIM = Statement(
    sa.update(chats)
    .values(active_run_id=_word("to_run"))
    .where(chats.c.id == bindparam("key"), chats.c.active_run_id.is_(None))
)
_RELEASE = Statement(
    sa.update(chats)
    .values(active_run_id=None)
    .where(chats.c.id == bindparam("key"), chats.c.active_run_id == bindparam("seen_run"))
)
_INSERT_RUN = Statement(sa.insert(chat_runs))
_FIND_RUN = Statement(sa.select(*CHAT_RUN.columns).where(chat_runs.c.run_id == bindparam("run_id")))
_FIND_RUN_FOR = Statement(
    sa.select(*CHAT_RUN.columns)
    .where(
        chat_runs.c.chat_id == bindparam("chat_id"),
        chat_runs.c.user_message_id == bindparam("user_message_id"),
    )
    .order_by(chat_runs.c.created_at.desc(), chat_runs.c.run_id.desc())
    .limit(1)
)
_later = messages.alias("later")
_NAME_FIRST = Statement(
    sa.update(chats)
    .values(title=_word("to_title"), updated_at=_big("to_at"))
    .where(
        chats.c.id == bindparam("key"),
        chats.c.title == NEW_CHAT_TITLE,
        ~sa.exists().where(_later.c.chat_id == bindparam("key"), _later.c.position > 0),
    )
)

_DELETE_AFTER = Statement(
    sa.delete(messages).where(
        messages.c.chat_id == bindparam("chat_id"),
        messages.c.position
        > sa.select(_later.c.position)
        .where(_later.c.chat_id == bindparam("chat_id"), _later.c.id == bindparam("id"))
        .scalar_subquery(),
    )
)


def insert_user_message(
    connection: Connection, chat_id: str, message_id: str, message: str, history: str | None, at: datetime
) -> bool:
    """Append what a user said; `message` and `history` are JSON text. False, and nothing written, when the
    chat is gone or has a message with this id already."""
    return _append(connection, chat_id, message_id, Role.USER, message, history, at)


def put_assistant_message(
    connection: Connection, chat_id: str, message_id: str, message: str, history: str | None, at: datetime
) -> bool:
    """Append the answer of a turn, or replace what an earlier attempt stored under this id. False, and
    nothing written, when the chat is gone or the id belongs to a message of a user."""
    stored = _append(connection, chat_id, message_id, Role.ASSISTANT, message, history, at) or (
        connection.run(
            _UPDATE_ANSWER, key_chat=chat_id, key_id=message_id, to_message=message, to_history=history
        )
        == 1
    )
    if stored:
        connection.run(_ANSWERED, key=chat_id, to_at=instant_to_column(at))
    return stored


def _append(
    connection: Connection,
    chat_id: str,
    message_id: str,
    role: Role,
    message: str,
    history: str | None,
    at: datetime,
) -> bool:
    # The lock makes "last position, then insert" one step for writers of the same chat.
    if connection.row(_LOCK_CHAT, id=chat_id) is None:
        return False
    last = connection.row(_LAST_POSITION, chat_id=chat_id)
    position = 0 if last is None or last[0] is None else last[0] + 1
    inserted = connection.run(
        _INSERT,
        chat_id=chat_id,
        id=message_id,
        position=position,
        role=role.value,
        message=message,
        history=history,
        created_at=instant_to_column(at),
    )
    return inserted == 1


def find_message(connection: Connection, chat_id: str, message_id: str) -> StoredMessage | None:
    row = connection.row(_FIND, chat_id=chat_id, id=message_id)
    return StoredMessage(row[0], Role(row[1]), row[2], row[3]) if row else None


def delete_after(connection: Connection, chat_id: str, message_id: str) -> int:
    """Delete what followed a message, and return how many that were. 0 for a message that is not there."""
    return connection.run(_DELETE_AFTER, chat_id=chat_id, id=message_id)


def set_history(connection: Connection, chat_id: str, message_id: str, history: str) -> None:
    """What later model calls see of a message."""
    connection.run(_SET_HISTORY, key_chat=chat_id, key_id=message_id, to_history=history)


def list_messages(connection: Connection, chat_id: str) -> Sequence[StoredMessage]:
    """All messages of a chat in the order they came."""
    return [
        StoredMessage(row[0], Role(row[1]), row[2], row[3]) for row in connection.rows(_LIST, chat_id=chat_id)
    ]


def list_history(connection: Connection, chat_id: str) -> Sequence[str]:
    """What a model may see, as JSON text, one per message that has some, in the order they came."""
    return [row[0] for row in connection.rows(_HISTORY, chat_id=chat_id)]


def claim_chat(connection: Connection, chat_id: str, run_id: str) -> bool:
    """Take the chat's one slot for a run. False when another run has it or the chat is gone."""
    return connection.run(_CLAIM, key=chat_id, to_run=run_id) == 1


def release_chat(connection: Connection, chat_id: str, run_id: str) -> bool:
    """Give the slot back. False, and nothing written, when this run does not have it (any more)."""
    return connection.run(_RELEASE, key=chat_id, seen_run=run_id) == 1


def insert_chat_run(connection: Connection, chat_run: ChatRun) -> None:
    connection.run(_INSERT_RUN, **CHAT_RUN.write(chat_run))


def find_chat_run(connection: Connection, run_id: str) -> ChatRun | None:
    row = connection.row(_FIND_RUN, run_id=run_id)
    return CHAT_RUN.read(row) if row else None


def find_chat_run_for_message(connection: Connection, chat_id: str, user_message_id: str) -> ChatRun | None:
    """The newest run that answers this message."""
    row = connection.row(_FIND_RUN_FOR, chat_id=chat_id, user_message_id=user_message_id)
    return CHAT_RUN.read(row) if row else None


def set_title_if_first(connection: Connection, chat_id: str, title: str, at: datetime) -> bool:
    """Name a chat after its first message: only while it has no second one and nobody has named it."""
    return connection.run(_NAME_FIRST, key=chat_id, to_title=title, to_at=instant_to_column(at)) == 1
