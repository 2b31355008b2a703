"""Reads the answers of OpenAI's chat completions, as OpenAI and many others stream them.

Servers differ in what they send. So a field that is missing, unknown or of another kind is passed over, and
an answer counts as complete when the server says so in either of its two ways.
"""

from dataclasses import dataclass, field
from typing import Any

from fermata.turns.llms.reading import as_count, as_object, as_text, finished_call, read_event
from fermata.turns.llms.vendor_errors import Trouble, VendorError, decide_trouble
from fermata.turns.model import (
    FinishReason,
    ModelEvent,
    ModelFinished,
    ReasoningAdded,
    ReasoningEnded,
    ReasoningStarted,
    TextAdded,
    TextEnded,
    TextStarted,
    ToolInputAdded,
    ToolInputEnded,
    ToolInputStarted,
    Usage,
)

_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
}

#: Names under which servers stream their model's reasoning, and want it back.
_REASONING_FIELDS = ("reasoning", "reasoning_content")


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
