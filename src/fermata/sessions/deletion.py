"""Deleting messages: what a chat shows of them, and that they were ever received."""

import sqlalchemy as sa
from sqlalchemy import bindparam

from fermata.kit.database import Connection, Statement
from fermata.sessions import queue
from fermata.sessions.model import Role
from fermata.sessions.tables import chat_runs, messages

_LATER = Statement(
    sa.select(messages.c.id, messages.c.role)
    .where(
        messages.c.chat_id == bindparam("chat_id"),
        messages.c.position > bindparam("position", type_=sa.BigInteger),
    )
    .order_by(messages.c.position)
)
_POSITION = Statement(
    sa.select(messages.c.position).where(
        messages.c.chat_id == bindparam("chat_id"), messages.c.id == bindparam("id")
    )
)
_DELETE = Statement(
    sa.delete(messages).where(
        messages.c.chat_id == bindparam("chat_id"),
        messages.c.position > bindparam("position", type_=sa.BigInteger),
    )
)
_DELETE_RUNS = Statement(
    sa.delete(chat_runs).where(
        chat_runs.c.chat_id == bindparam("chat_id"), chat_runs.c.user_message_id == bindparam("id")
    )
)


def delete_from(connection: Connection, chat_id: str, message_id: str) -> list[str]:
    """Delete a message and everything after it; the ids in their order, none when it is not there. Ids of
    users' messages are free again: sent once more, such a message is a new one."""
    return _delete(connection, chat_id, message_id, itself=True)


def delete_after(connection: Connection, chat_id: str, message_id: str) -> list[str]:
    """The same, for what follows a message only."""
    return _delete(connection, chat_id, message_id, itself=False)


def _delete(connection: Connection, chat_id: str, message_id: str, *, itself: bool) -> list[str]:
    row = connection.row(_POSITION, chat_id=chat_id, id=message_id)
    if row is None:
        return []
    position = row[0] - 1 if itself else row[0]
    found = connection.rows(_LATER, chat_id=chat_id, position=position)
    connection.run(_DELETE, chat_id=chat_id, position=position)
    for deleted, role in found:
        if role == Role.USER.value:
            connection.run(_DELETE_RUNS, chat_id=chat_id, id=deleted)
            queue.forget(connection, chat_id, deleted)
    return [deleted for deleted, _ in found]
