"""The seams of a turn: the model it calls, the tools it uses, the journal that makes it durable."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from fermata.sandboxes.contract import Sandbox
from fermata.turns.model import Chunk, ModelCall, ModelEvent, Text, ToolDescription, UserMessage


class Llm(Protocol):
    """A door to one or many models."""

    def stream(self, call: ModelCall) -> AbstractAsyncContextManager[AsyncIterator[ModelEvent]]:
        """Events of one model call. Leaving the block ends the request. Raises `ModelError`, before or
        between events, with a sentence fit for users and no secret; `retriable` errors before the
        first event were already retried by the door."""
        ...


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool may use while it runs one call."""

    call_id: str
    #: The session's sandbox, woken when it sleeps; ask again for each call, it may have been replaced.
    get_sandbox: Callable[[], Awaitable[Sandbox]]
    #: Environment for commands run on behalf of the model.
    environment: dict[str, str] = field(default_factory=dict)


class Tool(Protocol):
    @property
    def description(self) -> ToolDescription: ...

    @property
    def idempotent(self) -> bool:
        """True when running a call twice is the same as once; decides what happens after a crash."""
        ...

    async def run(self, input: Any, context: ToolContext) -> Any:
        """Check `input` (untrusted JSON from the model) and do the work; return plain JSON.

        Failures that the model should see are results (`{"success": false, "error": ...}`). Cancellation ends
        everything the call started before it returns."""
        ...


@dataclass(frozen=True, slots=True)
class Effect:
    """One tool call in the ledger. `result` None: intended, and whether it acted is not known."""

    call_id: str
    tool: str
    result: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Steered:
    """A user's message that a running turn has taken."""

    message_id: str
    message: UserMessage

    @property
    def chunk(self) -> Chunk:
        """What viewers are told. Files are left to the stored message."""
        text = "".join(part.text for part in self.message.parts if isinstance(part, Text))
        return {
            "type": "data-steer",
            "id": self.message_id,
            "data": {"messageId": self.message_id, "text": text},
        }


@dataclass(frozen=True, slots=True)
class Recorded:
    """Everything a turn had committed when it was picked up; empty for a new one."""

    chunks: tuple[Chunk, ...] = ()
    #: One JSON record per finished model call, in order; the loop defines and reads their content.
    steps: tuple[dict[str, Any], ...] = ()
    #: By call id.
    effects: dict[str, Effect] = field(default_factory=dict)
    #: By the number of the model call that was the first to see them, in their order.
    steered: dict[int, tuple[Steered, ...]] = field(default_factory=dict)


class Journal(Protocol):
    """The durable memory of one turn. Each method is one transaction, committed when it returns; the
    chunks given with it become visible to viewers with it. Every method raises `LeaseLostError` once
    another worker owns the turn, and then nothing was written."""

    async def load(self) -> Recorded: ...

    async def append(self, chunks: Sequence[Chunk]) -> None:
        """Store chunks. The order of calls is the order in the stream."""
        ...

    async def take_steering(self, number: int, chunks: Sequence[Chunk]) -> Sequence[Steered]:
        """Take the messages that were sent for the running turn, before its model call `number`: each is
        taken once, and stored with `chunks` and then its own chunk. Empty: nothing was written."""
        ...

    async def record_step(self, number: int, record: dict[str, Any], chunks: Sequence[Chunk]) -> None:
        """The model call `number` (0, 1, ...) has ended with this response. Once per number."""
        ...

    async def record_intent(self, number: int, call_id: str, tool: str, input: Any) -> None:
        """This tool call is about to act. Once per call; `number` is the step that asked for it."""
        ...

    async def record_result(self, call_id: str, result: dict[str, Any], chunks: Sequence[Chunk]) -> None:
        """This tool call, whose intent was recorded, has acted or was refused. Once per call."""
        ...
