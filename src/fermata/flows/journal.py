"""The durable memory of one turn: its chunks in the stream, its steps and effects with the run."""

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from fermata.kit.database import Connection
from fermata.runs import store as runs
from fermata.runs.contract import RunHandle
from fermata.runs.model import EffectRecord, Step
from fermata.sessions import messages, queue
from fermata.sessions import store as sessions
from fermata.sessions.feed import tell
from fermata.sessions.model import Received
from fermata.stream import store as stream
from fermata.turns.contract import Effect, Recorded, Steered
from fermata.turns.history import history_from_json
from fermata.turns.model import Chunk, UserMessage


def lines(chunks: Sequence[Chunk]) -> list[str]:
    return [orjson.dumps(chunk).decode() for chunk in chunks]


def read_recorded(connection: Connection, run_id: str) -> Recorded:
    """Everything a turn has committed. The stream of a run has the run's id."""
    steered: dict[int, tuple[Steered, ...]] = {}
    for received in queue.list_steered(connection, run_id):
        assert received.step is not None
        steered[received.step] = (*steered.get(received.step, ()), _steered(received))
    return Recorded(
        chunks=tuple(orjson.loads(line) for line in stream.read_all(connection, run_id)),
        steps=tuple(step.record for step in runs.list_steps(connection, run_id)),
        effects={
            effect.id: Effect(effect.id, effect.name, effect.result)
            for effect in runs.list_effects(connection, run_id)
        },
        steered=steered,
    )


def _steered(received: Received) -> Steered:
    (message,) = history_from_json(orjson.loads(received.history or "[]"))
    assert isinstance(message, UserMessage)
    return Steered(received.id, message)


class RunJournal:
    """`turns.contract.Journal` on the database. Every entry proves the run's fence in its transaction."""

    def __init__(self, handle: RunHandle) -> None:
        self._handle = handle
        self._id = handle.run.id

    async def load(self) -> Recorded:
        return await self._handle.write(lambda connection: read_recorded(connection, self._id))

    async def append(self, chunks: Sequence[Chunk]) -> None:
        await self._write(chunks)

    async def take_steering(self, number: int, chunks: Sequence[Chunk]) -> Sequence[Steered]:
        chat_id = self._handle.run.key
        if not await self._handle.read(lambda connection: queue.has_steering(connection, chat_id)):
            return ()
        return await self._handle.write(lambda connection: self._take(connection, chat_id, number, chunks))

    def _take(
        self, connection: Connection, chat_id: str, number: int, chunks: Sequence[Chunk]
    ) -> Sequence[Steered]:
        now = self._handle.now()
        taken = []
        for waiting in queue.list_steering(connection, chat_id):
            received = queue.mark_steered(connection, waiting, self._id, number, now)
            if received is not None and waiting.message is not None:
                # Its place in the model's history is inside of the turn's, so it has none of its own.
                messages.insert_user_message(connection, chat_id, waiting.id, waiting.message, None, now)
                taken.append(_steered(received))
        if not taken:
            return ()
        stream.append(connection, self._id, lines([*chunks, *(steered.chunk for steered in taken)]))
        chat = sessions.find_chat(connection, chat_id)
        session = sessions.find_session(connection, chat.session_id) if chat else None
        if session is not None:
            for steered in taken:
                data = {"chatId": chat_id, "messageId": steered.message_id, "runId": self._id}
                tell(connection, session, "message.answered", now, **data)
        return taken

    async def record_step(self, number: int, record: dict[str, Any], chunks: Sequence[Chunk]) -> None:
        step = Step(self._id, number, record, self._handle.now())
        await self._write(chunks, lambda connection: runs.insert_step(connection, step))

    async def record_intent(self, number: int, call_id: str, tool: str, input: Any) -> None:
        effect = EffectRecord(self._id, call_id, number, tool, input, None, self._handle.now(), None)
        await self._write((), lambda connection: runs.insert_effect(connection, effect))

    async def record_result(self, call_id: str, result: dict[str, Any], chunks: Sequence[Chunk]) -> None:
        now = self._handle.now()

        def record(connection: Connection) -> None:
            runs.end_effect(connection, self._id, call_id, result, now)

        await self._write(chunks, record)

    async def _write(
        self, chunks: Sequence[Chunk], work: Callable[[Connection], None] = lambda _: None
    ) -> None:
        encoded = lines(chunks)

        def write(connection: Connection) -> None:
            work(connection)
            if encoded:
                stream.append(connection, self._id, encoded)

        await self._handle.write(write)
