"""A turn: accepted in one transaction, worked on by whichever worker has the run, ended in one transaction.

The message, the run, its stream and the chat's slot are committed together before the answer begins. At the
end the last chunks, the stored message and the free slot are committed together.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson

from fermata.accounts.model import Caller
from fermata.flows.journal import RunJournal, lines, read_recorded
from fermata.flows.provision import ARCHIVED
from fermata.flows.sandbox import SandboxFlow
from fermata.kit.clock import Clock
from fermata.kit.database import Connection, Database
from fermata.kit.errors import ConflictError, InvalidRequestError, NotFoundError, TimedOutError
from fermata.kit.ids import new_id
from fermata.runs import store as runs
from fermata.runs.contract import RunHandle
from fermata.runs.model import RetryPolicy, Run, RunState
from fermata.runs.service import Offer, RunService
from fermata.sandboxes.model import session_sandbox_id
from fermata.sandboxes.service import SandboxService
from fermata.sessions import access, messages
from fermata.sessions import store as sessions
from fermata.sessions.model import Chat, ChatRun, Session, SessionStatus
from fermata.stream import store as stream
from fermata.turns.history import (
    from_ui_message,
    history_from_json,
    history_to_json,
    repaired,
    title_from,
)
from fermata.turns.llms.catalogue import Catalogue
from fermata.turns.loop import run_turn
from fermata.turns.model import FinishReason, TurnEnd, TurnOutcome
from fermata.turns.progress import Progress, Turn
from fermata.turns.prompt import Surroundings, instructions
from fermata.turns.toolset import Toolset

KIND = "turn"
#: How long a stop waits for the turn to end. It goes on ending when this has passed.
STOP_LIMIT = timedelta(seconds=8)

BUSY = "Another workflow is already running for this chat"

_ENDS = {
    TurnEnd.COMPLETED: RunState.COMPLETED,
    TurnEnd.STOPPED: RunState.CANCELLED,
    TurnEnd.FAILED: RunState.FAILED,
}


@dataclass(frozen=True, slots=True)
class Accepted:
    run_id: str
    #: False when this message was accepted before and its run is rejoined.
    new: bool


class TurnFlow:
    """Accept, find and stop turns."""

    def __init__(
        self, *, database: Database, clock: Clock, runs: RunService, sandboxes: SandboxService
    ) -> None:
        self._database = database
        self._clock = clock
        self._runs = runs
        self._sandboxes = sandboxes

    async def accept(
        self,
        caller: Caller,
        *,
        session_id: str,
        chat_id: str,
        message: dict[str, Any],
        regenerate: bool = False,
    ) -> Accepted:
        """Take a user's UI message and start the turn that answers it.

        Idempotent by the message's id: the same message again rejoins its run, running or ended. While
        another message is being answered: `ConflictError`. `regenerate` answers an ended message anew,
        without what followed it.
        """
        if not from_ui_message(message).parts:
            raise InvalidRequestError("The message has neither text nor a file", field=("messages",))
        with self._runs.offer(KIND, chat_id, {}) as offer:

            def accept(connection: Connection) -> Accepted:
                # The lock: an archived session gets no more turns, and a message sent twice at once one.
                session = access.get_session(connection, session_id, caller, lock=True)
                chat = access.get_chat_in(connection, session_id, chat_id, caller)
                return self._accept(connection, offer, session, chat, message, regenerate)

            accepted = await self._database.write(accept)
            if accepted.new:
                offer.begin()
        return accepted

    def _accept(
        self,
        connection: Connection,
        offer: Offer,
        session: Session,
        chat: Chat,
        message: dict[str, Any],
        regenerate: bool,
    ) -> Accepted:
        now = self._clock.now()
        message_id: str = message["id"]
        earlier = messages.find_chat_run_for_message(connection, chat.id, message_id)
        if earlier is not None and (not regenerate or earlier.run_id == chat.active_run_id):
            return Accepted(earlier.run_id, new=False)
        if session.status is SessionStatus.ARCHIVED:
            raise ConflictError(ARCHIVED)
        if not messages.claim_chat(connection, chat.id, offer.run.id):
            raise ConflictError(BUSY)
        if earlier is not None:
            messages.delete_after(connection, chat.id, message_id)
        else:
            history = orjson.dumps(history_to_json((from_ui_message(message),))).decode()
            stored = orjson.dumps(message).decode()
            if not messages.insert_user_message(connection, chat.id, message_id, stored, history, now):
                raise ConflictError("A message with this id exists in the chat already")
            title = title_from(message)
            if title is not None:
                messages.set_title_if_first(connection, chat.id, title, now)
        offer.insert(connection)
        stream.create(connection, offer.run.id, now)
        messages.insert_chat_run(
            connection,
            ChatRun(
                run_id=offer.run.id,
                chat_id=chat.id,
                user_message_id=message_id,
                assistant_message_id=new_id(),
                created_at=now,
            ),
        )
        sessions.touch_session(connection, session.id, now)
        self._sandboxes.touch(connection, session_sandbox_id(session.id))
        return Accepted(offer.run.id, new=True)

    async def find_active(self, caller: Caller, chat_id: str) -> str | None:
        """The run that answers in this chat now."""
        _, chat = await self._database.read(lambda found: access.get_chat(found, chat_id, caller))
        return chat.active_run_id

    async def get_run(self, caller: Caller, run_id: str) -> Run:
        """A turn's run, for those who may use its session. `NotFoundError` for everybody else."""

        def check(connection: Connection) -> None:
            chat_run = messages.find_chat_run(connection, run_id)
            chat = sessions.find_chat(connection, chat_run.chat_id) if chat_run else None
            if chat is None or not access.may_use(connection, chat.session_id, caller):
                raise NotFoundError("Run not found")

        await self._database.read(check)
        return await self._runs.get(run_id)

    async def stop(self, caller: Caller, chat_id: str) -> bool:
        """End the chat's running turn and wait until it has ended. False when there was none."""
        run_id = await self.find_active(caller, chat_id)
        if run_id is None:
            return False
        if await self._database.write(lambda connection: self._stop_unbegun(connection, run_id)):
            return True
        if not await self._runs.request_stop(run_id):
            return False
        try:
            await self._runs.wait(run_id, STOP_LIMIT)
        except TimedOutError as error:
            raise TimedOutError("Workflow did not terminate in time") from error
        return True

    def _stop_unbegun(self, connection: Connection, run_id: str) -> bool:
        """End a turn that waits for a place or for its next attempt: nobody else would, for a while."""
        now = self._clock.now()
        if not runs.cancel_queued(connection, run_id, now):
            return False
        found = _find_turn(connection, run_id)
        if found is None:
            stream.close(connection, run_id)
            return True
        turn, session_id = found
        outcome = Progress.restored(turn, read_recorded(connection, run_id)).outcome(
            TurnEnd.STOPPED, FinishReason.STOP
        )
        _Ending(run_id, turn, session_id, outcome, now)(connection)
        return True


class TurnHandler:
    """Handler of runs whose key is a chat id."""

    kind = KIND
    policy = RetryPolicy(attempts=5)

    def __init__(
        self,
        *,
        at_once: int,
        catalogue: Catalogue,
        tools: Toolset,
        sandboxes: SandboxService,
        sandbox_flow: SandboxFlow,
    ) -> None:
        self.at_once = at_once
        self._catalogue = catalogue
        self._tools = tools
        self._sandboxes = sandboxes
        self._sandbox_flow = sandbox_flow

    async def work(self, handle: RunHandle) -> None:
        run = handle.run
        found = await handle.read(lambda connection: _find_turn(connection, run.id))
        if found is None:  # its chat was deleted
            await handle.end(RunState.CANCELLED, lambda connection: stream.close(connection, run.id))
            return
        turn, session_id = found
        sandbox_id = session_sandbox_id(session_id)
        outcome = await run_turn(
            turn=turn,
            llm=self._catalogue,
            tools=self._tools,
            journal=RunJournal(handle),
            get_sandbox=lambda: self._sandbox_flow.ensure(sandbox_id),
            stopping=handle.stopping,
        )
        ending = _Ending(run.id, turn, session_id, outcome, handle.now())

        def finish(connection: Connection) -> None:
            ending(connection)
            self._sandboxes.touch(connection, sandbox_id)

        await handle.end(_ENDS[outcome.end], finish, result={"end": outcome.end.value}, error=_error(outcome))

    def give_up(self, connection: Connection, run: Run, error: dict[str, Any], now: datetime) -> None:
        """End the stream with the error, keep what there is of the answer, and free the chat."""
        found = _find_turn(connection, run.id)
        if found is None:
            stream.close(connection, run.id)
            return
        turn, session_id = found
        progress = Progress.restored(turn, read_recorded(connection, run.id))
        outcome = progress.outcome(TurnEnd.FAILED, FinishReason.ERROR, error=error["message"])
        _Ending(run.id, turn, session_id, outcome, now)(connection)


class _Ending:
    """The end of a turn, as work in one transaction."""

    def __init__(self, run_id: str, turn: Turn, session_id: str, outcome: TurnOutcome, at: datetime) -> None:
        self._run_id = run_id
        self._turn = turn
        self._session_id = session_id
        self._at = at
        self._message = orjson.dumps(outcome.message).decode()
        self._history = orjson.dumps(history_to_json(outcome.history)).decode()
        self._closing = lines(outcome.closing)

    def __call__(self, connection: Connection) -> None:
        turn = self._turn
        if self._closing:
            stream.append(connection, self._run_id, self._closing)
        stream.close(connection, self._run_id)
        messages.put_assistant_message(
            connection, turn.chat_id, turn.message_id, self._message, self._history, self._at
        )
        messages.release_chat(connection, turn.chat_id, self._run_id)
        sessions.touch_session(connection, self._session_id, self._at)


def _find_turn(connection: Connection, run_id: str) -> tuple[Turn, str] | None:
    """What a run is to do, and in which session. None when its chat is gone."""
    chat_run = messages.find_chat_run(connection, run_id)
    chat = sessions.find_chat(connection, chat_run.chat_id) if chat_run else None
    session = sessions.find_session(connection, chat.session_id) if chat else None
    if chat_run is None or chat is None or session is None:
        return None
    stored = messages.list_history(connection, chat.id)
    history = tuple(part for text in stored for part in history_from_json(orjson.loads(text)))
    turn = Turn(
        message_id=chat_run.assistant_message_id,
        chat_id=chat.id,
        model_id=chat.model_id,
        instructions=instructions(
            Surroundings(
                repository=f"{session.repo_owner}/{session.repo_name}" if session.repo_name else None,
                branch=session.branch,
            )
        ),
        history=repaired(history),
    )
    return turn, session.id


def _error(outcome: TurnOutcome) -> dict[str, Any] | None:
    if outcome.error is None:
        return None
    return {"code": "turn_failed", "kind": "upstream", "message": outcome.error}
