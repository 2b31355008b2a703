"""Turns that are crashed, stopped or cancelled at every point, and then picked up again."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fermata.kit.errors import LeaseLostError, ModelError
from fermata.testing.memory_journal import JournalCrashError, MemoryJournal
from fermata.testing.scripted_llm import Gate, ScriptedLlm, asks, ends, says
from fermata.testing.turns import RecordingTool, a_turn, check_stream, play
from fermata.turns.contract import Recorded
from fermata.turns.history import repaired
from fermata.turns.loop import OUTCOME_UNKNOWN
from fermata.turns.model import (
    AssistantMessage,
    FinishReason,
    Text,
    TextAdded,
    TextStarted,
    ToolCall,
    ToolInputAdded,
    ToolInputStarted,
    ToolMessage,
    TurnEnd,
    TurnOutcome,
)
from fermata.turns.toolset import Toolset

TOOLS = ends(FinishReason.TOOL_CALLS)

SCRIPTS = (
    [*says("I will ", "note."), *asks("a", "note", 1, "1"), *asks("b", "again", 2), TOOLS],
    [*asks("c", "fly", 3), *asks("d", "note", 4), TOOLS],
    [*says("Do", "ne."), ends()],
)


class World:
    """The turn of `SCRIPTS` with a journal, whose every point can be watched: each entry of the journal,
    each event of the model, the middle of each tool call."""

    def __init__(self) -> None:
        self.journal = _Watched(self)
        self.acted: list[Any] = []
        self.points = 0
        self.on_point: Callable[[int], None] = lambda _: None
        self.llm = ScriptedLlm(
            *([x for event in script for x in (_Point(self), event)] for script in SCRIPTS)
        )
        self.note = RecordingTool("note", act=self._act)
        self.again = RecordingTool("again", idempotent=True, act=self._act)

    def point(self) -> None:
        self.points += 1
        self.on_point(self.points - 1)

    async def _act(self, input: Any) -> Any:
        self.acted.append(input)
        self.point()
        await asyncio.sleep(0)
        return {"did": input}

    async def play(self, stopping: asyncio.Event | None = None) -> TurnOutcome:
        tools = Toolset([self.note, self.again])
        return await play(self.llm, tools=tools, journal=self.journal, stopping=stopping)

    def check(self, outcome: TurnOutcome) -> None:
        """What holds however the turn went."""
        check_stream(self.journal, outcome)
        assert self.llm.open == 0
        assert self.acted.count(1) <= 1
        assert self.acted.count(4) <= 1
        assert repaired(outcome.history) == outcome.history
        kinds = {type(message) for message in outcome.history}
        assert kinds <= {AssistantMessage, ToolMessage}
        calls = [part["toolCallId"] for part in outcome.message["parts"] if "toolCallId" in part]
        assert len(calls) == len(set(calls))
        for part in outcome.message["parts"]:
            assert part.get("state", "done") in ("done", "output-available", "output-error")


class _Point(Gate):
    def __init__(self, world: World) -> None:
        self._world = world

    async def wait(self) -> None:
        self._world.point()


class _Watched(MemoryJournal):
    """As with a database, an entry takes time before it is committed."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    async def _begin(self) -> None:
        self._world.point()
        await asyncio.sleep(0)

    async def load(self) -> Recorded:
        await self._begin()
        return await super().load()

    async def append(self, *entry: Any) -> None:
        await self._begin()
        await super().append(*entry)

    async def record_step(self, *entry: Any) -> None:
        await self._begin()
        await super().record_step(*entry)

    async def record_intent(self, *entry: Any) -> None:
        await self._begin()
        await super().record_intent(*entry)

    async def record_result(self, *entry: Any) -> None:
        await self._begin()
        await super().record_result(*entry)


async def count_points() -> tuple[int, int]:
    world = World()
    outcome = await world.play()
    world.check(outcome)
    assert world.acted == [1, 2, 4]
    return world.points, len(world.journal.entries)


def results(outcome: TurnOutcome) -> dict[str, Any]:
    messages = [message for message in outcome.history if isinstance(message, ToolMessage)]
    return {result.call_id: result for message in messages for result in message.results}


@pytest.mark.parametrize("kept", [False, True])
async def test_a_turn_that_crashes_at_any_entry_of_the_journal_ends_when_it_is_picked_up(kept: bool) -> None:
    _, entries = await count_points()
    for crash_at in range(entries):
        world = World()
        world.journal.crash_at, world.journal.kept = crash_at, kept
        with pytest.raises(JournalCrashError):
            await world.play()
        world.journal.crash_at = None
        outcome = await world.play()
        world.check(outcome)
        assert outcome.end is TurnEnd.COMPLETED
        assert outcome.history[-1] == AssistantMessage((Text("Done."),))
        assert [result.tool for result in results(outcome).values()] == ["note", "again", "fly", "note"]


@settings(max_examples=60, deadline=None)
@given(crashes=st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=12))
async def test_a_turn_survives_any_number_of_crashes(crashes: list[tuple[int, bool]]) -> None:
    world = World()
    for after, kept in crashes:
        world.journal.crash_at, world.journal.kept = len(world.journal.entries) + after, kept
        try:
            await world.play()
        except JournalCrashError:
            continue
        return  # the caller would have stored the outcome
    world.journal.crash_at = None
    outcome = await world.play()
    world.check(outcome)
    assert outcome.end is TurnEnd.COMPLETED
    assert [result.tool for result in results(outcome).values()] == ["note", "again", "fly", "note"]


async def test_a_stop_at_any_point_ends_the_turn_with_what_there_is() -> None:
    points, _ = await count_points()
    ends_seen = set()
    for point in range(points):
        world, stopping = World(), asyncio.Event()
        begun: list[int] = []

        def stop(
            n: int, at: int = point, world: World = world, stopping: Any = stopping, begun: Any = begun
        ) -> None:
            if n == at:
                stopping.set()
                begun.append(len(world.note.inputs + world.again.inputs))

        world.on_point = stop
        outcome = await world.play(stopping)
        world.check(outcome)
        # Nothing begins after the stop, and an intent only if it was being written.
        assert len(world.note.inputs + world.again.inputs) == begun[0]
        assert len(world.journal.effects) <= len(results(outcome))
        ends_seen.add(outcome.end)
        # The process dies before the outcome is stored: the stop still holds for whoever picks it up.
        second = await world.play(stopping)
        world.check(second)
        assert second.end is outcome.end
        assert results(second).keys() == results(outcome).keys()
    assert ends_seen == {TurnEnd.STOPPED, TurnEnd.COMPLETED}


async def test_a_cancellation_at_any_point_writes_nothing_more_and_leaves_nothing_running() -> None:
    points, _ = await count_points()
    for point in range(points):
        world = World()
        task = asyncio.create_task(world.play())
        written: list[int] = []

        def cancel(
            n: int, at: int = point, world: World = world, task: Any = task, written: Any = written
        ) -> None:
            if n == at:
                task.cancel()
                written.append(len(world.journal.entries))

        world.on_point = cancel
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(world.journal.entries) == written[0]
        assert world.llm.open == 0
        assert len(asyncio.all_tasks()) == 1
        world.on_point = lambda _: None
        outcome = await world.play()
        world.check(outcome)
        assert outcome.end is TurnEnd.COMPLETED


async def test_a_lost_lease_ends_everything_and_is_not_answered() -> None:
    class Lost(MemoryJournal):
        async def append(self, chunks: Any) -> None:
            if len(self.entries) > 1:
                raise LeaseLostError("another worker has this run")
            await super().append(chunks)

    llm, journal = ScriptedLlm([TextStarted("0"), TextAdded("0", "a"), Gate()]), Lost()
    with pytest.raises(LeaseLostError):
        await play(llm, journal=journal)
    assert llm.open == 0
    assert journal.entries == ["load", "append"]


async def test_an_effect_without_a_result_is_not_repeated_and_the_model_is_told() -> None:
    world = World()
    world.journal.crash_at = (await _entries_of_a_whole_turn()).index("record_result")
    with pytest.raises(JournalCrashError):
        await world.play()
    world.journal.crash_at = None
    outcome = await world.play()
    world.check(outcome)
    assert world.acted == [1, 2, 4]
    assert results(outcome)["a"].error == OUTCOME_UNKNOWN
    assert any(part.get("errorText") == OUTCOME_UNKNOWN for part in outcome.message["parts"])


async def test_an_idempotent_effect_without_a_result_is_run_again() -> None:
    entries = await _entries_of_a_whole_turn()
    second = [index for index, name in enumerate(entries) if name == "record_result"][1]
    world = World()
    world.journal.crash_at = second
    with pytest.raises(JournalCrashError):
        await world.play()
    world.journal.crash_at = None
    outcome = await world.play()
    world.check(outcome)
    assert world.acted == [1, 2, 2, 4]
    assert results(outcome)["b"].output == {"did": 2}


async def _entries_of_a_whole_turn() -> list[str]:
    world = World()
    await world.play()
    return world.journal.entries


async def test_a_cut_answer_is_made_again_and_stays_out_of_the_history() -> None:
    journal = MemoryJournal()
    cut = [*says("Fir"), ToolInputStarted("a", "note"), ToolInputAdded("a", '{"x": 1'), Gate()]
    llm = ScriptedLlm(cut)
    task = asyncio.create_task(play(llm, journal=journal))
    await cut[-1].reached.wait()
    while not any(chunk["type"] == "tool-input-delta" for chunk in journal.chunks):
        await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    again = ScriptedLlm([*says("First."), ends()])
    outcome = await play(again, journal=journal)
    check_stream(journal, outcome)
    assert outcome.history == (AssistantMessage((Text("First."),)),)
    assert again.calls[0].messages == a_turn().history
    assert [part["type"] for part in outcome.message["parts"]] == [
        "step-start",
        "text",
        "tool-note",
        "step-start",
        "text",
    ]
    tool = outcome.message["parts"][2]
    assert (tool["state"], tool["input"]) == ("output-error", {"x": 1})


async def test_a_stop_during_an_answer_keeps_its_text_in_the_message_and_for_the_model() -> None:
    journal, stopping, gate = MemoryJournal(), asyncio.Event(), Gate()
    llm = ScriptedLlm([*says("Half a", part="1"), TextStarted("2"), TextAdded("2", " tho"), gate])
    task = asyncio.create_task(play(llm, journal=journal, stopping=stopping))
    await gate.reached.wait()
    stopping.set()
    outcome = await task
    check_stream(journal, outcome)
    assert outcome.end is TurnEnd.STOPPED
    assert [part["text"] for part in outcome.message["parts"][1:3]] == ["Half a", " tho"]
    assert outcome.history == (AssistantMessage((Text("Half a tho"),)),)
    assert outcome.closing[-1]["finishReason"] == "stop"
    assert llm.open == 0


async def test_a_stop_during_a_tool_ends_it_and_answers_every_call() -> None:
    journal, stopping, begun = MemoryJournal(), asyncio.Event(), asyncio.Event()

    async def forever(input: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    tool = RecordingTool(act=forever)
    llm = ScriptedLlm([*asks("a", "note", 1), *asks("b", "note", 2), TOOLS])
    task = asyncio.create_task(play(llm, tools=Toolset([tool]), journal=journal, stopping=stopping))
    await begun.wait()
    stopping.set()
    outcome = await task
    check_stream(journal, outcome)
    assert tool.cancelled == 1
    assert tool.inputs == [1]
    assert outcome.end is TurnEnd.STOPPED
    shown = [part for part in outcome.message["parts"] if part["type"] == "tool-note"]
    assert [part["errorText"] for part in shown] == ["Cancelled", "Cancelled"]
    assert isinstance(outcome.history[0], AssistantMessage)
    assert [part for part in outcome.history[0].parts if isinstance(part, ToolCall)]
    told = results(outcome)
    assert "may have acted in part" in told["a"].error
    assert "before this call was run" in told["b"].error


@pytest.mark.parametrize("ending", [Gate(), ModelError("No.")])
async def test_a_page_does_not_send_a_stopped_or_failed_turn_again_by_itself(ending: Any) -> None:
    journal, stopping = MemoryJournal(), asyncio.Event()
    stuck = RecordingTool(act=lambda _: asyncio.Event().wait())
    tools = Toolset([stuck])
    llm = ScriptedLlm([*asks("a", "note", 1), ending if isinstance(ending, Exception) else TOOLS])
    task = asyncio.create_task(play(llm, tools=tools, journal=journal, stopping=stopping))
    while not (task.done() or stuck.inputs):
        await asyncio.sleep(0)
    stopping.set()
    outcome = await task
    check_stream(journal, outcome)
    assert outcome.message["parts"][-1] == {"type": "step-start"}


async def test_nothing_is_intended_after_a_stop() -> None:
    stopping, journal = asyncio.Event(), MemoryJournal()

    async def act(input: Any) -> Any:
        stopping.set()
        # It cannot be interrupted any more: what it did counts.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return "done all the same"

    tools = Toolset([RecordingTool(act=act)])
    llm = ScriptedLlm([*asks("a", "note", 1), *asks("b", "note", 2), TOOLS])
    outcome = await play(llm, tools=tools, journal=journal, stopping=stopping)
    check_stream(journal, outcome)
    assert outcome.end is TurnEnd.STOPPED
    assert results(outcome)["a"].output == "done all the same"
    assert list(journal.effects) == ["a"]
