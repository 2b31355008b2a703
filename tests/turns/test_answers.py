"""Streams of vendors as they come in the wild: odd, cut, out of order; read by the door's own readers."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermata.testing.vendor_server import anthropic_answer, openai_chunk, openai_usage
from fermata.turns.llms import anthropic_answers, openai_answers
from fermata.turns.llms.sse import EVENT_LIMIT, EventSplitter, EventTooLongError
from fermata.turns.llms.vendor_errors import Trouble, VendorError, decide_trouble, read_retry_after
from fermata.turns.model import (
    FinishReason,
    ModelEvent,
    ModelFinished,
    TextAdded,
    ToolCall,
    ToolInputEnded,
    ToolInputStarted,
    Usage,
)

STREAM = (
    b'data: {"a":1}\r\n\r\n: a comment\n\nevent: x\ndata: 1\ndata:2\n\n'
    b"id: 7\rdata: caf\xc3\xa9\r\rdata: [DONE]\n\n"
)
EVENTS = [b'{"a":1}', b"1\n2", "café".encode(), b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_wherever_the_network_cuts_the_bytes(cuts: list[int]) -> None:
    splitter = EventSplitter()
    places = [0, *sorted(cuts), len(STREAM)]
    found = [data for start, end in pairwise(places) for data in splitter.feed(STREAM[start:end])]
    assert found == EVENTS


def test_an_event_that_never_ends_is_refused() -> None:
    splitter = EventSplitter()
    splitter.feed(b"data: ")
    with pytest.raises(EventTooLongError):
        splitter.feed(b"x" * EVENT_LIMIT)


def openai(*chunks: Any) -> list[ModelEvent]:
    reader = openai_answers.AnswerReader("openai")
    events = [event for chunk in chunks for event in reader.read(data(chunk))]
    return events + reader.end()


def anthropic(chunks: list[Any]) -> list[ModelEvent]:
    reader = anthropic_answers.AnswerReader("anthropic")
    events = [event for chunk in chunks for event in reader.read(data(chunk))]
    return events + reader.end()


def data(chunk: Any) -> bytes:
    return chunk.encode() if isinstance(chunk, str) else orjson.dumps(chunk)


def calls(events: list[ModelEvent]) -> list[ToolCall]:
    return [event.call for event in events if isinstance(event, ToolInputEnded)]


def piece(**values: Any) -> dict[str, Any]:
    return openai_chunk({"tool_calls": [values]})


def test_pieces_of_calls_that_interleave_find_their_call() -> None:
    events = openai(
        piece(index=0, id="a", function={"name": "bash", "arguments": '{"x"'}),
        piece(index=1, id="b", function={"name": "grep", "arguments": "{"}),
        piece(index=0, function={"arguments": ":1}"}),
        piece(index=1, function={"arguments": "}"}),
        openai_chunk({}, "tool_calls"),
    )
    assert calls(events) == [ToolCall("a", "bash", {"x": 1}), ToolCall("b", "grep", {})]


@pytest.mark.parametrize("index", [{}, {"index": 0}])
def test_calls_of_a_server_that_does_not_count_them_are_told_apart(index: dict[str, int]) -> None:
    events = openai(
        piece(**index, id="a", function={"name": "bash", "arguments": "{}"}),
        piece(**index, id="b", function={"name": "bash", "arguments": '{"y":2}'}),
        "[DONE]",
    )
    assert calls(events) == [ToolCall("a", "bash", {}), ToolCall("b", "bash", {"y": 2})]
    assert events[-1] == ModelFinished(FinishReason.TOOL_CALLS, "tool_calls")


def test_calls_without_an_id_are_given_one_each() -> None:
    function = {"name": "bash", "arguments": "{}"}
    events = openai(piece(index=0, function=function), piece(index=1, function=function), "[DONE]")
    first, second = [event.call_id for event in events if isinstance(event, ToolInputStarted)]
    assert first != second


def test_what_an_openai_server_sends_beyond_the_protocol_is_passed_over() -> None:
    odd: list[Any] = [
        {},
        {"choices": None},
        {"choices": {}},
        {"choices": [None]},
        {"choices": [{"delta": None}]},
        {"choices": [{"delta": {"content": 3, "tool_calls": "x", "reasoning": ["y"]}}], "usage": 7},
        {"choices": [{"delta": {"content": [{"type": "text", "text": "Yes"}]}, "finish_reason": 5}]},
        openai_chunk({}, "weary"),
        openai_usage(3, 2)
        | {"usage": {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": None}},
    ]
    events = openai(*odd)
    assert [event.delta for event in events if isinstance(event, TextAdded)] == ["Yes"]
    assert events[-1] == ModelFinished(FinishReason.OTHER, "weary", Usage(3, 2))


def test_a_refusal_is_shown_and_ends_as_one() -> None:
    events = openai(openai_chunk({"refusal": "No."}), openai_chunk({"refusal": " Sorry."}, "stop"), "[DONE]")
    assert [event.delta for event in events if isinstance(event, TextAdded)] == ["No.", " Sorry."]
    assert isinstance(events[-1], ModelFinished)
    assert events[-1].reason is FinishReason.CONTENT_FILTER


def test_halves_of_a_surrogate_pair_do_not_end_an_answer() -> None:
    events = openai('{"choices":[{"delta":{"content":"\\ud83d"}}]}', openai_chunk({}, "stop"))
    assert TextAdded("1", "\ud83d") in events


@pytest.mark.parametrize("chunk", ["nonsense", "[1]", "", "{"])
def test_an_event_that_is_no_object_cannot_be_understood(chunk: str) -> None:
    with pytest.raises(VendorError) as caught:
        openai(chunk)
    assert caught.value.trouble is Trouble.NOT_UNDERSTOOD


def test_an_answer_that_stops_without_its_end_is_not_taken_for_a_whole_one() -> None:
    text = anthropic_answer(({"type": "text", "text": "Hel"}, []), stop="end_turn")
    for read in (lambda: openai(openai_chunk({"content": "Hel"})), lambda: anthropic(text[:-1])):
        with pytest.raises(VendorError) as caught:
            read()
        assert caught.value.trouble is Trouble.CONNECTION_FAILED


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        ({"type": "overloaded_error", "message": "x"}, Trouble.UNAVAILABLE),
        ({"code": "context_length_exceeded"}, Trouble.TOO_LONG),
        ({"message": "This model's maximum context length is 8192 tokens"}, Trouble.TOO_LONG),
        (
            {"type": "invalid_request_error", "message": "Your credit balance is too low"},
            Trouble.QUOTA_USED_UP,
        ),
        ({"code": 429, "message": "x"}, Trouble.RATE_LIMITED),
        ({"code": "502"}, Trouble.FAILED),
        ({"message": None}, Trouble.FAILED),
        ("x", Trouble.FAILED),
    ],
)
def test_an_error_within_a_stream_is_told_by_its_code_or_its_words(error: Any, trouble: Trouble) -> None:
    for read in (lambda: openai({"error": error}), lambda: anthropic([{"type": "error", "error": error}])):
        with pytest.raises(VendorError) as caught:
            read()
        assert caught.value.trouble is trouble


def test_a_status_decides_where_the_body_says_nothing() -> None:
    expected = {403: Trouble.KEY_REFUSED, 408: Trouble.TIMED_OUT, 418: Trouble.REJECTED, 302: Trouble.FAILED}
    assert {status: decide_trouble(status, None) for status in expected} == expected


def test_a_pause_is_asked_for_in_seconds_or_by_a_date() -> None:
    assert [read_retry_after(text) for text in ("2.5", "-1", "soon", None, "")] == [2.5, 0, 0, 0, 0]
    later = format_datetime(datetime.now(UTC) + timedelta(minutes=10), usegmt=True)
    assert 500 < read_retry_after(later) <= 600


def test_what_anthropic_sends_beyond_what_was_asked_for_is_passed_over() -> None:
    odd: list[Any] = [
        {"type": "ping"},
        {"type": "news"},
        {"type": "content_block_start", "index": 9, "content_block": {"type": "server_tool_use", "id": "x"}},
        {
            "type": "content_block_delta",
            "index": 9,
            "delta": {"type": "input_json_delta", "partial_json": "{"},
        },
        {"type": "content_block_stop", "index": 9},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta"}},
    ]
    events = anthropic(odd + anthropic_answer(({"type": "text", "text": "Yes"}, []), stop="news"))
    assert [type(event).__name__ for event in events] == [
        "TextStarted",
        "TextAdded",
        "TextEnded",
        "ModelFinished",
    ]
