"""A turn without a screen: a session and a chat of its own, and a message in it."""

from dataclasses import dataclass
from typing import Any

import orjson

from fermata.accounts.model import Caller
from fermata.flows.open_session import NewSession, OpenSession
from fermata.flows.run_turn import TurnFlow
from fermata.kit.clock import Clock
from fermata.kit.database import Connection, Database
from fermata.kit.errors import ForbiddenError
from fermata.sessions import store as sessions

TITLE = "Scheduled generation"


@dataclass(frozen=True, slots=True)
class Headless:
    run_id: str
    chat_id: str
    session_id: str


class HeadlessFlow:
    def __init__(
        self, *, database: Database, clock: Clock, open_session: OpenSession, turns: TurnFlow
    ) -> None:
        self._database = database
        self._clock = clock
        self._open_session = open_session
        self._turns = turns

    async def start(
        self,
        caller: Caller,
        *,
        message: dict[str, Any],
        account_id: str | None = None,
        organization_id: str | None = None,
        artist_id: str | None = None,
        model_id: str | None = None,
    ) -> Headless:
        """Open a session and accept `message` in it. A death in between leaves a session without a message,
        which nobody was told of. `account_id` may only be the caller's: a key speaks for no one else."""
        if account_id not in (None, caller.account_id):
            raise ForbiddenError("Access denied to specified account_id")
        wanted = NewSession(title=TITLE, organization_id=organization_id, artist_id=artist_id)
        answer = await self._open_session(
            caller, wanted, lambda opened: orjson.dumps([opened.session.id, opened.chat.id]).decode()
        )
        session_id, chat_id = orjson.loads(answer)
        await self._database.write(lambda connection: self._name_chat(connection, chat_id, model_id))
        accepted = await self._turns.accept(caller, session_id=session_id, chat_id=chat_id, message=message)
        return Headless(accepted.run_id, chat_id, session_id)

    def _name_chat(self, connection: Connection, chat_id: str, model_id: str | None) -> None:
        chat = sessions.find_chat(connection, chat_id)
        if chat is not None:
            model = model_id or chat.model_id
            sessions.update_chat(connection, chat, title=TITLE, model_id=model, at=self._clock.now())
