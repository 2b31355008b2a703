"""Messages that wait for the turn before them: begun one after the other, and changed while they wait.

The next one begins in the transaction that ends the turn before it, so that there is no moment at which
nobody is responsible for it. Everything that decides about a chat's queue holds its session's lock.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import orjson
import structlog

from fermata.accounts.model import Caller
from fermata.kit.clock import Clock
from fermata.kit.database import Connection, Database
from fermata.kit.errors import ConflictError, InternalError, InvalidRequestError, NotFoundError
from fermata.kit.ids import new_id
from fermata.runs import store as runs
from fermata.runs.model import new_run
from fermata.sessions import access, deletion, messages, queue
from fermata.sessions import store as sessions
from fermata.sessions.ending import end_stream
from fermata.sessions.feed import tell
from fermata.sessions.model import Busy, ChatRun, Received, ReceivedState, Role, Session, SessionStatus
from fermata.sessions.queue import Counts
from fermata.stream import store as stream
from fermata.turns.history import from_ui_message, history_to_json, title_from

log = structlog.get_logger()

#: Of the runs that answer messages. Their key is the chat's id.
KIND = "turn"
#: Messages that may wait in one chat.
QUEUE_LIMIT = 100

ANSWERED = "This message is being answered already"
CANCELLED = "This message was cancelled"
NOTHING_SAID = "The message has neither text nor a file"


def message_to_store(message: dict[str, Any], field: str = "messages") -> tuple[str, str]:
    """A UI message, and what a model sees of it, as JSON text. `InvalidRequestError` when that is nothing."""
    seen = from_ui_message(message)
    if not seen.parts:
        raise InvalidRequestError(NOTHING_SAID, field=(field,))
    return orjson.dumps(message).decode(), orjson.dumps(history_to_json((seen,))).decode()


def store_message(
    connection: Connection, chat_id: str, message_id: str, message: str, history: str, at: datetime
) -> bool:
    """Make a received message one of the chat. False, and nothing written, when its id is taken there."""
    if not messages.insert_user_message(connection, chat_id, message_id, message, history, at):
        return False
    title = title_from(orjson.loads(message))
    if title is not None:
        messages.set_title_if_first(connection, chat_id, title, at)
    return True


def begin(
    connection: Connection,
    session: Session,
    chat_id: str,
    message_id: str,
    run_id: str,
    insert_run: Callable[[Connection], Any],
    at: datetime,
) -> None:
    """The run that answers a stored message of a chat that no run answers in."""
    if not messages.claim_chat(connection, chat_id, run_id):
        raise InternalError("The chat has a running turn.")
    insert_run(connection)
    stream.create(connection, run_id, at)
    chat_run = ChatRun(
        run_id=run_id,
        chat_id=chat_id,
        user_message_id=message_id,
        assistant_message_id=new_id(),
        created_at=at,
    )
    messages.insert_chat_run(connection, chat_run)
    data = {"chatId": chat_id, "messageId": message_id, "runId": run_id}
    tell(connection, session, "run.started", at, **data)


def begin_next(connection: Connection, session: Session, chat_id: str, at: datetime) -> None:
    """Begin the message that is next in a chat that no run answers in. An archived session's wait."""
    if session.status is SessionStatus.ARCHIVED:
        return
    while (received := queue.find_first(connection, chat_id)) is not None:
        assert received.message is not None
        assert received.history is not None
        if store_message(connection, chat_id, received.id, received.message, received.history, at):
            queue.mark_answered(connection, received, at)
            run = new_run(received.run_id, KIND, chat_id, now=at)
            begin(connection, session, chat_id, received.id, run.id, partial(runs.insert, run=run), at)
            return
        log.error("the id of a queued message was taken meanwhile", chat=chat_id, message=received.id)
        cancel(connection, session, received, at)


def cancel(connection: Connection, session: Session, received: Received, at: datetime) -> bool:
    """Take a waiting message out of the queue for good. False when it waits no more."""
    if not queue.mark_cancelled(connection, received, at):
        return False
    end_stream(connection, received.run_id)
    data = {"chatId": received.chat_id, "messageId": received.id}
    tell(connection, session, "message.cancelled", at, **data)
    return True


@dataclass(frozen=True, slots=True)
class Waiting:
    received: Received
    #: In the queue, counting from 1.
    place: int
    #: What to watch for its answer: its own run, or while it steers the one that is to take it.
    run_id: str


@dataclass(frozen=True, slots=True)
class QueueView:
    waiting: Sequence[Waiting]
    counts: Counts


class QueueFlow:
    """Look at the messages that wait in a chat, and change them."""

    def __init__(self, *, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def view(self, caller: Caller, chat_id: str) -> QueueView:
        def read(connection: Connection) -> QueueView:
            access.get_chat(connection, chat_id, caller)
            return QueueView(list_waiting(connection, chat_id), queue.count(connection, chat_id))

        return await self._database.read(read)

    async def change(
        self,
        caller: Caller,
        chat_id: str,
        message_id: str,
        *,
        parts: list[dict[str, Any]] | None,
        place: int | None,
    ) -> Waiting:
        """Give a waiting message other parts, another place, or both; None leaves one as it is.
        `ConflictError` when it waits no more."""

        def write(connection: Connection) -> Waiting:
            session, received = self._get(connection, caller, chat_id, message_id)
            if parts is not None:
                assert received.message is not None
                edited = orjson.loads(received.message) | {"parts": parts}
                message, history = message_to_store(edited, "parts")
                _check(queue.edit(connection, chat_id, message_id, message, history))
            if place is not None:
                queue.move_to(connection, chat_id, message_id, place)
            found = [item for item in list_waiting(connection, chat_id) if item.received.id == message_id]
            _check(bool(found))
            data = {"chatId": chat_id, "messageId": message_id, "position": found[0].place}
            tell(connection, session, "message.changed", self._clock.now(), **data)
            return found[0]

        return await self._database.write(write)

    async def cancel(self, caller: Caller, chat_id: str, message_id: str) -> None:
        """Twice is once. `ConflictError` when a turn has taken it."""

        def write(connection: Connection) -> None:
            session, _ = access.get_chat(connection, chat_id, caller, lock=True)
            received = queue.find(connection, chat_id, message_id)
            if received is None:
                raise NotFoundError("Message not found")
            if received.state is not ReceivedState.CANCELLED:
                _check(cancel(connection, session, received, self._clock.now()))

        await self._database.write(write)

    async def delete_message(
        self, caller: Caller, session_id: str, chat_id: str, message_id: str
    ) -> list[str]:
        """Delete a user's message and everything after it; the ids of what is gone, in their order.
        `InvalidRequestError` for another's message, `ConflictError` while a turn runs."""

        def write(connection: Connection) -> list[str]:
            session = access.get_session(connection, session_id, caller, lock=True)
            chat = access.get_chat_in(connection, session_id, chat_id, caller)
            message = messages.find_message(connection, chat_id, message_id)
            if message is None:
                raise NotFoundError("Message not found")
            if message.role is not Role.USER:
                raise InvalidRequestError("Only user messages can be deleted")
            if chat.active_run_id is not None:
                raise ConflictError("Cannot delete messages while a response is streaming")
            deleted = deletion.delete_from(connection, chat_id, message_id)
            now = self._clock.now()
            sessions.touch_session(connection, session.id, now)
            tell(connection, session, "message.deleted", now, chatId=chat_id, messageIds=deleted)
            return deleted

        return await self._database.write(write)

    def _get(
        self, connection: Connection, caller: Caller, chat_id: str, message_id: str
    ) -> tuple[Session, Received]:
        session, _ = access.get_chat(connection, chat_id, caller, lock=True)
        received = queue.find(connection, chat_id, message_id)
        if received is None:
            raise NotFoundError("Message not found")
        if received.state is ReceivedState.CANCELLED:
            raise ConflictError(CANCELLED)
        _check(received.state is ReceivedState.QUEUED)
        return session, received


def list_waiting(connection: Connection, chat_id: str) -> Sequence[Waiting]:
    chat = sessions.find_chat(connection, chat_id)
    active = chat.active_run_id if chat else None
    return [
        Waiting(received, place, decide_run(received, active))
        for place, received in enumerate(queue.list_queued(connection, chat_id), 1)
    ]


def decide_run(received: Received, active_run_id: str | None) -> str:
    """The run whose stream shows what becomes of a queued message."""
    if received.busy is Busy.STEER and active_run_id is not None:
        return active_run_id
    return received.run_id


def _check(waits: bool) -> None:
    if not waits:
        raise ConflictError(ANSWERED)
