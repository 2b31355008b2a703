"""A session together with its sandbox, alone and in lists."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy import bindparam

from fermata.accounts import store as accounts
from fermata.accounts.model import Caller
from fermata.kit.database import Connection, Database, Row, Statement, is_any
from fermata.kit.rows import instant_to_column
from fermata.sandboxes.model import SandboxRecord
from fermata.sandboxes.store import SANDBOX, sandboxes
from fermata.sessions.access import check_session
from fermata.sessions.model import Session, SessionStatus
from fermata.sessions.tables import SESSION, chat_reads, chats, sessions


@dataclass(frozen=True, slots=True)
class SessionView:
    session: Session
    #: None for a session whose sandbox was deleted.
    sandbox: SandboxRecord | None


@dataclass(frozen=True, slots=True)
class SessionItem:
    view: SessionView
    has_unread: bool
    is_streaming: bool
    latest_chat_id: str | None


class Filter(StrEnum):
    """Which sessions a list has; a single status names itself."""

    ALL = "all"
    #: Everything that is not archived.
    ACTIVE = "active"
    ARCHIVED = "archived"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


_STATUSES: dict[Filter, tuple[SessionStatus, ...]] = {
    Filter.ALL: tuple(SessionStatus),
    Filter.ACTIVE: (SessionStatus.RUNNING, SessionStatus.COMPLETED, SessionStatus.FAILED),
    Filter.ARCHIVED: (SessionStatus.ARCHIVED,),
    Filter.RUNNING: (SessionStatus.RUNNING,),
    Filter.COMPLETED: (SessionStatus.COMPLETED,),
    Filter.FAILED: (SessionStatus.FAILED,),
}


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page ended: lists run from the newest activity to the oldest, then by id downwards."""

    #: Microseconds since 1970, as stored.
    active_at: int
    session_id: str


#: Sorts after everything there is.
START = Position(2**62, "")

_joined = sessions.outerjoin(sandboxes, sandboxes.c.session_id == sessions.c.id)
_WIDTH = len(SESSION.columns)
_ONE = Statement(
    sa.select(*SESSION.columns, *SANDBOX.columns).select_from(_joined).where(sessions.c.id == bindparam("id"))
)

_unread = (
    sa.select(sa.literal(1))
    .select_from(
        chats.outerjoin(
            chat_reads,
            sa.and_(chat_reads.c.chat_id == chats.c.id, chat_reads.c.account_id == bindparam("reader")),
        )
    )
    .where(
        chats.c.session_id == sessions.c.id,
        chats.c.last_assistant_message_at > sa.func.coalesce(chat_reads.c.last_read_at, -1),
    )
    .exists()
)
_streaming = (
    sa.select(sa.literal(1))
    .where(chats.c.session_id == sessions.c.id, chats.c.active_run_id.is_not(None))
    .exists()
)
_latest = (
    sa.select(chats.c.id)
    .where(chats.c.session_id == sessions.c.id)
    .order_by(chats.c.updated_at.desc(), chats.c.id.desc())
    .limit(1)
    .scalar_subquery()
)


def _page_statement(whose: sa.ColumnElement[bool], statuses: Sequence[SessionStatus]) -> Statement:
    before = sa.and_(
        sessions.c.active_at <= bindparam("before_at", type_=sa.BigInteger),
        sa.or_(
            sessions.c.active_at < bindparam("before_at", type_=sa.BigInteger),
            sessions.c.id < bindparam("before_id", type_=sa.Text),
        ),
    )
    conditions = [whose, before]
    if len(statuses) < len(SessionStatus):
        conditions.append(is_any(sessions.c.status, statuses))
    # `%` alone matches every title, so that one statement serves with and without a search.
    conditions.append(sessions.c.title_folded.like(bindparam("pattern", type_=sa.Text), escape="\\"))
    return Statement(
        sa.select(*SESSION.columns, *SANDBOX.columns, _unread, _streaming, _latest)
        .select_from(_joined)
        .where(*conditions)
        .order_by(sessions.c.active_at.desc(), sessions.c.id.desc())
        .limit(bindparam("count", type_=sa.BigInteger))
    )


_own = sessions.c.account_id == bindparam("account")
_shared = sa.and_(
    sessions.c.organization_id == bindparam("organization"), sessions.c.account_id != bindparam("account")
)
_OWN = {choice: _page_statement(_own, statuses) for choice, statuses in _STATUSES.items()}
_SHARED = {choice: _page_statement(_shared, statuses) for choice, statuses in _STATUSES.items()}


def _view(row: Row) -> SessionView:
    sandbox = SANDBOX.read(row[_WIDTH:]) if row[_WIDTH] is not None else None
    return SessionView(SESSION.read(row), sandbox)


def _item(row: Row) -> SessionItem:
    return SessionItem(_view(row), bool(row[-3]), bool(row[-2]), row[-1])


def _order(item: SessionItem) -> tuple[int, str]:
    session = item.view.session
    return instant_to_column(session.active_at), session.id


def get_session_view(connection: Connection, session_id: str, caller: Caller) -> SessionView:
    """`NotFoundError` or `ForbiddenError` when the caller may not see it."""
    row = connection.row(_ONE, id=session_id)
    if row is None:
        check_session(connection, None, caller)
        raise AssertionError("unreachable")
    view = _view(row)
    check_session(connection, view.session, caller)
    return view


class SessionViews:
    def __init__(self, *, database: Database) -> None:
        self._database = database

    async def get_session(self, caller: Caller, session_id: str) -> SessionView:
        return await self._database.read(lambda connection: get_session_view(connection, session_id, caller))

    async def list_sessions(
        self, caller: Caller, *, choice: Filter, search: str, after: Position | None, limit: int
    ) -> tuple[Sequence[SessionItem], Position | None]:
        """A page of the caller's sessions and those of its organizations, and where the next one starts.

        `search` is part of a title, in any case.
        """
        params = {
            "account": caller.account_id,
            "reader": caller.account_id,
            "before_at": (after or START).active_at,
            "before_id": (after or START).session_id,
            "pattern": f"%{_escape(search.casefold())}%" if search else "%",
            "count": limit + 1,
        }

        def read(connection: Connection) -> list[SessionItem]:
            pages = [[_item(row) for row in connection.rows(_OWN[choice], **params)]]
            for organization in accounts.list_organizations(connection, caller.account_id):
                rows = connection.rows(_SHARED[choice], **params, organization=organization.id)
                pages.append([_item(row) for row in rows])
            if len(pages) == 1:
                return pages[0]
            return list(heapq.merge(*pages, key=_order, reverse=True))

        found = await self._database.read(read)
        if len(found) <= limit:
            return found, None
        return found[:limit], Position(*_order(found[limit - 1]))


def _escape(text: str) -> str:
    """For LIKE: the wildcards of SQL stand for themselves."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
