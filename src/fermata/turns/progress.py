"""How far a turn has come: what the journal holds, what viewers have, what the model has said.

Chunks are emitted first and written with the next entry of the journal, so that each becomes
visible together with the fact that it shows. What is not written when the turn ends is part of
the outcome's closing chunks.
"""

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fermata.turns import chunks as make
from fermata.turns.chunks import merge_deltas
from fermata.turns.contract import Journal, Recorded, Steered
from fermata.turns.fold import Fold
from fermata.turns.history import call_ids, message_from_json, message_to_json
from fermata.turns.model import (
    AssistantMessage,
    Chunk,
    FinishReason,
    Message,
    ModelFinished,
    Text,
    ToolCall,
    ToolMessage,
    ToolResult,
    TurnEnd,
    TurnOutcome,
    Usage,
)

T = TypeVar("T")

CANCELLED = "Cancelled"
NO_RESULT = "The turn failed before this call had a result."

#: What the model is told in place of a result: by whether the user stopped the turn, and whether the call
#: had begun.
_MISSING = {
    (True, True): "The user stopped the turn while this call ran. It was ended; it may have acted in part.",
    (True, False): "The user stopped the turn before this call was run.",
    (False, True): "The turn failed while this call ran. Whether it took effect is not known: check before "
    "repeating it.",
    (False, False): "The turn failed before this call was run.",
}


@dataclass(frozen=True, slots=True)
class Turn:
    """Everything a turn starts from. The same values must be given when it is picked up again."""

    #: Id of the assistant's UI message.
    message_id: str
    chat_id: str
    model_id: str
    instructions: str
    #: The chat so far, the user's new message last; repaired (`history.repaired`). Sent whole: nothing is
    #: summarised or left out, so a chat that outgrows the model's window ends in the vendor's error.
    history: tuple[Message, ...]
    #: Environment of the commands that tools run.
    environment: dict[str, str] = field(default_factory=dict)
    max_steps: int = 111


@dataclass(frozen=True, slots=True)
class Step:
    """A finished model call, as the journal keeps it."""

    #: Number of its `start-step` in the stream, counting from 1: calls that were cut count too.
    number: int
    answer: AssistantMessage
    finished: ModelFinished

    @property
    def calls(self) -> list[ToolCall]:
        return [part for part in self.answer.parts if isinstance(part, ToolCall)]

    def to_json(self) -> dict[str, Any]:
        usage = self.finished.usage
        return {
            "number": self.number,
            "answer": message_to_json(self.answer),
            "reason": self.finished.reason.value,
            "rawReason": self.finished.raw_reason,
            "usage": {name: getattr(usage, name) for name in Usage.__dataclass_fields__},
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Step":
        answer = message_from_json(data["answer"])
        assert isinstance(answer, AssistantMessage)
        reason = FinishReason(data["reason"])
        return Step(data["number"], answer, ModelFinished(reason, data["rawReason"], Usage(**data["usage"])))


class Progress:
    def __init__(self, turn: Turn, journal: Journal | None) -> None:
        self.turn = turn
        self._maybe_journal = journal
        self._pending: list[Chunk] = []
        self._unwritten = False
        self.fold = Fold(turn.message_id)
        self.steps: list[Step] = []
        #: Calls that were intended, in this process or an earlier one.
        self.intended: set[str] = set()
        self.results: dict[str, ToolResult] = {}
        #: What the user has sent meanwhile, by the number of the first model call that sees it.
        self.steered: dict[int, tuple[Steered, ...]] = {}
        #: Call ids that a new call must not have.
        self.taken = call_ids(turn.history)

    @classmethod
    def restored(cls, turn: Turn, recorded: Recorded) -> "Progress":
        """A turn as it was committed, to be closed with `outcome` and not run any more."""
        progress = cls(turn, None)
        progress._restore(recorded)
        return progress

    async def load(self) -> None:
        self._restore(await self._written(self._journal.load()))

    def _restore(self, recorded: Recorded) -> None:
        self.fold.add_all(recorded.chunks)
        self.steps = [Step.from_json(record) for record in recorded.steps]
        self.intended = set(recorded.effects)
        self.steered = dict(recorded.steered)
        for call_id, effect in recorded.effects.items():
            if effect.result is not None:
                self.results[call_id] = ToolResult(
                    call_id, effect.tool, effect.result.get("output"), effect.result.get("error")
                )
        self.taken |= self.fold.call_ids()
        if not self.fold.started:
            self.emit(make.start(self.turn.message_id, self.turn.model_id))

    @property
    def _journal(self) -> Journal:
        assert self._maybe_journal is not None, "a restored turn is not recorded any more"
        return self._maybe_journal

    @property
    def journal_failed(self) -> bool:
        """Whether an entry could not be written: then nothing more may be said about the turn here."""
        return self._unwritten

    @property
    def answering(self) -> bool:
        """Whether the newest step of the stream is a model call that has no record."""
        recorded = self.steps[-1].number if self.steps else 0
        return self.fold.steps_started > recorded

    def emit(self, *chunks: Chunk) -> None:
        self.fold.add_all(chunks)
        self._pending.extend(chunks)

    async def flush(self) -> None:
        if self._pending:
            await self._written(self._journal.append(self._take()))

    async def take_steering(self) -> None:
        """Let the next model call see what the user has sent meanwhile."""
        number, pending = len(self.steps), merge_deltas(self._pending)
        taken = tuple(await self._written(self._journal.take_steering(number, pending)))
        if taken:
            self._pending = []
            self.fold.add_all(steered.chunk for steered in taken)
            self.steered[number] = self.steered.get(number, ()) + taken

    async def record_step(self, step: Step) -> None:
        record = self._journal.record_step(len(self.steps), step.to_json(), self._take())
        await self._written(record)
        self.steps.append(step)

    async def record_intent(self, call: ToolCall) -> None:
        number = len(self.steps) - 1
        await self._written(self._journal.record_intent(number, call.call_id, call.tool, call.input))
        self.intended.add(call.call_id)

    async def record_result(self, result: ToolResult) -> None:
        if result.error is None:
            record = {"output": result.output}
            self.emit(make.tool_output(result.call_id, result.output))
        else:
            record = {"error": result.error}
            self.emit(make.tool_output_error(result.call_id, result.error))
        await self._written(self._journal.record_result(result.call_id, record, self._take()))
        self.results[result.call_id] = result

    def _take(self) -> list[Chunk]:
        chunks, self._pending = merge_deltas(self._pending), []
        return chunks

    async def _written(self, entry: Awaitable[T]) -> T:
        self._unwritten = True
        result = await entry
        self._unwritten = False
        return result

    def finish_step(self) -> None:
        """End the newest step, whose calls all have results, and tell the page what it took."""
        if self.fold.step_open:
            reasons = [(step.finished.reason, step.finished.raw_reason) for step in self.steps]
            metadata = make.step_metadata(reasons, self.steps[-1].finished.usage, self.usage())
            self.emit(make.finish_step(), metadata)

    def usage(self) -> Usage:
        return sum((step.finished.usage for step in self.steps), Usage())

    def messages(self, end: TurnEnd = TurnEnd.COMPLETED) -> tuple[Message, ...]:
        """What the model sees of this turn; a call that has no result because of `end` is given one."""
        messages: list[Message] = []
        for number, step in enumerate(self.steps):
            messages += (steered.message for steered in self.steered.get(number, ()))
            if step.answer.parts:
                messages.append(step.answer)
            if step.calls:
                messages.append(ToolMessage(tuple(self._result(call, end) for call in step.calls)))
        messages += (steered.message for steered in self.steered.get(len(self.steps), ()))
        return tuple(messages)

    def _result(self, call: ToolCall, end: TurnEnd) -> ToolResult:
        if call.broken is not None:
            return ToolResult(call.call_id, call.tool, None, call.broken)
        why = _MISSING[end is TurnEnd.STOPPED, call.call_id in self.intended]
        return self.results.get(call.call_id) or ToolResult(call.call_id, call.tool, None, why)

    def cut_text(self) -> tuple[Message, ...]:
        """What the user has read of an answer that will not be finished."""
        if not self.answering:
            return ()
        texts = [part["text"] for part in self.fold.current_step() if part["type"] == "text"]
        return (AssistantMessage((Text("".join(texts)),)),) if any(texts) else ()

    def say(self, text: str) -> AssistantMessage:
        """A sentence of ours to the user, as a step of its own."""
        self.emit(make.start_step())
        self.emit(*make.text_part(f"{self.fold.steps_started}-notice", text), make.finish_step())
        return AssistantMessage((Text(text),))

    def outcome(
        self,
        end: TurnEnd,
        reason: FinishReason,
        *,
        said: tuple[Message, ...] = (),
        error: str | None = None,
    ) -> TurnOutcome:
        """Close the stream and the history. `said` is what follows the recorded steps in the history."""
        said = said or self.cut_text()
        if end is not TurnEnd.COMPLETED:
            self._close(CANCELLED if end is TurnEnd.STOPPED else NO_RESULT)
        if error is not None:
            self.emit(make.error(error))
        self.emit(make.finish(reason))
        return TurnOutcome(
            end=end,
            closing=tuple(self._take()),
            message=self.fold.message(),
            history=self.messages(end) + said,
            usage=self.usage(),
            error=error,
        )

    def _close(self, reason: str) -> None:
        self.emit(*self.fold.closing_chunks(reason))
        # Pages send the chat again by themselves when the last step holds nothing but answered calls. An
        # empty step at the end keeps them from starting what the user has just stopped.
        if any("toolCallId" in part for part in self.fold.current_step()):
            self.emit(make.start_step(), make.finish_step())
