"""OpenAI's chat completions, as OpenAI and many others serve them: the request, and the stream of an answer.

Servers differ in what they send. So a field that is missing, unknown or of another kind is passed over, and
an answer counts as complete when the server says so in either of its two ways.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from fermata.turns.llms.parts import (
    as_count,
    as_object,
    as_text,
    finished_call,
    input_object,
    output_text,
    own_data,
    read_event,
    read_file,
)
from fermata.turns.llms.vendor_errors import Trouble, VendorError, decide_trouble
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
    ReasoningStarted,
    Text,
    TextAdded,
    TextEnded,
    TextStarted,
    ToolCall,
    ToolInputAdded,
    ToolInputEnded,
    ToolInputStarted,
    ToolMessage,
    ToolResult,
    Usage,
    UserMessage,
)

PATH = "/chat/completions"
HEADERS: dict[str, str] = {}

_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
}

#: Names under which servers stream their model's reasoning, and want it back.
_REASONING_FIELDS = ("reasoning", "reasoning_content")


def to_request(call: ModelCall, vendor: str) -> dict[str, Any]:
    """`vendor` is the name under which data of this vendor is attached to parts."""
    messages = [{"role": "system", "content": call.instructions}] if call.instructions else []
    for message in call.messages:
        match message:
            case UserMessage(parts):
                messages.append({"role": "user", "content": _user_content(parts)})
            case ToolMessage(results):
                messages += (_tool_result(result) for result in results)
            case AssistantMessage():
                messages += _assistant(message, vendor)
    request: dict[str, Any] = {
        "model": call.model_id,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if call.tools:
        request["tool_choice"] = "auto"
        request["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.input_schema,
                },
            }
            for tool in call.tools
        ]
    return request


def _user_content(parts: tuple[Text | File, ...]) -> Any:
    # One text goes as a plain string: not every compatible server reads a list.
    if len(parts) == 1 and isinstance(parts[0], Text):
        return parts[0].text
    return [_user_part(part) for part in parts]


def _user_part(part: Text | File) -> dict[str, Any]:
    shown = part.text if isinstance(part, Text) else read_file(part)
    if isinstance(shown, str):
        return {"type": "text", "text": shown}
    if shown.is_picture:
        return {"type": "image_url", "image_url": {"url": shown.url}}
    return {"type": "file", "file": {"file_data": shown.url, "filename": shown.filename or "document.pdf"}}


def _tool_result(result: ToolResult) -> dict[str, Any]:
    output = result.output if result.error is None else {"error": result.error}
    return {"role": "tool", "tool_call_id": result.call_id, "content": output_text(output)}


def _assistant(message: AssistantMessage, vendor: str) -> Iterator[dict[str, Any]]:
    """The message; nothing when all of it is another vendor's reasoning."""
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    reasoning: dict[str, list[str]] = {}
    for part in message.parts:
        data = own_data(part, vendor)
        match part:
            case Text(text) if text.strip():
                texts.append(text)
            case Reasoning(text) if data and data.get("id") in _REASONING_FIELDS:
                reasoning.setdefault(data["id"], []).append(text)
            case ToolCall():
                calls.append(_call(part, data))
    if texts or calls or reasoning:
        yield {
            "role": "assistant",
            **{name: "\n\n".join(pieces) for name, pieces in reasoning.items()},
            "content": "\n\n".join(texts) or None,
            **({"tool_calls": calls} if calls else {}),
        }


def _call(call: ToolCall, data: dict[str, Any] | None) -> dict[str, Any]:
    arguments = orjson.dumps(input_object(call)).decode()
    function = {"name": call.tool, "arguments": arguments}
    extra = as_object((data or {}).get("provider_details")).get("extra_content")
    described = {"id": call.call_id, "type": "function", "function": function}
    return described | {"extra_content": extra} if extra else described


@dataclass(slots=True)
class _Call:
    call_id: str
    tool: str
    pieces: list[str] = field(default_factory=list)
    #: What Google's models sign their calls with.
    extra: Any = None


class AnswerReader:
    """The events of one answer. A part ends where another begins, except calls, whose pieces may interleave:
    they end last."""

    def __init__(self, vendor: str) -> None:
        self._vendor = vendor
        #: The part that grows: None for text, else the field of the reasoning; and its name.
        self._open: tuple[str | None, str] | None = None
        self._count = 0
        self._calls: list[_Call] = []
        self._by_index: dict[Any, _Call] = {}
        self._usage = Usage()
        self._reason: str | None = None
        self._done = False

    def read(self, data: bytes) -> list[ModelEvent]:
        if data == b"[DONE]":
            self._done = True
            return []
        chunk = read_event(data)
        if chunk.get("error"):
            raise VendorError(decide_trouble(None, chunk))
        if chunk.get("usage"):
            self._usage = _usage(as_object(chunk["usage"]))
        choices = chunk.get("choices")
        if not choices or not isinstance(choices, list):
            return []
        choice = as_object(choices[0])
        delta = as_object(choice.get("delta"))
        events: list[ModelEvent] = []
        for name in _REASONING_FIELDS:
            if reasoning := as_text(delta.get(name)):
                events += self._grow(name, reasoning)
                break
        if content := delta.get("content") or delta.get("refusal"):
            text = content if isinstance(content, str) else _joined(content)
            if text:
                events += self._grow(None, text)
        if calls := delta.get("tool_calls"):
            for piece in calls if isinstance(calls, list) else ():
                events += self._grow_call(as_object(piece))
        if reason := as_text(choice.get("finish_reason")):
            self._reason = "content_filter" if delta.get("refusal") else reason
        return events

    def end(self) -> list[ModelEvent]:
        """The last events, once there is nothing more to read."""
        if self._reason is None and not self._done:
            raise VendorError(Trouble.CONNECTION_FAILED)
        events = self._end_part()
        for call in self._calls:
            details = {"provider_details": {"extra_content": call.extra}} if call.extra else None
            vendor = {"provider_name": self._vendor, **details} if details else None
            ended = finished_call(call.call_id, call.tool, "".join(call.pieces), vendor)
            events.append(ToolInputEnded(ended))
        # Some servers never give a reason.
        raw = self._reason or ("tool_calls" if self._calls else "stop")
        events.append(ModelFinished(_REASONS.get(raw, FinishReason.OTHER), raw, self._usage))
        return events

    def _grow(self, kind: str | None, text: str) -> list[ModelEvent]:
        events: list[ModelEvent] = []
        if self._open is None or self._open[0] != kind:
            events = self._end_part()
            self._count += 1
            self._open = (kind, str(self._count))
            events.append((TextStarted if kind is None else ReasoningStarted)(self._open[1]))
        events.append((TextAdded if kind is None else ReasoningAdded)(self._open[1], text))
        return events

    def _end_part(self) -> list[ModelEvent]:
        if self._open is None:
            return []
        (kind, name), self._open = self._open, None
        if kind is None:
            return [TextEnded(name)]
        return [ReasoningEnded(name, {"provider_name": self._vendor, "id": kind})]

    def _grow_call(self, piece: dict[str, Any]) -> list[ModelEvent]:
        function = as_object(piece.get("function"))
        events: list[ModelEvent] = []
        index, call_id, tool = piece.get("index"), as_text(piece.get("id")), as_text(function.get("name"))
        call = self._by_index.get(index)
        # Some servers give no index, or the same to every call.
        if call is None or (tool and call_id and call_id != call.call_id):
            call = _Call(self._unused(call_id or f"call_{len(self._calls)}"), tool)
            self._calls.append(call)
            self._by_index[index] = call
            events = [*self._end_part(), ToolInputStarted(call.call_id, call.tool)]
        call.extra = piece.get("extra_content") or call.extra
        if arguments := as_text(function.get("arguments")):
            call.pieces.append(arguments)
            events.append(ToolInputAdded(call.call_id, arguments))
        return events

    def _unused(self, call_id: str) -> str:
        taken = {call.call_id for call in self._calls}
        return call_id if call_id not in taken else f"{call_id}_{len(self._calls)}"


def _joined(content: Any) -> str:
    """Text that is streamed as a list of parts."""
    parts = content if isinstance(content, list) else ()
    return "".join(as_text(as_object(part).get("text")) for part in parts)


def _usage(usage: dict[str, Any]) -> Usage:
    return Usage(
        input_tokens=as_count(usage.get("prompt_tokens")),
        output_tokens=as_count(usage.get("completion_tokens")),
        cache_read_tokens=as_count(as_object(usage.get("prompt_tokens_details")).get("cached_tokens")),
        reasoning_tokens=as_count(as_object(usage.get("completion_tokens_details")).get("reasoning_tokens")),
    )
