"""A turn from its start to its end, without accidents."""

import asyncio
import json
from typing import Any

import pytest

from fermata.kit.errors import ModelError, SandboxGoneError
from fermata.testing.memory_journal import MemoryJournal
from fermata.testing.scripted_llm import Gate, ScriptedLlm, asks, ends, says
from fermata.testing.turns import RecordingTool, a_turn, check_stream, play
from fermata.turns.fold import fold
from fermata.turns.loop import GATHER_FOR
from fermata.turns.model import (
    AssistantMessage,
    FinishReason,
    Reasoning,
    ReasoningAdded,
    ReasoningEnded,
    ReasoningStarted,
    Text,
    TextAdded,
    TextStarted,
    ToolCall,
    ToolInputAdded,
    ToolInputEnded,
    ToolInputStarted,
    ToolMessage,
    ToolResult,
    TurnEnd,
    Usage,
)
from fermata.turns.reader import BUFFER_LIMIT
from fermata.turns.toolset import Toolset

TOOLS = ends(FinishReason.TOOL_CALLS)


async def test_an_answer_without_tools_is_streamed_and_kept() -> None:
    journal = MemoryJournal()
    outcome = await play(ScriptedLlm([*says("Hel", "lo."), ends()]), journal=journal)
    check_stream(journal, outcome)
    assert outcome.end is TurnEnd.COMPLETED
    assert outcome.message["id"] == "m1"
    assert outcome.message["parts"] == [
        {"type": "step-start"},
        {"type": "text", "text": "Hello.", "state": "done"},
    ]
    assert outcome.history == (AssistantMessage((Text("Hello."),)),)
    assert outcome.usage == Usage(10, 5)


async def test_a_tool_is_called_with_its_input_and_the_model_sees_the_result() -> None:
    tool, journal = RecordingTool(), MemoryJournal()
    llm = ScriptedLlm([*asks("a", "note", {"x": 1}, '{"x"', ": 1}"), TOOLS], [*says("Done."), ends()])
    outcome = await play(llm, tools=Toolset([tool]), journal=journal)
    chunks = check_stream(journal, outcome)
    assert tool.inputs == [{"x": 1}]
    assert llm.calls[1].messages[1:] == outcome.history[:2]
    assert outcome.history == (
        AssistantMessage((ToolCall("a", "note", {"x": 1}),)),
        ToolMessage((ToolResult("a", "note", {"success": True, "noted": {"x": 1}}),)),
        AssistantMessage((Text("Done."),)),
    )
    assert [c["type"] for c in chunks if c["type"].startswith("tool-")] == [
        "tool-input-start",
        "tool-input-delta",
        "tool-input-available",
        "tool-output-available",
    ]
    assert outcome.usage == Usage(20, 10)
    metadata = outcome.message["metadata"]
    assert metadata["totalMessageUsage"]["totalTokens"] == 30
    assert [reason["finishReason"] for reason in metadata["stepFinishReasons"]] == ["tool-calls", "stop"]
    assert metadata["modelId"] == metadata["selectedModelId"] == "test/model"


async def test_an_intent_is_written_before_the_tool_acts_and_its_result_after() -> None:
    journal = MemoryJournal()

    async def act(input: Any) -> Any:
        return list(journal.entries)

    llm = ScriptedLlm([*asks("a", "note", {}), TOOLS], [*says("Done."), ends()])
    outcome = await play(llm, tools=Toolset([RecordingTool(act=act)]), journal=journal)
    (result,) = outcome.history[1].results
    assert result.output[-2:] == ["record_step", "record_intent"]
    assert journal.entries[len(result.output)] == "record_result"


async def test_calls_of_one_step_run_in_order() -> None:
    order: list[str] = []

    def tool(name: str) -> RecordingTool:
        async def act(input: Any) -> Any:
            order.append(f"{name} begins")
            await asyncio.sleep(0)
            order.append(f"{name} ends")

        return RecordingTool(name, act=act)

    llm = ScriptedLlm([*asks("1", "first", {}), *asks("2", "second", {}), TOOLS], [ends()])
    outcome = await play(llm, tools=Toolset([tool("second"), tool("first")]))
    assert order == ["first begins", "first ends", "second begins", "second ends"]
    assert [result.call_id for result in outcome.history[1].results] == ["1", "2"]


async def test_the_first_piece_of_an_answer_is_visible_while_the_model_goes_on() -> None:
    gate, journal = Gate(), MemoryJournal()
    llm = ScriptedLlm([TextStarted("0"), TextAdded("0", "Hel"), gate, TextAdded("0", "lo"), ends()])
    task = asyncio.create_task(play(llm, journal=journal))
    await gate.reached.wait()
    async with asyncio.timeout(5):
        while fold(journal.chunks)["parts"][-1].get("text") != "Hel":
            await asyncio.sleep(GATHER_FOR / 4)
    gate.open()
    assert (await task).message["parts"][-1]["text"] == "Hello"


async def test_pieces_that_arrive_while_one_is_written_are_written_together() -> None:
    class SlowJournal(MemoryJournal):
        async def append(self, chunks: Any) -> None:
            await asyncio.sleep(0.05)
            await super().append(chunks)

    journal = SlowJournal()
    outcome = await play(ScriptedLlm([*says(*"abcdefgh" * 20), ends()]), journal=journal)
    chunks = check_stream(journal, outcome)
    assert len([chunk for chunk in chunks if chunk["type"] == "text-delta"]) < 10
    assert outcome.message["parts"][-1]["text"] == "abcdefgh" * 20


async def test_a_model_waits_for_a_journal_that_cannot_keep_up() -> None:
    writing, written = asyncio.Event(), asyncio.Event()

    class StuckJournal(MemoryJournal):
        async def append(self, chunks: Any) -> None:
            writing.set()
            await written.wait()
            await super().append(chunks)

    produced = 0

    class Counting(list[Any]):
        def __iter__(self) -> Any:
            nonlocal produced
            for item in super().__iter__():
                produced += 1
                yield item

    llm = ScriptedLlm(Counting([*says(*["x"] * BUFFER_LIMIT * 3), ends()]))
    task = asyncio.create_task(play(llm, journal=StuckJournal()))
    await writing.wait()
    for _ in range(BUFFER_LIMIT * 4):
        await asyncio.sleep(0)
    assert BUFFER_LIMIT <= produced <= BUFFER_LIMIT + 2
    written.set()
    assert (await task).message["parts"][-1]["text"] == "x" * BUFFER_LIMIT * 3


async def test_reasoning_goes_back_to_the_model_with_its_signature_and_the_page_sees_no_signature() -> None:
    tool, journal = RecordingTool(), MemoryJournal()
    thought = [
        ReasoningStarted("r"),
        ReasoningAdded("r", "Hm."),
        ReasoningEnded("r", {"signature": "s3cr3t"}),
    ]
    llm = ScriptedLlm([*thought, *asks("a", "note", {}), TOOLS], [*says("Done."), ends()])
    outcome = await play(llm, tools=Toolset([tool]), journal=journal)
    assert Reasoning("Hm.", {"signature": "s3cr3t"}) in llm.calls[1].messages[1].parts
    assert "s3cr3t" not in str(check_stream(journal, outcome))
    assert outcome.message["parts"][1]["text"] == "Hm."


async def test_a_call_of_an_unknown_tool_is_answered_with_the_names_of_the_tools() -> None:
    llm = ScriptedLlm([*asks("a", "fly", {}), TOOLS], [*says("Sorry."), ends()])
    journal = MemoryJournal()
    outcome = await play(llm, tools=Toolset([RecordingTool(), RecordingTool("other")]), journal=journal)
    check_stream(journal, outcome)
    (result,) = outcome.history[1].results
    assert result.error == "There is no tool named fly. The tools are: note, other."
    assert outcome.end is TurnEnd.COMPLETED


async def test_broken_arguments_are_shown_and_answered_and_nothing_runs() -> None:
    tool, journal = RecordingTool(), MemoryJournal()
    broken = ToolCall("a", "note", '{"x": ', broken="The arguments are not JSON.")
    script = [ToolInputStarted("a", "note"), ToolInputAdded("a", '{"x": '), ToolInputEnded(broken), TOOLS]
    outcome = await play(
        ScriptedLlm(script, [*says("Sorry."), ends()]), tools=Toolset([tool]), journal=journal
    )
    assert {
        "type": "tool-input-error",
        "toolCallId": "a",
        "toolName": "note",
        "input": '{"x": ',
    }.items() <= next(
        chunk for chunk in check_stream(journal, outcome) if chunk["type"] == "tool-input-error"
    ).items()
    assert tool.inputs == []
    assert outcome.history[1] == ToolMessage((ToolResult("a", "note", None, "The arguments are not JSON."),))


async def test_arguments_without_an_end_count_as_broken() -> None:
    tool, journal = RecordingTool(), MemoryJournal()
    script = [ToolInputStarted("a", "note"), ToolInputAdded("a", '{"x": '), ends(FinishReason.LENGTH)]
    outcome = await play(ScriptedLlm(script, [*says("Ok."), ends()]), tools=Toolset([tool]), journal=journal)
    check_stream(journal, outcome)
    assert tool.inputs == []
    assert "cut off" in outcome.history[1].results[0].error


async def test_call_ids_that_a_server_uses_again_are_told_apart() -> None:
    tool, journal = RecordingTool(), MemoryJournal()
    llm = ScriptedLlm(
        [*asks("call_0", "note", 1), *asks("call_0", "note", 2), TOOLS],
        [*asks("call_0", "note", 3), TOOLS],
        [*says("Done."), ends()],
    )
    earlier = (
        AssistantMessage((ToolCall("call_0", "note", 0),)),
        ToolMessage((ToolResult("call_0", "note", 0),)),
    )
    turn = a_turn(history=(*earlier, *a_turn().history))
    outcome = await play(llm, tools=Toolset([tool]), journal=journal, turn=turn)
    check_stream(journal, outcome)
    assert tool.inputs == [1, 2, 3]
    calls = [part.call_id for message in outcome.history[:4:2] for part in message.parts]
    assert len({"call_0", *calls}) == 4


async def test_halves_of_characters_from_a_vendor_do_not_break_the_stream() -> None:
    tool, journal = RecordingTool(), MemoryJournal()
    llm = ScriptedLlm([*says("\ud83d"), *asks("a", "note", {"t": "\udc00"}), TOOLS], [*says("Done."), ends()])
    outcome = await play(llm, tools=Toolset([tool]), journal=journal)
    for chunk in check_stream(journal, outcome):
        str(chunk).encode()
    assert tool.inputs == [{"t": "\ufffd"}]


async def test_a_turn_that_reaches_its_last_step_says_so() -> None:
    tool, journal = RecordingTool(), MemoryJournal()
    llm = ScriptedLlm(*([*asks(f"c{n}", "note", n), TOOLS] for n in range(5)))
    outcome = await play(llm, tools=Toolset([tool]), journal=journal, turn=a_turn(max_steps=3))
    check_stream(journal, outcome)
    assert len(llm.calls) == 3
    assert tool.inputs == [0, 1, 2]
    assert outcome.end is TurnEnd.COMPLETED
    assert "3 steps" in outcome.message["parts"][-1]["text"]
    assert isinstance(outcome.history[-1], AssistantMessage)


@pytest.mark.parametrize("before", [[], says("Well, "), [TextStarted("0"), TextAdded("0", "Well, ")]])
async def test_an_error_of_the_model_ends_the_turn_with_its_sentence(before: list[Any]) -> None:
    journal = MemoryJournal()
    llm = ScriptedLlm([*before, ModelError("The vendor is overloaded.")])
    outcome = await play(llm, journal=journal)
    chunks = check_stream(journal, outcome)
    assert outcome.end is TurnEnd.FAILED
    assert outcome.error == "The vendor is overloaded."
    assert {"type": "error", "errorText": "The vendor is overloaded."} in chunks
    assert chunks[-1]["finishReason"] == "error"
    assert outcome.history == ((AssistantMessage((Text("Well, "),)),) if before else ())
    assert llm.open == 0


async def test_an_answer_that_just_stops_is_an_error() -> None:
    outcome = await play(ScriptedLlm(says("Well")))
    assert outcome.end is TurnEnd.FAILED
    assert outcome.error == "The model's answer ended before it was complete."


async def test_a_fault_of_ours_ends_the_turn_with_a_neutral_sentence() -> None:
    journal = MemoryJournal()
    llm = ScriptedLlm([*says("Well"), RuntimeError("/srv/secret/path")])
    outcome = await play(llm, journal=journal)
    assert outcome.end is TurnEnd.FAILED
    assert "/srv/secret" not in str(check_stream(journal, outcome))
    assert "logged" in str(outcome.error)


async def test_a_tool_that_breaks_is_a_result_and_the_turn_goes_on() -> None:
    async def gone(input: Any) -> Any:
        raise SandboxGoneError("The sandbox is gone.")

    async def bug(input: Any) -> Any:
        raise KeyError("/srv/secret/path")

    tools = Toolset([RecordingTool("gone", act=gone), RecordingTool("bug", act=bug)])
    llm = ScriptedLlm([*asks("1", "gone", {}), *asks("2", "bug", {}), TOOLS], [*says("Oh."), ends()])
    journal = MemoryJournal()
    outcome = await play(llm, tools=tools, journal=journal)
    check_stream(journal, outcome)
    assert outcome.end is TurnEnd.COMPLETED
    first, second = outcome.history[1].results
    assert first.error == "The sandbox is gone."
    assert "secret" not in str(second)
    assert second.error


async def test_a_tool_name_that_vendors_would_refuse_is_made_harmless() -> None:
    llm = ScriptedLlm([*asks("a", "my tool/é" * 20, {}), TOOLS], [*says("Sorry."), ends()])
    journal = MemoryJournal()
    outcome = await play(llm, tools=Toolset([RecordingTool()]), journal=journal)
    check_stream(journal, outcome)
    name = outcome.history[0].parts[0].tool
    assert name == ("my_tool__" * 20)[:64]
    assert outcome.history[1].results[0].tool == name


async def test_arguments_that_are_nested_too_deeply_are_broken() -> None:
    deep: Any = 1
    for _ in range(150):
        deep = [deep]
    tool, journal = RecordingTool(), MemoryJournal()
    llm = ScriptedLlm([*asks("a", "note", {"x": deep}), TOOLS], [*says("Sorry."), ends()])
    outcome = await play(llm, tools=Toolset([tool]), journal=journal)
    check_stream(journal, outcome)
    assert tool.inputs == []
    assert "nested too deeply" in outcome.history[1].results[0].error


async def test_a_long_input_in_small_pieces_is_taken_in_one_pass() -> None:
    # Reading the input anew with each piece would take hours here.
    text = json.dumps({"content": "x" * 400_000})
    pieces = [text[at : at + 20] for at in range(0, len(text), 20)]
    tool, journal = RecordingTool(), MemoryJournal()
    llm = ScriptedLlm([*asks("a", "note", json.loads(text), *pieces), TOOLS], [*says("Done."), ends()])
    outcome = await play(llm, tools=Toolset([tool]), journal=journal)
    assert outcome.end is TurnEnd.COMPLETED
    assert len(tool.inputs[0]["content"]) == 400_000
