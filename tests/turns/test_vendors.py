"""The door to vendors, against real HTTP servers that speak OpenAI's and Anthropic's protocols."""

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog.testing

from fermata.kit.errors import ModelError
from fermata.testing.memory_journal import MemoryJournal
from fermata.testing.turns import RecordingTool, a_turn, check_stream, play
from fermata.testing.vendor_server import KEY, VendorServer, anthropic_answer, openai_chunk, openai_usage
from fermata.turns.llms.catalogue import Catalogue
from fermata.turns.llms.vendor import Protocol, Vendor
from fermata.turns.llms.vendors import VendorLlm
from fermata.turns.model import (
    AssistantMessage,
    File,
    FinishReason,
    ModelCall,
    ModelEvent,
    ModelFinished,
    Reasoning,
    ReasoningAdded,
    ReasoningEnded,
    Text,
    TextAdded,
    ToolCall,
    ToolInputAdded,
    ToolInputEnded,
    ToolMessage,
    ToolResult,
    TurnEnd,
    Usage,
    UserMessage,
)
from fermata.turns.toolset import Toolset

BASH = RecordingTool("bash").description


def a_call(*messages: Any, model: str = "gpt-test") -> ModelCall:
    return ModelCall(model, "Be brief.", messages or (UserMessage((Text("hello"),)),), (BASH,))


@asynccontextmanager
async def a_door(
    server: VendorServer, protocol: Protocol = Protocol.OPENAI, pauses: tuple[float, ...] = (0.0, 0.0)
) -> AsyncIterator[VendorLlm]:
    path = "" if protocol is Protocol.ANTHROPIC else "/v1"
    llm = VendorLlm(Vendor("The vendor", protocol, KEY, server.url + path), pauses=pauses)
    try:
        yield llm
    finally:
        await llm.close()


async def events_of(llm: VendorLlm, call: ModelCall) -> list[ModelEvent]:
    async with llm.stream(call) as events:
        return [event async for event in events]


def openai_text(*deltas: str) -> list[Any]:
    chunks = [openai_chunk({"role": "assistant", "content": delta}) for delta in deltas]
    return [*chunks, openai_chunk({}, "stop"), openai_usage(12, 3, cached=4), "[DONE]"]


def tool_delta(index: int, **values: Any) -> dict[str, Any]:
    function = {name: values.pop(name) for name in ("name", "arguments") if name in values}
    return openai_chunk(
        {"tool_calls": [{"index": index, "type": "function", "function": function, **values}]}
    )


async def test_text_from_openai_is_streamed_with_its_usage() -> None:
    async with VendorServer(openai_text("Hel", "lo")) as server, a_door(server) as llm:
        events = await events_of(llm, a_call())
    assert [event.delta for event in events if isinstance(event, TextAdded)] == ["Hel", "lo"]
    assert events[-1] == ModelFinished(FinishReason.STOP, "stop", Usage(12, 3, cache_read_tokens=4))
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["model"] == "gpt-test"
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    assert request["tools"][0]["function"]["name"] == "bash"
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_tool_calls_from_openai_arrive_with_their_pieces_and_their_input() -> None:
    answer = [
        tool_delta(0, id="call_a", name="bash", arguments=""),
        tool_delta(0, arguments='{"comm'),
        tool_delta(0, arguments='and": "ls"}'),
        tool_delta(1, id="call_b", name="bash", arguments="{}"),
        openai_chunk({}, "tool_calls"),
        openai_usage(1, 1),
        "[DONE]",
    ]
    async with VendorServer(answer) as server, a_door(server) as llm:
        events = await events_of(llm, a_call())
    pieces = [
        event.delta for event in events if isinstance(event, ToolInputAdded) and event.call_id == "call_a"
    ]
    assert "".join(pieces) == '{"command": "ls"}'
    calls = [event.call for event in events if isinstance(event, ToolInputEnded)]
    assert calls == [ToolCall("call_a", "bash", {"command": "ls"}), ToolCall("call_b", "bash", {})]
    assert isinstance(events[-1], ModelFinished)
    assert events[-1].reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize("arguments", ['{"command": ', "[1]", "nonsense"])
async def test_arguments_that_are_no_object_are_broken(arguments: str) -> None:
    answer = [
        tool_delta(0, id="a", name="bash", arguments=arguments),
        openai_chunk({}, "tool_calls"),
        "[DONE]",
    ]
    async with VendorServer(answer) as server, a_door(server) as llm:
        events = await events_of(llm, a_call())
    (call,) = [event.call for event in events if isinstance(event, ToolInputEnded)]
    assert call.broken
    assert call.input == arguments


async def test_a_whole_chat_reaches_openai_in_its_own_words() -> None:
    picture = File("image/png", "data:image/png;base64,aGk=")
    history = (
        UserMessage((Text("look"), picture)),
        AssistantMessage(
            (
                Text("I look."),
                ToolCall("a", "bash", {"command": "ls"}),
                ToolCall("b", "bash", "{", broken="no"),
            )
        ),
        ToolMessage(
            (ToolResult("a", "bash", {"exitCode": 0}), ToolResult("b", "bash", None, "It was cancelled."))
        ),
        UserMessage((Text("go on"),)),
    )
    async with VendorServer(openai_text("ok")) as server, a_door(server) as llm:
        await events_of(llm, a_call(*history))
    _, user, assistant, first, second, last = server.requests[0]["messages"]
    assert user["content"][1]["image_url"]["url"] == "data:image/png;base64,aGk="
    assert assistant["content"] == "I look."
    assert [call["id"] for call in assistant["tool_calls"]] == ["a", "b"]
    assert (first["role"], first["tool_call_id"], first["content"]) == ("tool", "a", '{"exitCode":0}')
    assert "It was cancelled." in second["content"]
    assert last["content"] == "go on"


async def test_thinking_of_anthropic_comes_back_with_its_signature() -> None:
    thinking = {"type": "thinking", "thinking": "", "signature": ""}
    tool = {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}}
    answer = anthropic_answer(
        (
            thinking,
            [
                {"type": "thinking_delta", "thinking": "Hm."},
                {"type": "signature_delta", "signature": "c2lnbmVk"},
            ],
        ),
        ({"type": "text", "text": ""}, [{"type": "text_delta", "text": "Look:"}]),
        (tool, [{"type": "input_json_delta", "partial_json": '{"command": "ls"}'}]),
        stop="tool_use",
    )
    final = anthropic_answer(
        ({"type": "text", "text": ""}, [{"type": "text_delta", "text": "Done."}]), stop="end_turn"
    )
    journal = MemoryJournal()
    async with VendorServer(answer, final) as server, a_door(server, Protocol.ANTHROPIC) as llm:
        tools = Toolset([RecordingTool("bash")])
        turn = a_turn(model_id="claude-test")
        outcome = await play(llm, tools=tools, journal=journal, turn=turn)
    check_stream(journal, outcome)
    assert outcome.end is TurnEnd.COMPLETED
    assert [type(part) for part in outcome.history[0].parts] == [Reasoning, Text, ToolCall]
    first, second = server.requests
    assert first["path"] == "/v1/messages"
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert first["tools"][-1]["cache_control"] == {"type": "ephemeral", "ttl": "5m"}
    assistant, result = second["messages"][-2:]
    assert assistant["content"][0] == {"type": "thinking", "thinking": "Hm.", "signature": "c2lnbmVk"}
    assert assistant["content"][2]["input"] == {"command": "ls"}
    assert result["content"][0]["tool_use_id"] == "toolu_1"
    assert outcome.usage.output_tokens == 14
    assert outcome.usage.cache_read_tokens == 10
    assert "c2lnbmVk" not in str(outcome.message)


async def test_thinking_of_one_vendor_is_not_sent_to_another() -> None:
    mine = Reasoning("secret thought", {"provider_name": "anthropic", "signature": "x"})
    history = (UserMessage((Text("a"),)), AssistantMessage((mine, Text("b"))), UserMessage((Text("c"),)))
    async with VendorServer(openai_text("ok")) as server, a_door(server) as llm:
        await events_of(llm, a_call(*history))
    assert "secret thought" not in str(server.requests[0])


@pytest.mark.parametrize("protocol", [Protocol.OPENAI, Protocol.ANTHROPIC])
@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (
            401,
            {"error": {"message": f"Incorrect API key: {KEY}", "code": "invalid_api_key"}},
            "refused the key",
        ),
        (
            404,
            {"error": {"message": "no such model", "code": "model_not_found"}},
            "has no model named gpt-test",
        ),
        (429, {"error": {"message": "quota", "code": "insufficient_quota"}}, "used up its quota"),
        (429, {"error": {"message": "slow down"}}, "limits how often"),
        (400, {"error": {"message": "long", "code": "context_length_exceeded"}}, "too long"),
        (400, {"error": {"message": f"bad {KEY}"}}, "did not accept the request"),
        (500, {"error": {"message": "oops"}}, "failed to answer"),
        (503, {"error": {"message": "busy"}}, "overloaded or not available"),
    ],
)
async def test_an_error_of_a_vendor_has_a_sentence_and_never_a_key(
    protocol: Protocol, status: int, body: Any, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answers = [(status, {}, body)] * 3
    async with VendorServer(*answers) as server, a_door(server, protocol) as llm:
        with structlog.testing.capture_logs() as logs, pytest.raises(ModelError) as caught:
            await events_of(llm, a_call())
    assert sentence in caught.value.message
    assert caught.value.message.startswith(("The vendor", "This"))
    assert KEY not in str(logs) + caplog.text + "".join(traceback.format_exception(caught.value))


async def test_a_call_is_tried_again_while_the_vendor_is_busy() -> None:
    busy = (429, {}, {"error": {"message": "slow down"}})
    down = (503, {"retry-after": "0"}, {"error": {"message": "busy"}})
    async with VendorServer(busy, down, openai_text("Hello")) as server, a_door(server) as llm:
        events = await events_of(llm, a_call())
    assert len(server.requests) == 3
    assert TextAdded("1", "Hello") in events


async def test_a_vendor_that_asks_for_a_long_pause_gets_no_second_call() -> None:
    busy = (429, {"retry-after": "3600"}, {"error": {"message": "slow down"}})
    async with VendorServer(busy) as server, a_door(server) as llm:
        with pytest.raises(ModelError):
            await events_of(llm, a_call())
    assert len(server.requests) == 1


async def test_a_call_that_was_refused_is_not_tried_again() -> None:
    async with VendorServer((401, {}, {"error": {"message": "no"}})) as server, a_door(server) as llm:
        with pytest.raises(ModelError):
            await events_of(llm, a_call())
    assert len(server.requests) == 1


async def test_an_answer_that_breaks_off_is_an_error_and_not_tried_again() -> None:
    broken = [openai_chunk({"role": "assistant", "content": "Hel"}), OSError()]
    async with VendorServer(broken) as server, a_door(server) as llm:
        outcome = await play(llm, journal=(journal := MemoryJournal()))
    check_stream(journal, outcome)
    assert outcome.error == "The connection to The vendor failed. Try again."
    assert outcome.message["parts"][1]["text"] == "Hel"
    assert len(server.requests) == 1


async def test_a_server_that_is_not_there_is_an_error_with_a_sentence() -> None:
    async with VendorServer() as server:
        url = server.url
    llm = VendorLlm(Vendor("The vendor", Protocol.OPENAI, None, url), pauses=(0.0,))
    with pytest.raises(ModelError, match="The connection to The vendor failed"):
        await events_of(llm, a_call())
    await llm.close()


@pytest.mark.parametrize("protocol", [Protocol.OPENAI, Protocol.ANTHROPIC])
async def test_leaving_a_stream_ends_the_request(protocol: Protocol) -> None:
    never = asyncio.Event()
    text = ({"type": "text", "text": ""}, [{"type": "text_delta", "text": "Hel"}])
    answer = {
        Protocol.OPENAI: [openai_chunk({"role": "assistant", "content": "Hel"}), never],
        Protocol.ANTHROPIC: [*anthropic_answer(text, stop="end_turn")[:3], never],
    }[protocol]
    async with VendorServer(answer) as server, a_door(server, protocol) as llm:
        stopping = asyncio.Event()
        journal = MemoryJournal()
        task = asyncio.create_task(play(llm, journal=journal, stopping=stopping))
        while not any(chunk["type"] == "text-delta" for chunk in journal.chunks):
            await asyncio.sleep(0.01)
        stopping.set()
        outcome = await task
        async with asyncio.timeout(5):
            await server.dropped.wait()
    assert outcome.end is TurnEnd.STOPPED
    assert outcome.message["parts"][-1]["text"] == "Hel"


async def test_the_catalogue_sends_a_call_to_its_vendor_under_the_vendors_own_name() -> None:
    async with VendorServer(openai_text("a"), openai_text("b")) as server:
        catalogue = Catalogue(
            openai_base_url=f"{server.url}/own/v1",
            gateway_api_key=KEY,
            gateway_url=f"{server.url}/gateway/v1",
        )
        await events_of(catalogue, a_call(model="openai/gpt-test"))
        await events_of(catalogue, a_call(model="moonshotai/kimi-k3"))
        await catalogue.close()
    assert [(request["path"], request["model"]) for request in server.requests] == [
        ("/own/v1/chat/completions", "gpt-test"),
        ("/gateway/v1/chat/completions", "moonshotai/kimi-k3"),
    ]


async def test_files_are_shown_put_into_words_or_named_and_none_breaks_the_call() -> None:
    data = "data:{};base64,{}"
    files = (
        File("image/png", data.format("image/png", "aGk=")),
        File("text/csv", data.format("text/csv", "YSxi"), "t.csv"),
        File("text/plain", "data:text/plain,a%20b"),
        File("video/mp4", data.format("video/mp4", "aGk="), "v.mp4"),
        File("image/png", data.format("image/png", "%%%")),
        File("application/pdf", "https://example.com/x.pdf"),
    )
    async with VendorServer(openai_text("ok")) as server, a_door(server) as llm:
        await events_of(llm, a_call(UserMessage((Text("look"), *files))))
    content = server.requests[0]["messages"][1]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", *["text"] * 5]
    shown = [part.get("text", "") for part in content]
    assert shown[2] == "[file t.csv, text/csv]\na,b"
    assert shown[3].endswith("a b")
    assert "cannot read" in shown[4]
    assert "damaged" in shown[5]
    assert "https://example.com/x.pdf" in shown[6]


async def test_a_chat_can_move_from_another_vendor_to_anthropic() -> None:
    call = ToolCall("functions.bash:0", "bash", {"command": "ls"}, {"provider_name": "openai", "id": "x"})
    history = (
        UserMessage((Text("a"),)),
        AssistantMessage((Text(" \n"), call)),
        ToolMessage((ToolResult("functions.bash:0", "bash", {"exitCode": 0}),)),
        UserMessage((Text("b"),)),
    )
    answer = anthropic_answer(
        ({"type": "text", "text": ""}, [{"type": "text_delta", "text": "ok"}]), stop="end_turn"
    )
    async with VendorServer(answer) as server, a_door(server, Protocol.ANTHROPIC) as llm:
        await events_of(llm, a_call(*history, model="claude-test"))
    messages = server.requests[0]["messages"]
    (use,) = messages[1]["content"]
    assert use["id"] == messages[2]["content"][0]["tool_use_id"] == "functions_bash_0"


def answered(events: list[ModelEvent]) -> AssistantMessage:
    """What is stored of an answer, as far as the vendor attached data to it."""
    parts: list[Any] = []
    for event in events:
        match event:
            case ReasoningEnded(part, vendor):
                text = [
                    seen.delta for seen in events if isinstance(seen, ReasoningAdded) and seen.part == part
                ]
                parts.append(Reasoning("".join(text), vendor))
            case ToolInputEnded(call):
                parts.append(call)
    return AssistantMessage((*parts, Text("Yes")))


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
async def test_reasoning_goes_back_under_the_name_it_came_with(name: str) -> None:
    answer = [
        openai_chunk({name: "Hm"}),
        openai_chunk({"content": "Yes"}),
        openai_chunk({}, "stop"),
        "[DONE]",
    ]
    async with VendorServer(answer, openai_text("ok")) as server, a_door(server) as llm:
        events = await events_of(llm, a_call())
        await events_of(llm, a_call(answered(events)))
    assert ReasoningAdded("1", "Hm") in events
    assert events.index(TextAdded("2", "Yes")) > [type(event) for event in events].index(ReasoningEnded)
    assert server.requests[1]["messages"][1:] == [{"role": "assistant", name: "Hm", "content": "Yes"}]


async def test_the_signature_of_a_call_goes_back_to_its_vendor_and_to_no_other() -> None:
    extra = {"google": {"thought_signature": "c2ln"}}
    answer = [
        tool_delta(0, id="a", name="bash", arguments="{}", extra_content=extra),
        openai_chunk({}, "tool_calls"),
    ]
    async with VendorServer(answer, *[openai_text("ok")] * 2) as server:
        async with a_door(server, Protocol.GATEWAY) as llm:
            message = answered(await events_of(llm, a_call(model="google/gemini-test")))
            await events_of(llm, a_call(message, model="google/gemini-test"))
        async with a_door(server) as llm:
            await events_of(llm, a_call(message))
    mine, others = [request["messages"][1]["tool_calls"][0] for request in server.requests[1:]]
    assert mine["extra_content"] == extra
    assert "extra_content" not in others


async def test_thinking_that_anthropic_hides_goes_back_as_it_came() -> None:
    hidden = ({"type": "redacted_thinking", "data": "c2VjcmV0"}, [])
    answer = anthropic_answer(hidden, ({"type": "text", "text": "Yes"}, []), stop="end_turn")
    async with VendorServer(answer, answer) as server, a_door(server, Protocol.ANTHROPIC) as llm:
        events = await events_of(llm, a_call(model="claude-test"))
        await events_of(llm, a_call(answered(events), model="claude-test"))
    block = server.requests[1]["messages"][0]["content"][0]
    assert block == {"type": "redacted_thinking", "data": "c2VjcmV0"}


async def test_anthropic_gets_turns_that_alternate_and_no_blank_text() -> None:
    messages = (
        UserMessage((Text("a"), Text(" "))),
        AssistantMessage((ToolCall("t", "bash", {}),)),
        ToolMessage((ToolResult("t", "bash", ""),)),
        UserMessage((Text("meanwhile"),)),
        AssistantMessage((Text("\n"),)),
        UserMessage((Text(""),)),
    )
    answer = anthropic_answer(({"type": "text", "text": "Yes"}, []), stop="end_turn")
    call = ModelCall("claude-opus-4-5", "", messages, ())
    async with VendorServer(answer) as server, a_door(server, Protocol.ANTHROPIC) as llm:
        await events_of(llm, call)
    (request,) = server.requests
    assert [message["role"] for message in request["messages"]] == ["user", "assistant", "user"]
    result, steered = request["messages"][2]["content"]
    assert result["content"] == [{"type": "text", "text": "(no output)"}]
    assert steered["text"] == "meanwhile"
    assert "cache_control" in steered
    assert "system" not in request
    assert "tools" not in request
    assert request["max_tokens"] == 64_000


async def test_thinking_that_has_become_stale_is_left_out_and_the_call_goes_on() -> None:
    words = "messages.1.content.0: The block is bound to a different conversation"
    refusal = (400, {}, {"type": "error", "error": {"type": "invalid_request_error", "message": words}})
    answer = anthropic_answer(({"type": "text", "text": "Yes"}, []), stop="end_turn")
    thought = Reasoning("Hm.", {"provider_name": "anthropic", "signature": "c2ln"})
    history = (UserMessage((Text("a"),)), AssistantMessage((thought, Text("b"))), UserMessage((Text("c"),)))
    async with VendorServer(refusal, answer) as server, a_door(server, Protocol.ANTHROPIC) as llm:
        events = await events_of(llm, a_call(*history, model="claude-sonnet-5-5"))
    assert isinstance(events[-1], ModelFinished)
    assert server.requests[1]["thinking"]["block_binding"] == {"prefix_mismatch_behavior": "drop_block"}


async def test_a_server_without_a_key_is_sent_none() -> None:
    async with VendorServer(openai_text("ok")) as server:
        llm = VendorLlm(Vendor("The vendor", Protocol.OPENAI, None, f"{server.url}/v1"))
        await events_of(llm, a_call())
        await llm.close()
    assert "authorization" not in server.headers[0]


async def test_calls_at_the_same_time_get_their_own_answers() -> None:
    async with VendorServer(*[openai_text("ok")] * 8) as server, a_door(server) as llm:
        names = [f"model-{number}" for number in range(8)]
        found = await asyncio.gather(*(events_of(llm, a_call(model=name)) for name in names))
    assert {request["model"] for request in server.requests} == set(names)
    assert all(TextAdded("1", "ok") in events for events in found)


@pytest.mark.parametrize("protocol", [Protocol.OPENAI, Protocol.ANTHROPIC])
async def test_a_call_that_is_cancelled_before_its_answer_ends_its_request(protocol: Protocol) -> None:
    async with VendorServer([asyncio.Event()]) as server, a_door(server, protocol) as llm:
        task = asyncio.create_task(events_of(llm, a_call(model="claude-test")))
        while not server.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            await server.dropped.wait()


@pytest.mark.parametrize("protocol", [Protocol.OPENAI, Protocol.ANTHROPIC])
@pytest.mark.parametrize(
    ("output", "sent"),
    [("", "(no output)"), (None, "(no output)"), ([1, ""], '[1,""]'), ({"a": 1}, '{"a":1}')],
)
async def test_a_result_of_any_shape_is_one_text_that_is_not_blank(
    protocol: Protocol, output: Any, sent: str
) -> None:
    history = (
        UserMessage((Text("a"),)),
        AssistantMessage((ToolCall("t", "bash", {}),)),
        ToolMessage((ToolResult("t", "bash", output),)),
    )
    answer = {
        Protocol.OPENAI: openai_text("ok"),
        Protocol.ANTHROPIC: anthropic_answer(({"type": "text", "text": "ok"}, []), stop="end_turn"),
    }[protocol]
    async with VendorServer(answer) as server, a_door(server, protocol) as llm:
        await events_of(llm, a_call(*history, model="claude-test"))
    content = server.requests[0]["messages"][-1]["content"]
    if protocol is Protocol.ANTHROPIC:
        ((content,),) = ([block["text"] for block in result["content"]] for result in content)
    assert content == sent


async def test_an_answer_that_is_neither_an_answer_nor_an_error_is_a_failure() -> None:
    elsewhere = (302, {"location": "http://127.0.0.1:1/"}, {})
    async with VendorServer(*[elsewhere] * 3) as server, a_door(server) as llm:
        with pytest.raises(ModelError, match="failed to answer"):
            await events_of(llm, a_call())
    assert all("authorization" in headers for headers in server.headers)
