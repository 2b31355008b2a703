"""A turn: accepted in one transaction, worked on by whichever worker has the run, ended in one transaction.

The message, the run, its stream and the chat's slot are committed together before the answer begins. At the
end the last chunks, the stored message and the free slot are committed together, and with them the beginning
of the next message that waits (`queue.py`).
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import orjson

from fermata.accounts.model import Caller
from fermata.flows.journal import RunJournal, lines, read_recorded
from fermata.flows.provision import ARCHIVED
from fermata.flows.queue import (
    CANCELLED,
    KIND,
    QUEUE_LIMIT,
    Waiting,
    begin,
    begin_next,
    decide_run,
    message_to_store,
    store_message,
)
from fermata.flows.sandbox import SandboxFlow
from fermata.kit.clock import Clock
from fermata.kit.database import Connection, Database
from fermata.kit.errors import ConflictError, LimitReachedError, NotFoundError, TimedOutError
from fermata.runs import store as runs
from fermata.runs.contract import RunHandle
from fermata.runs.model import RetryPolicy, Run, RunState
from fermata.runs.service import Offer, RunService
from fermata.sandboxes.model import session_sandbox_id
from fermata.sandboxes.service import SandboxService
from fermata.sessions import access, deletion, messages, queue
from fermata.sessions import store as sessions
from fermata.sessions.feed import tell
from fermata.sessions.model import Busy, Chat, Received, ReceivedState, Session, SessionStatus
from fermata.stream import store as stream
from fermata.turns.history import history_from_json, history_to_json, repaired
from fermata.turns.llms.catalogue import Catalogue
from fermata.turns.loop import run_turn
from fermata.turns.model import FinishReason, TurnEnd, TurnOutcome
from fermata.turns.progress import Progress, Turn
from fermata.turns.prompt import Surroundings, instructions
from fermata.turns.toolset import Toolset

#: How long a stop waits for the turn to end. It goes on ending when this has passed.
STOP_LIMIT = timedelta(seconds=8)

BUSY = "Another workflow is already running for this chat"
ID_TAKEN = "A message with this id exists in the chat already"

_ENDS = {
    TurnEnd.COMPLETED: RunState.COMPLETED,
    TurnEnd.STOPPED: RunState.CANCELLED,
    TurnEnd.FAILED: RunState.FAILED,
}


@dataclass(frozen=True, slots=True)
class Accepted:
    #: The run to watch for the answer.
    run_id: str
    #: Where the message waits; None once a turn has taken it.
    waiting: Waiting | None = None
    #: Whether the run begins now.
    new: bool = False


@dataclass(frozen=True, slots=True)
class TurnRun:
    id: str
    state: RunState


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
        busy: Busy = Busy.QUEUE,
    ) -> Accepted:
        """Take a user's UI message and start the turn that answers it, or while another turn runs do with it
        as `busy` says.

        Idempotent by the message's id: the same message again rejoins its run, running or ended, or its place
        in the queue. `ConflictError` when it was cancelled. `regenerate` answers an ended message anew,
        without what followed it; `ConflictError` while another turn runs.
        """
        text, history = message_to_store(message)
        with self._runs.offer(KIND, chat_id, {}) as offer:

            def accept(connection: Connection) -> Accepted:
                if busy is Busy.INTERRUPT:
                    self._interrupt(connection, caller, session_id, chat_id, message["id"])
                # The lock: an archived session gets no more turns, and a message sent twice at once one.
                session = access.get_session(connection, session_id, caller, lock=True)
                chat = access.get_chat_in(connection, session_id, chat_id, caller)
                now = self._clock.now()
                received = queue.find(connection, chat_id, message["id"])
                if received is not None and not regenerate:
                    return _rejoin(connection, received, chat)
                if received is not None and received.state is ReceivedState.ANSWERED:
                    return self._regenerate(connection, offer, session, chat, received, now)
                if received is not None:
                    return _rejoin(connection, received, chat)
                received = Received(
                    chat_id=chat_id,
                    id=message["id"],
                    state=ReceivedState.QUEUED,
                    busy=busy,
                    position=0,
                    run_id=offer.run.id,
                    step=None,
                    message=text,
                    history=history,
                    created_at=now,
                    ended_at=None,
                )
                return self._receive(connection, offer, session, chat, received)

            accepted = await self._database.write(accept)
            if accepted.new:
                offer.begin()
        return accepted

    def _interrupt(
        self, connection: Connection, caller: Caller, session_id: str, chat_id: str, message_id: str
    ) -> None:
        """Ask the running turn to end, unless this message was received before. Before the session is locked,
        because whoever ends a run locks in this order too."""
        chat = access.get_chat_in(connection, session_id, chat_id, caller)
        if chat.active_run_id is not None and queue.find(connection, chat_id, message_id) is None:
            runs.request_stop(connection, chat.active_run_id, self._clock.now())

    def _receive(
        self, connection: Connection, offer: Offer, session: Session, chat: Chat, received: Received
    ) -> Accepted:
        """A message that was not there before: begin it, queue it or refuse it."""
        now = received.created_at
        if session.status is SessionStatus.ARCHIVED:
            raise ConflictError(ARCHIVED)
        sessions.touch_session(connection, session.id, now)
        self._sandboxes.touch(connection, session_sandbox_id(session.id))
        if chat.active_run_id is None and not queue.order(connection, chat.id):
            answered = replace(
                received, state=ReceivedState.ANSWERED, message=None, history=None, ended_at=now
            )
            queue.insert(connection, answered)
            assert received.message is not None
            assert received.history is not None
            if not store_message(connection, chat.id, received.id, received.message, received.history, now):
                raise ConflictError(ID_TAKEN)
            begin(connection, session, chat.id, received.id, offer.run.id, offer.insert, now)
            return Accepted(offer.run.id, new=True)
        if received.busy is Busy.REJECT:
            raise ConflictError(BUSY)
        return self._enqueue(connection, session, chat, received)

    def _enqueue(self, connection: Connection, session: Session, chat: Chat, received: Received) -> Accepted:
        active = messages.find_chat_run(connection, chat.active_run_id) if chat.active_run_id else None
        # The answer that is being written has an id too, which every viewer knows already.
        answer_id = active.assistant_message_id if active else None
        if received.id == answer_id or messages.find_message(connection, chat.id, received.id) is not None:
            raise ConflictError(ID_TAKEN)
        if len(queue.order(connection, chat.id)) >= QUEUE_LIMIT:
            raise LimitReachedError(f"At most {QUEUE_LIMIT} messages can wait in a chat")
        place = queue.enqueue(connection, received)
        run_id = decide_run(received, chat.active_run_id)
        if run_id == received.run_id:  # so that viewers can wait there
            stream.create(connection, run_id, received.created_at)
        data = {"chatId": chat.id, "messageId": received.id, "runId": run_id}
        more = {"position": place, "busy": received.busy.value}
        tell(connection, session, "message.queued", received.created_at, **data, **more)
        if chat.active_run_id is None:
            begin_next(connection, session, chat.id, received.created_at)
        elif received.busy is Busy.INTERRUPT and not self._stop_unbegun(connection, chat.active_run_id):
            runs.request_stop(connection, chat.active_run_id, received.created_at)
        return Accepted(run_id, waiting=Waiting(received, place, run_id))

    def _regenerate(
        self,
        connection: Connection,
        offer: Offer,
        session: Session,
        chat: Chat,
        received: Received,
        now: datetime,
    ) -> Accepted:
        again = _rejoin(connection, received, chat)
        if again.run_id == chat.active_run_id:
            return again
        if session.status is SessionStatus.ARCHIVED:
            raise ConflictError(ARCHIVED)
        if chat.active_run_id is not None:
            raise ConflictError(BUSY)
        if received.step is not None and received.history is not None:
            # It was part of a turn that is deleted here.
            messages.set_history(connection, chat.id, received.id, received.history)
        deletion.delete_after(connection, chat.id, received.id)
        sessions.touch_session(connection, session.id, now)
        self._sandboxes.touch(connection, session_sandbox_id(session.id))
        begin(connection, session, chat.id, received.id, offer.run.id, offer.insert, now)
        return Accepted(offer.run.id, new=True)

    async def find_active(self, caller: Caller, chat_id: str) -> str | None:
        """The run that answers in this chat now."""
        _, chat = await self._database.read(lambda found: access.get_chat(found, chat_id, caller))
        return chat.active_run_id

    async def get_run(self, caller: Caller, run_id: str) -> TurnRun:
        """A turn's run, begun or not, for those who may use its session; `NotFoundError` for others."""

        def read(connection: Connection) -> TurnRun:
            chat_run = messages.find_chat_run(connection, run_id)
            received = None if chat_run else queue.find_for_run(connection, run_id)
            known = chat_run or received
            chat = sessions.find_chat(connection, known.chat_id) if known else None
            if chat is None or not access.may_use(connection, chat.session_id, caller):
                raise NotFoundError("Run not found")
            if received is not None:
                cancelled = received.state is ReceivedState.CANCELLED
                return TurnRun(run_id, RunState.CANCELLED if cancelled else RunState.QUEUED)
            run = runs.find(connection, run_id)
            if run is None:
                raise NotFoundError("Run not found")
            return TurnRun(run.id, run.state)

        return await self._database.read(read)

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
        _Ending(run_id, RunState.CANCELLED, turn, session_id, outcome, now)(connection)
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
        ending = _Ending(run.id, _ENDS[outcome.end], turn, session_id, outcome, handle.now())

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
        _Ending(run.id, RunState.FAILED, turn, session_id, outcome, now)(connection)


class _Ending:
    """The end of a turn, and the beginning of the next that waits in its chat, as work in one transaction."""

    def __init__(
        self,
        run_id: str,
        state: RunState,
        turn: Turn,
        session_id: str,
        outcome: TurnOutcome,
        at: datetime,
    ) -> None:
        self._run_id = run_id
        self._state = state
        self._turn = turn
        self._session_id = session_id
        self._at = at
        self._message = orjson.dumps(outcome.message).decode()
        self._history = orjson.dumps(history_to_json(outcome.history)).decode()
        self._closing = lines(outcome.closing)

    def __call__(self, connection: Connection) -> None:
        turn, at = self._turn, self._at
        # The lock: whoever queues a message now comes before this, or finds that no turn is running.
        session = sessions.lock_session(connection, self._session_id)
        if self._closing:
            stream.append(connection, self._run_id, self._closing)
        stream.close(connection, self._run_id)
        messages.put_assistant_message(
            connection, turn.chat_id, turn.message_id, self._message, self._history, at
        )
        released = messages.release_chat(connection, turn.chat_id, self._run_id)
        if session is None or not released:  # deleted meanwhile
            return
        sessions.touch_session(connection, session.id, at)
        data = {"chatId": turn.chat_id, "messageId": turn.message_id, "runId": self._run_id}
        tell(connection, session, "run.ended", at, status=self._state.value, **data)
        for run_id in queue.end_steering(connection, turn.chat_id):
            stream.create(connection, run_id, at)
        begin_next(connection, session, turn.chat_id, at)


def _rejoin(connection: Connection, received: Received, chat: Chat) -> Accepted:
    """What to watch for a message that was received before."""
    if received.state is ReceivedState.CANCELLED:
        raise ConflictError(CANCELLED)
    if received.state is ReceivedState.QUEUED:
        waiting = queue.order(connection, chat.id)
        run_id = decide_run(received, chat.active_run_id)
        if received.id in waiting:
            place = waiting.index(received.id) + 1
            return Accepted(run_id, waiting=Waiting(received, place, run_id))
        # The running turn has taken it between the two looks.
        return Accepted(run_id)
    newest = messages.find_chat_run_for_message(connection, chat.id, received.id)
    return Accepted(newest.run_id if newest else received.run_id)


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
