"""The one rule of who may use a session: its owner, and the members of its organization.

A session that does not exist and one that the caller may not use differ on the wire (404 and 403), as the
contract has it; ids are random, so that this tells a stranger nothing.
"""

from fermata.accounts import store as accounts
from fermata.accounts.model import Caller
from fermata.kit.database import Connection
from fermata.kit.errors import ForbiddenError, NotFoundError
from fermata.sessions import store
from fermata.sessions.model import Chat, Session


def may_use(connection: Connection, session_id: str, caller: Caller) -> bool:
    """Whether the session exists and the caller may use it."""
    session = store.find_session(connection, session_id)
    return session is not None and _may_use(connection, session, caller)


def _may_use(connection: Connection, session: Session, caller: Caller) -> bool:
    if session.account_id == caller.account_id:
        return True
    organization = session.organization_id
    return organization is not None and accounts.is_member(connection, organization, caller.account_id)


def check_session(connection: Connection, session: Session | None, caller: Caller) -> Session:
    """`NotFoundError` for None, `ForbiddenError` for a session that is not the caller's to use."""
    if session is None:
        raise NotFoundError("Session not found")
    if not _may_use(connection, session, caller):
        raise ForbiddenError("Forbidden")
    return session


def get_session(connection: Connection, session_id: str, caller: Caller, *, lock: bool = False) -> Session:
    """The session, if the caller may use it. With `lock`, its row is kept from other writers."""
    find = store.lock_session if lock else store.find_session
    return check_session(connection, find(connection, session_id), caller)


def get_own_session(connection: Connection, session_id: str, caller: Caller) -> Session:
    """As `get_session` with the lock, for what only the owner may do."""
    session = get_session(connection, session_id, caller, lock=True)
    if session.account_id != caller.account_id:
        raise ForbiddenError("Forbidden")
    return session


def get_chat(
    connection: Connection, chat_id: str, caller: Caller, *, lock: bool = False
) -> tuple[Session, Chat]:
    """A chat by its own id, with its session, if the caller may use it. With `lock`, as they are once the
    session's row is kept from other writers."""
    chat = store.find_chat(connection, chat_id)
    if chat is None:
        raise NotFoundError("Chat not found")
    session = get_session(connection, chat.session_id, caller, lock=lock)
    return session, get_chat_in(connection, session.id, chat_id, caller) if lock else chat


def get_chat_in(connection: Connection, session_id: str, chat_id: str, caller: Caller) -> Chat:
    """A chat of this session; one of another session is not found."""
    get_session(connection, session_id, caller)
    chat = store.find_chat(connection, chat_id)
    if chat is None or chat.session_id != session_id:
        raise NotFoundError("Chat not found")
    return chat
