"""A model that says what it is told to: events, errors, and gates at which it waits."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fermata.turns.model import (
    AssistantMessage,
    FinishReason,
    ModelCall,
    ModelEvent,
    ModelFinished,
    TextAdded,
    TextEnded,
    TextStarted,
    ToolCall,
    ToolInputAdded,
    ToolInputEnded,
    ToolInputStarted,
    Usage,
    UserMessage,
)


class Gate:
    """The model waits here until `open` is called; `reached` tells when it has come so far."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._open = asyncio.Event()

    def open(self) -> None:
        self._open.set()

    async def wait(self) -> None:
        self.reached.set()
        await self._open.wait()


Script = Sequence[ModelEvent | Exception | Gate]


class ScriptedLlm:
    """Answers the n-th model call after the last user message with the n-th script.

    The position follows from the messages, so a call that is made again gets the same answer.
    """

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts
        self.calls: list[ModelCall] = []
        #: Calls that are under way; 0 when every stream was closed.
        self.open = 0

    @asynccontextmanager
    async def stream(self, call: ModelCall) -> AsyncIterator[AsyncIterator[ModelEvent]]:
        self.calls.append(call)
        self.open += 1
        try:
            yield self._events(self._scripts[_position(call)])
        finally:
            self.open -= 1

    async def _events(self, script: Script) -> AsyncIterator[ModelEvent]:
        for item in script:
            if isinstance(item, Gate):
                await item.wait()
            elif isinstance(item, Exception):
                raise item
            else:
                # As with a network, other tasks run between two events.
                await asyncio.sleep(0)
                yield item


def _position(call: ModelCall) -> int:
    position = 0
    for message in call.messages:
        if isinstance(message, UserMessage):
            position = 0
        elif isinstance(message, AssistantMessage):
            position += 1
    return position


def says(*deltas: str, part: str = "0") -> list[ModelEvent]:
    """A text part in pieces."""
    return [TextStarted(part), *(TextAdded(part, delta) for delta in deltas), TextEnded(part)]


def asks(call_id: str, tool: str, input: Any, *deltas: str) -> list[ModelEvent]:
    """A tool call; `deltas` are the pieces of its arguments as streamed."""
    return [
        ToolInputStarted(call_id, tool),
        *(ToolInputAdded(call_id, delta) for delta in deltas),
        ToolInputEnded(ToolCall(call_id, tool, input)),
    ]


def ends(reason: FinishReason = FinishReason.STOP, tokens_in: int = 10, tokens_out: int = 5) -> ModelFinished:
    return ModelFinished(reason, reason.value, Usage(tokens_in, tokens_out))
