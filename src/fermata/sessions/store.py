"""Rows of sessions and chats. What a turn writes is in `messages.py`, and is offered here too."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from fermata.kit.database import Connection, Statement, insert_or_ignore, upsert
from fermata.kit.rows import instant_to_column
from fermata.sessions.messages import (
    claim_chat as claim_chat,
)
from fermata.sessions.messages import (
    delete_after as delete_after,
)
from fermata.sessions.messages import (
    find_chat_run as find_chat_run,
)
from fermata.sessions.messages import (
    find_chat_run_for_message as find_chat_run_for_message,
)
from fermata.sessions.messages import (
    find_message as find_message,
)
from fermata.sessions.messages import (
    insert_chat_run as insert_chat_run,
)
from fermata.sessions.messages import (
    insert_user_message as insert_user_message,
)
from fermata.sessions.messages import (
    list_history as list_history,
)
from fermata.sessions.messages import (
    list_messages as list_messages,
)
from fermata.sessions.messages import (
    put_assistant_message as put_assistant_message,
)
from fermata.sessions.messages import (
    release_chat as release_chat,
)
from fermata.sessions.messages import (
    set_title_if_first as set_title_if_first,
)
from fermata.sessions.model import Chat, ChatSummary, Session
from fermata.sessions.tables import CHAT, SESSION, chat_reads, chats, sessions


def _big(name: str) -> sa.BindParameter[Any]:
    return bindparam(name, type_=sa.BigInteger)


def _word(name: str) -> sa.BindParameter[Any]:
    return bindparam(name, type_=sa.Text)


_INSERT_SESSION = Statement(sa.insert(sessions))
_GET_SESSION = Statement(sa.select(*SESSION.columns).where(sessions.c.id == bindparam("id")))
_LOCK_SESSION = Statement(
    sa.select(*SESSION.columns).where(sessions.c.id == bindparam("id")).with_for_update()
)
_CHANGEABLE = ("title", "status", "lines_added", "lines_removed", "branch")
_UPDATE_SESSION = Statement(
    sa.update(sessions)
    .values(
        title_folded=_word("to_title_folded"),
        updated_at=_big("to_updated_at"),
        active_at=_big("to_active_at"),
        **{name: bindparam(f"to_{name}", type_=sessions.c[name].type) for name in _CHANGEABLE},
    )
    .where(sessions.c.id == bindparam("key"))
)
_TOUCH = Statement(
    sa.update(sessions)
    .values(active_at=_big("to_at"), updated_at=_big("to_at"))
    .where(sessions.c.id == bindparam("key"), sessions.c.active_at < _big("to_at"))
)
_DELETE_SESSION = Statement(sa.delete(sessions).where(sessions.c.id == bindparam("key")))
_TITLE_TAKEN = Statement(
    sa.select(sa.literal(1))
    .where(
        sessions.c.account_id == bindparam("account_id"), sessions.c.title_folded == bindparam("title_folded")
    )
    .limit(1)
)
_COUNT_TITLES = Statement(
    sa.select(sa.func.count())
    .select_from(sessions)
    .where(
        sessions.c.account_id == bindparam("account_id"),
        sessions.c.title_folded > bindparam("low"),
        sessions.c.title_folded < bindparam("high"),
    )
)

_INSERT_CHAT = insert_or_ignore(chats)
_GET_CHAT = Statement(sa.select(*CHAT.columns).where(chats.c.id == bindparam("id")))
_CHATS = Statement(
    sa.select(*CHAT.columns)
    .where(chats.c.session_id == bindparam("session_id"))
    .order_by(chats.c.created_at, chats.c.id)
)
_SUMMARIES = Statement(
    sa.select(*CHAT.columns, chat_reads.c.last_read_at)
    .select_from(
        chats.outerjoin(
            chat_reads,
            sa.and_(chat_reads.c.chat_id == chats.c.id, chat_reads.c.account_id == bindparam("reader")),
        )
    )
    .where(chats.c.session_id == bindparam("session_id"))
    .order_by(chats.c.created_at, chats.c.id)
)
_COUNT_CHATS = Statement(
    sa.select(sa.func.count()).select_from(chats).where(chats.c.session_id == bindparam("session_id"))
)
_UPDATE_CHAT = Statement(
    sa.update(chats)
    .values(title=_word("to_title"), model_id=_word("to_model"), updated_at=_big("to_at"))
    .where(chats.c.id == bindparam("key"))
)
_DELETE_CHAT = Statement(sa.delete(chats).where(chats.c.id == bindparam("key")))
_MARK_READ = upsert(chat_reads, key=("account_id", "chat_id"), values=("last_read_at",))


def insert_session(connection: Connection, session: Session) -> None:
    connection.run(_INSERT_SESSION, **SESSION.write(session), title_folded=session.title.casefold())


def find_session(connection: Connection, session_id: str) -> Session | None:
    row = connection.row(_GET_SESSION, id=session_id)
    return SESSION.read(row) if row else None


def lock_session(connection: Connection, session_id: str) -> Session | None:
    """Find a session and keep other writers off its row until this transaction ends."""
    row = connection.row(_LOCK_SESSION, id=session_id)
    return SESSION.read(row) if row else None


def update_session(connection: Connection, session: Session, *, at: datetime, **changes: Any) -> Session:
    """Change fields of a locked session: title, status, lines_added, lines_removed, branch."""
    unknown = changes.keys() - set(_CHANGEABLE)
    if unknown:
        raise TypeError(f"a session has no changeable {', '.join(sorted(unknown))}")
    changed = replace(session, **changes, active_at=max(at, session.active_at), updated_at=at)
    row = SESSION.write(changed)
    connection.run(
        _UPDATE_SESSION,
        key=session.id,
        to_title_folded=changed.title.casefold(),
        to_updated_at=row["updated_at"],
        to_active_at=row["active_at"],
        **{f"to_{name}": row[name] for name in _CHANGEABLE},
    )
    return changed


def touch_session(connection: Connection, session_id: str, at: datetime) -> None:
    """Note that something happened in the session. Never moves its time back."""
    connection.run(_TOUCH, key=session_id, to_at=instant_to_column(at))


def delete_session(connection: Connection, session_id: str) -> bool:
    """Delete a session with its chats, messages and marks. Its sandbox is the caller's business."""
    return connection.run(_DELETE_SESSION, key=session_id) == 1


def is_title_taken(connection: Connection, account_id: str, title: str) -> bool:
    return connection.row(_TITLE_TAKEN, account_id=account_id, title_folded=title.casefold()) is not None


def taken_among(names: Sequence[str]) -> Callable[[Connection, str], set[str]]:
    """A query, in one statement: which of these fixed names, case folded, are titles of an account."""
    assert all(name.replace(" ", "").isalpha() for name in names), "names go into the text of the statement"
    folded = [sa.literal_column(f"'{name.casefold()}'", sa.Text) for name in names]
    statement = Statement(
        sa.select(sessions.c.title_folded).where(
            sessions.c.account_id == bindparam("account_id"), sessions.c.title_folded.in_(folded)
        )
    )
    return lambda connection, account_id: {
        row[0] for row in connection.rows(statement, account_id=account_id)
    }


def count_titles_after(connection: Connection, account_id: str, word: str) -> int:
    """How many of the account's titles are `word`, a blank and something more."""
    folded = word.casefold()
    row = connection.row(_COUNT_TITLES, account_id=account_id, low=f"{folded} ", high=f"{folded}!")
    return int(row[0]) if row else 0


def insert_chat(connection: Connection, chat: Chat) -> bool:
    """False, and nothing written, when the id is taken, by whichever session."""
    return connection.run(_INSERT_CHAT, **CHAT.write(chat)) == 1


def find_chat(connection: Connection, chat_id: str) -> Chat | None:
    row = connection.row(_GET_CHAT, id=chat_id)
    return CHAT.read(row) if row else None


def list_chats(connection: Connection, session_id: str) -> Sequence[Chat]:
    return [CHAT.read(row) for row in connection.rows(_CHATS, session_id=session_id)]


def list_chat_summaries(connection: Connection, session_id: str, reader: str) -> Sequence[ChatSummary]:
    """Chats of a session, oldest first, as the account `reader` sees them."""
    found = []
    for row in connection.rows(_SUMMARIES, session_id=session_id, reader=reader):
        chat, read_at = CHAT.read(row), row[-1]
        answered_at = chat.last_assistant_message_at
        unread = answered_at is not None and (read_at is None or instant_to_column(answered_at) > read_at)
        found.append(ChatSummary(chat, unread))
    return found


def count_chats(connection: Connection, session_id: str) -> int:
    row = connection.row(_COUNT_CHATS, session_id=session_id)
    return int(row[0]) if row else 0


def update_chat(connection: Connection, chat: Chat, *, title: str, model_id: str, at: datetime) -> Chat:
    connection.run(_UPDATE_CHAT, key=chat.id, to_title=title, to_model=model_id, to_at=instant_to_column(at))
    return replace(chat, title=title, model_id=model_id, updated_at=at)


def delete_chat(connection: Connection, chat_id: str) -> bool:
    return connection.run(_DELETE_CHAT, key=chat_id) == 1


def mark_read(connection: Connection, account_id: str, chat_id: str, at: datetime) -> None:
    connection.run(_MARK_READ, account_id=account_id, chat_id=chat_id, last_read_at=instant_to_column(at))
