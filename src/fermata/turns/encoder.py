"""One model call as it streams: events in, chunks out, and at its end what the model has said."""

import re
from dataclasses import dataclass, field
from typing import Any

from fermata.turns import chunks as make
from fermata.turns.model import (
    AssistantMessage,
    Chunk,
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
)

CUT_INPUT = "The arguments of this call were cut off before their end. The call was not run."


@dataclass(slots=True)
class _Streamed:
    """A text or reasoning part while it grows."""

    kind: str
    pieces: list[str] = field(default_factory=list)
    vendor: dict[str, Any] | None = None
    ended: bool = False


@dataclass(slots=True)
class _Called:
    """A tool call while its input grows."""

    call_id: str
    tool: str
    pieces: list[str] = field(default_factory=list)
    call: ToolCall | None = None


class CallEncoder:
    """Ids in the stream are unique over the whole turn: parts are prefixed with the step's number, and a
    call id that the turn or the chat has seen before (`taken`) gets a suffix, because some servers
    count their calls from zero in every answer."""

    def __init__(self, step: int, taken: set[str]) -> None:
        self._step = step
        self._taken = taken
        self._order: list[_Streamed | _Called] = []
        self._parts: dict[tuple[str, str], _Streamed] = {}
        self._calls: dict[str, _Called] = {}
        self.finished: ModelFinished | None = None

    def encode(self, event: ModelEvent) -> list[Chunk]:
        match event:
            case TextStarted(part):
                return self._start("text", part)
            case ReasoningStarted(part):
                return self._start("reasoning", part)
            case TextAdded(part, delta):
                return self._add("text", part, delta)
            case ReasoningAdded(part, delta):
                return self._add("reasoning", part, delta)
            case TextEnded(part, vendor):
                return self._end("text", part, vendor)
            case ReasoningEnded(part, vendor):
                return self._end("reasoning", part, vendor)
            case ToolInputStarted(call_id, tool):
                call = self._open_call(call_id, tool)
                return [make.tool_input_start(call.call_id, call.tool)]
            case ToolInputAdded(call_id, delta):
                call = self._calls[call_id]
                call.pieces.append(delta)
                return [make.tool_input_delta(call.call_id, plain(delta))]
            case ToolInputEnded(ended):
                return [self._end_call(ended)]
            case ModelFinished():
                self.finished = event
                return self._end_all()

    def answer(self) -> AssistantMessage:
        """Everything said, in order. Text and reasoning without content are left out, unless the vendor
        attached data that must come back."""
        parts: list[Text | Reasoning | ToolCall] = []
        for item in self._order:
            if isinstance(item, _Called):
                if item.call is not None:
                    parts.append(item.call)
            elif (text := plain("".join(item.pieces))) or item.vendor:
                parts.append((Text if item.kind == "text" else Reasoning)(text, item.vendor))
        return AssistantMessage(tuple(parts))

    def _id(self, kind: str, part: str) -> str:
        return f"{self._step}-{kind}-{part}"

    def _start(self, kind: str, part: str) -> list[Chunk]:
        streamed = _Streamed(kind)
        self._parts[kind, part] = streamed
        self._order.append(streamed)
        return [make.part_start(kind, self._id(kind, part))]

    def _add(self, kind: str, part: str, delta: str) -> list[Chunk]:
        self._parts[kind, part].pieces.append(delta)
        return [make.part_delta(kind, self._id(kind, part), plain(delta))] if delta else []

    def _end(self, kind: str, part: str, vendor: dict[str, Any] | None) -> list[Chunk]:
        streamed = self._parts[kind, part]
        streamed.vendor, streamed.ended = vendor, True
        return [make.part_end(kind, self._id(kind, part))]

    def _open_call(self, call_id: str, tool: str) -> _Called:
        unique, count = call_id or "call", 1
        while unique in self._taken:
            count += 1
            unique = f"{call_id or 'call'}_{count}"
        self._taken.add(unique)
        call = _Called(unique, _tool_name(tool))
        self._calls[call_id] = call
        self._order.append(call)
        return call

    def _end_call(self, ended: ToolCall) -> Chunk:
        call = self._calls.get(ended.call_id)
        if call is None or call.call is not None:
            call = self._open_call(ended.call_id, ended.tool)
        try:
            value, broken = plain(ended.input), ended.broken
        except ValueError as error:
            value, broken = None, f"The arguments of this call cannot be used: {error}."
        call.call = ToolCall(call.call_id, call.tool, value, ended.vendor, broken)
        if broken is not None:
            return make.tool_input_error(call.call_id, call.tool, value, broken)
        return make.tool_input_available(call.call_id, call.tool, value)

    def _end_all(self) -> list[Chunk]:
        closing: list[Chunk] = []
        for (kind, part), streamed in self._parts.items():
            if not streamed.ended:
                closing += self._end(kind, part, None)
        for call_id, call in list(self._calls.items()):
            if call.call is None:
                raw = "".join(call.pieces)
                closing.append(self._end_call(ToolCall(call_id, call.tool, raw, broken=CUT_INPUT)))
        return closing


def _tool_name(name: str) -> str:
    """A name that a model made up may be refused by vendors when it comes back to them in the history."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "unnamed"


def plain(value: Any, depth: int = 0) -> Any:
    """JSON that every store and client can take: halves of surrogate pairs have no UTF-8 and are replaced.
    `ValueError` for what is nested deeper than 100 levels."""
    if depth > 100:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return value
    if isinstance(value, dict):
        return {plain(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    return value
