"""The verbs of chats. What touches a session's sandbox too is in `flows/`."""

from collections.abc import Sequence
from dataclasses import dataclass

from fermata.accounts.model import Caller
from fermata.events import store as events
from fermata.kit.clock import Clock
from fermata.kit.database import Connection, Database
from fermata.kit.errors import ConflictError, InvalidRequestError
from fermata.kit.ids import new_id
from fermata.sessions import access, store
from fermata.sessions.ending import abandon
from fermata.sessions.feed import tell
from fermata.sessions.model import NEW_CHAT_TITLE, Chat, ChatSummary, StoredMessage

ONLY_CHAT = "Cannot delete the only chat in a session"


@dataclass(frozen=True, slots=True)
class ChatWithMessages:
    chat: Chat
    messages: Sequence[StoredMessage]


class SessionService:
    def __init__(self, *, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def list_chats(self, caller: Caller, session_id: str) -> Sequence[ChatSummary]:
        """Oldest first."""

        def read(connection: Connection) -> Sequence[ChatSummary]:
            access.get_session(connection, session_id, caller)
            return store.list_chat_summaries(connection, session_id, caller.account_id)

        return await self._database.read(read)

    async def get_chat(self, caller: Caller, session_id: str, chat_id: str) -> ChatWithMessages:
        def read(connection: Connection) -> ChatWithMessages:
            chat = access.get_chat_in(connection, session_id, chat_id, caller)
            return ChatWithMessages(chat, store.list_messages(connection, chat_id))

        return await self._database.read(read)

    async def create_chat(
        self, caller: Caller, session_id: str, chat_id: str | None, *, model_id: str
    ) -> Chat:
        """A new chat. With an id that this session has already: that chat, unchanged.

        `ConflictError` when the id belongs to another session.
        """
        now = self._clock.now()
        wanted = Chat(
            id=chat_id or new_id(),
            session_id=session_id,
            title=NEW_CHAT_TITLE,
            model_id=model_id,
            active_run_id=None,
            last_assistant_message_at=None,
            created_at=now,
            updated_at=now,
        )

        def write(connection: Connection) -> Chat:
            # The lock: a session that is being deleted gets no more chats.
            session = access.get_session(connection, session_id, caller, lock=True)
            if store.insert_chat(connection, wanted):
                store.touch_session(connection, session_id, now)
                tell(connection, session, "chat.created", now, chatId=wanted.id)
                return wanted
            found = store.find_chat(connection, wanted.id)
            if found is None or found.session_id != session_id:
                raise ConflictError("Chat ID conflict")
            return found

        return await self._database.write(write)

    async def change_chat(
        self, caller: Caller, session_id: str, chat_id: str, *, title: str | None, model_id: str | None
    ) -> Chat:
        now = self._clock.now()

        def write(connection: Connection) -> Chat:
            session = access.get_session(connection, session_id, caller, lock=True)
            chat = access.get_chat_in(connection, session_id, chat_id, caller)
            changed = store.update_chat(
                connection, chat, title=title or chat.title, model_id=model_id or chat.model_id, at=now
            )
            tell(connection, session, "chat.updated", now, chatId=chat_id, title=changed.title)
            return changed

        return await self._database.write(write)

    async def delete_chat(self, caller: Caller, session_id: str, chat_id: str) -> None:
        """Delete a chat with its messages, and end the turn that runs in it. Never the last chat."""
        now = self._clock.now()

        def write(connection: Connection) -> None:
            # The lock: of two who delete the last two chats, one finds the only one.
            session = access.get_session(connection, session_id, caller, lock=True)
            chat = access.get_chat_in(connection, session_id, chat_id, caller)
            if store.count_chats(connection, session_id) == 1:
                raise InvalidRequestError(ONLY_CHAT)
            abandon(connection, chat, now)
            store.delete_chat(connection, chat_id)
            tell(connection, session, "chat.deleted", now, chatId=chat_id)

        await self._database.write(write)

    async def mark_read(self, caller: Caller, session_id: str, chat_id: str) -> None:
        """Everything in the chat up to now has been seen by the caller."""
        now = self._clock.now()

        def write(connection: Connection) -> None:
            access.get_chat_in(connection, session_id, chat_id, caller)
            store.mark_read(connection, caller.account_id, chat_id, now)
            # To the reader alone, whose other screens show it as unread.
            events.append(
                connection,
                "chat.read",
                at=now,
                account_id=caller.account_id,
                data={"sessionId": session_id, "chatId": chat_id},
            )

        await self._database.write(write)
