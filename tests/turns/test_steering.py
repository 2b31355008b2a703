"""Messages that a running turn takes on its way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from fermata.testing.memory_journal import JournalCrashError, MemoryJournal
from fermata.testing.scripted_llm import Gate, Script, asks, ends, says
from fermata.testing.turns import RecordingTool, check_stream, play
from fermata.turns.contract import Steered
from fermata.turns.model import (
    AssistantMessage,
    FinishReason,
    ModelCall,
    ModelEvent,
    Text,
    TurnEnd,
    UserMessage,
)
from fermata.turns.toolset import Toolset

TOOLS = ends(FinishReason.TOOL_CALLS)
SCRIPTS: list[Script] = [
    [*says("I note."), *asks("a", "note", {"x": 1}), TOOLS],
    [*says("Again."), *asks("b", "note", {"x": 2}), TOOLS],
    [*says("Done."), ends()],
]


class CountingLlm:
    """Answers by how often it has answered before."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts
        self.calls: list[ModelCall] = []

    @asynccontextmanager
    async def stream(self, call: ModelCall) -> AsyncIterator[AsyncIterator[ModelEvent]]:
        self.calls.append(call)
        yield self._events(sum(isinstance(message, AssistantMessage) for message in call.messages))

    async def _events(self, number: int) -> AsyncIterator[ModelEvent]:
        for item in self._scripts[number]:
            if isinstance(item, Gate):
                await item.wait()
                continue
            assert not isinstance(item, Exception)
            await asyncio.sleep(0)
            yield item


def steered(name: str) -> Steered:
    return Steered(name, UserMessage((Text(name),)))


def shape(messages: tuple[object, ...]) -> list[str]:
    """The history in short: texts of users, names of the rest."""
    return [
        message.parts[0].text if isinstance(message, UserMessage) else type(message).__name__
        for message in messages
    ]


def steering_tools(journal: MemoryJournal, *names: str) -> Toolset:
    """A tool during whose first call the user sends something."""

    async def act(input: dict[str, int]) -> None:
        if input["x"] == 1:
            journal.waiting.extend(steered(name) for name in names)

    return Toolset([RecordingTool(idempotent=True, act=act)])


async def test_the_next_model_call_sees_it_after_the_results_and_later_ones_in_the_same_place() -> None:
    journal, llm = MemoryJournal(), CountingLlm(*SCRIPTS)
    outcome = await play(llm, tools=steering_tools(journal, "left", "right"), journal=journal)
    chunks = check_stream(journal, outcome)
    wanted = ["AssistantMessage", "ToolMessage", "left", "right", "AssistantMessage", "ToolMessage"]
    assert [shape(call.messages[1:]) for call in llm.calls] == [[], wanted[:4], wanted]
    assert shape(outcome.history) == [*wanted, "AssistantMessage"]
    kinds = [chunk["type"] for chunk in chunks if chunk["type"] in ("data-steer", "start-step")]
    assert kinds == ["start-step", "data-steer", "data-steer", "start-step", "start-step"]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("entry", range(16))
async def test_a_turn_that_was_cut_anywhere_sees_it_once_and_in_the_same_place(
    entry: int, kept: bool
) -> None:
    journal, llm = MemoryJournal(), CountingLlm(*SCRIPTS)
    sent = False

    async def act(input: dict[str, int]) -> None:
        nonlocal sent
        if input["x"] == 1 and not sent:
            sent = True
            journal.waiting.append(steered("left"))

    tools = Toolset([RecordingTool(idempotent=True, act=act)])
    journal.crash_at, journal.kept = entry, kept
    with suppress(JournalCrashError):  # or it has fewer entries, and is picked up when it was over
        await play(llm, tools=tools, journal=journal)
    journal.crash_at = None
    outcome = await play(llm, tools=tools, journal=journal)
    check_stream(journal, outcome)
    assert [part.get("id") for part in outcome.message["parts"] if part["type"] == "data-steer"] == ["left"]
    seen = shape(outcome.history)
    assert seen.count("left") == 1
    at = seen.index("left")
    for call in llm.calls:
        inner = shape(call.messages[1:])
        assert "left" not in inner or inner[: at + 1] == seen[: at + 1]
    # At the latest before the call after the one that was being made when it came.
    assert seen[:at].count("AssistantMessage") in (1, 2)


async def test_a_stopped_turn_keeps_what_it_has_taken_and_takes_no_more() -> None:
    gate, stopping, journal = Gate(), asyncio.Event(), MemoryJournal()
    llm = CountingLlm(SCRIPTS[0], [*says("Half")[:2], gate])
    task = asyncio.create_task(
        play(llm, tools=steering_tools(journal, "left"), journal=journal, stopping=stopping)
    )
    await gate.reached.wait()
    journal.waiting.append(steered("late"))
    stopping.set()
    outcome = await task
    check_stream(journal, outcome)
    assert outcome.end is TurnEnd.STOPPED
    assert shape(outcome.history) == ["AssistantMessage", "ToolMessage", "left", "AssistantMessage"]
    assert [item.message_id for item in journal.waiting] == ["late"]
