"""Turns for tests: a tool that notes its calls, and a turn that is played to its end."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fermata.sandboxes.contract import Sandbox
from fermata.testing.memory_journal import MemoryJournal
from fermata.turns.chunks import KEYS
from fermata.turns.contract import Llm, ToolContext
from fermata.turns.fold import fold
from fermata.turns.history import history_from_json, history_to_json
from fermata.turns.loop import run_turn
from fermata.turns.model import Chunk, Text, ToolDescription, TurnOutcome, UserMessage
from fermata.turns.progress import Turn
from fermata.turns.toolset import Toolset


@dataclass
class RecordingTool:
    """A tool that notes each call, and may wait, fail or act through a function."""

    name: str = "note"
    idempotent: bool = False
    act: Callable[[Any], Awaitable[Any]] | None = None
    inputs: list[Any] = field(default_factory=list)
    cancelled: int = 0

    @property
    def description(self) -> ToolDescription:
        return ToolDescription(self.name, "Notes its input.", {"type": "object", "properties": {}})

    async def run(self, input: Any, context: ToolContext) -> Any:
        self.inputs.append(input)
        try:
            return await self.act(input) if self.act else {"success": True, "noted": input}
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def no_sandbox() -> Sandbox:
    raise AssertionError("this turn needs no sandbox")


def a_turn(text: str = "hello", **values: Any) -> Turn:
    defaults: dict[str, Any] = {
        "message_id": "m1",
        "chat_id": "c1",
        "model_id": "test/model",
        "instructions": "Be brief.",
        "history": (UserMessage((Text(text),)),),
    }
    return Turn(**(defaults | values))


async def play(
    llm: Llm,
    *,
    tools: Toolset | None = None,
    journal: MemoryJournal | None = None,
    turn: Turn | None = None,
    stopping: asyncio.Event | None = None,
    sandbox: Sandbox | None = None,
) -> TurnOutcome:
    async def get_sandbox() -> Sandbox:
        return sandbox if sandbox is not None else await no_sandbox()

    return await run_turn(
        turn=turn or a_turn(),
        llm=llm,
        tools=tools or Toolset(),
        journal=journal if journal is not None else MemoryJournal(),
        get_sandbox=get_sandbox,
        stopping=stopping or asyncio.Event(),
    )


def check_stream(journal: MemoryJournal, outcome: TurnOutcome) -> list[Chunk]:
    """Every chunk a viewer sees, checked for what holds on every path."""
    chunks = journal.chunks + list(outcome.closing)
    kinds = [chunk["type"] for chunk in chunks]
    assert kinds.count("start") == kinds.count("finish") == 1
    assert (kinds[0], kinds[-1]) == ("start", "finish")
    assert kinds.count("start-step") == kinds.count("finish-step")
    assert all(chunk.keys() - {"type"} <= KEYS[chunk["type"]] for chunk in chunks)
    assert fold(chunks) == outcome.message
    assert history_from_json(history_to_json(outcome.history)) == outcome.history
    return chunks
