"""Whole turns, however they end, as the published `ai` package sees them."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from fermata.kit.errors import ModelError
from fermata.testing.memory_journal import JournalCrashError, MemoryJournal
from fermata.testing.scripted_llm import Gate, ScriptedLlm, asks, ends, says
from fermata.testing.turns import RecordingTool, a_turn, check_stream, play
from fermata.turns.model import FinishReason, TurnOutcome
from fermata.turns.toolset import Toolset

FoldInNode = Callable[[list[dict[str, Any]]], dict[str, Any]]
TOOLS = ends(FinishReason.TOOL_CALLS)
WORK = [*says("I ", "note."), *asks("a", "note", {"x": 1}, '{"x": ', "1}"), TOOLS]


async def completed(journal: MemoryJournal) -> TurnOutcome:
    return await play(ScriptedLlm(WORK, [*says("Done."), ends()]), tools=note(), journal=journal)


async def limited(journal: MemoryJournal) -> TurnOutcome:
    return await play(ScriptedLlm(WORK), tools=note(), journal=journal, turn=a_turn(max_steps=1))


async def failed_in_an_answer(journal: MemoryJournal) -> TurnOutcome:
    script = [*says("Well"), *asks("b", "note", {})[:1], ModelError("The vendor is away.")]
    return await play(ScriptedLlm(WORK, script), tools=note(), journal=journal)


async def stopped_in_an_answer(journal: MemoryJournal) -> TurnOutcome:
    gate, stopping = Gate(), asyncio.Event()
    llm = ScriptedLlm(WORK, [*says("Half")[:2], gate])
    task = asyncio.create_task(play(llm, tools=note(), journal=journal, stopping=stopping))
    await gate.reached.wait()
    stopping.set()
    return await task


async def stopped_in_a_tool(journal: MemoryJournal) -> TurnOutcome:
    stopping, begun = asyncio.Event(), asyncio.Event()

    async def forever(input: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    tools = Toolset([RecordingTool(act=forever)])
    task = asyncio.create_task(play(ScriptedLlm(WORK), tools=tools, journal=journal, stopping=stopping))
    await begun.wait()
    stopping.set()
    return await task


async def resumed(journal: MemoryJournal) -> TurnOutcome:
    llm = ScriptedLlm(WORK, [*says("Done."), ends()])
    for entry in (3, 5, 7, 9):
        journal.crash_at, journal.kept = entry, True
        with pytest.raises(JournalCrashError):
            await play(llm, tools=note(), journal=journal)
    journal.crash_at = None
    return await play(llm, tools=note(), journal=journal)


def note() -> Toolset:
    return Toolset([RecordingTool()])


@pytest.mark.parametrize(
    "turn", [completed, limited, failed_in_an_answer, stopped_in_an_answer, stopped_in_a_tool, resumed]
)
async def test_both_versions_build_the_stored_message_and_do_not_send_the_chat_again(
    fold_in_node: FoldInNode, turn: Callable[[MemoryJournal], Any]
) -> None:
    journal = MemoryJournal()
    outcome = await turn(journal)
    chunks = check_stream(journal, outcome)
    errors = [chunk["errorText"] for chunk in chunks if chunk["type"] == "error"]
    for version, theirs in (await asyncio.to_thread(fold_in_node, chunks)).items():
        assert theirs["message"] == outcome.message, version
        assert theirs["refused"] == errors, version
        assert not theirs["resubmits"], version
