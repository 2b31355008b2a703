"""Reads the answers of Anthropic's messages as they are streamed."""

from dataclasses import dataclass, field
from typing import Any

import orjson

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
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
}


@dataclass(slots=True)
class _Block:
    """A content block while it grows."""

    kind: str
    #: Of the part, or the call's id.
    name: str
    tool: str = ""
    pieces: list[str] = field(default_factory=list)
    signature: str = ""


class AnswerReader:
    """The events of one answer. Blocks of kinds that were not asked for are passed over."""

    def __init__(self, vendor: str) -> None:
        self._vendor = vendor
        self._blocks: dict[Any, _Block] = {}
        self._count = 0
        self._usage: dict[str, Any] = {}
        self._reason: str | None = None
        self._done = False

    def read(self, data: bytes) -> list[ModelEvent]:
        event = read_event(data)
        match event.get("type"):
            case "content_block_delta":
                block = self._blocks.get(event.get("index"))
                return self._grow(block, as_object(event.get("delta"))) if block else []
            case "content_block_start":
                return self._start(event.get("index"), as_object(event.get("content_block")))
            case "content_block_stop":
                block = self._blocks.pop(event.get("index"), None)
                return [self._end(block)] if block else []
            case "message_start":
                self._usage |= as_object(as_object(event.get("message")).get("usage"))
            case "message_delta":
                self._usage |= as_object(event.get("usage"))
                self._reason = as_text(as_object(event.get("delta")).get("stop_reason")) or self._reason
            case "message_stop":
                self._done = True
            case "error":
                raise VendorError(decide_trouble(None, event))
        return []

    def end(self) -> list[ModelEvent]:
        """The last events, once there is nothing more to read."""
        if not self._done:
            raise VendorError(Trouble.CONNECTION_FAILED)
        events = [self._end(block) for block in self._blocks.values()]
        reason = _REASONS.get(self._reason or "", FinishReason.OTHER)
        return [*events, ModelFinished(reason, self._reason, _usage(self._usage))]

    def _start(self, index: Any, block: dict[str, Any]) -> list[ModelEvent]:
        kind = as_text(block.get("type"))
        if kind == "tool_use":
            call_id = as_text(block.get("id")) or f"call_{index}"
            started = self._blocks[index] = _Block(kind, call_id, as_text(block.get("name")))
            whole = as_object(block.get("input"))
            events: list[ModelEvent] = [ToolInputStarted(call_id, started.tool)]
            return events + (self._add(started, orjson.dumps(whole).decode()) if whole else [])
        if kind not in ("text", "thinking", "redacted_thinking"):
            return []
        self._count += 1
        started = self._blocks[index] = _Block(kind, str(self._count))
        if kind == "text":
            return [TextStarted(started.name), *self._add(started, as_text(block.get("text")))]
        started.signature = as_text(block.get("data" if kind == "redacted_thinking" else "signature"))
        return [ReasoningStarted(started.name), *self._add(started, as_text(block.get("thinking")))]

    def _grow(self, block: _Block, delta: dict[str, Any]) -> list[ModelEvent]:
        match delta.get("type"):
            case "text_delta":
                return self._add(block, as_text(delta.get("text")))
            case "input_json_delta":
                return self._add(block, as_text(delta.get("partial_json")))
            case "thinking_delta":
                return self._add(block, as_text(delta.get("thinking")))
            case "signature_delta":
                block.signature += as_text(delta.get("signature"))
        return []

    def _add(self, block: _Block, text: str) -> list[ModelEvent]:
        if not text:
            return []
        if block.kind == "text":
            return [TextAdded(block.name, text)]
        if block.kind == "tool_use":
            block.pieces.append(text)
            return [ToolInputAdded(block.name, text)]
        return [ReasoningAdded(block.name, text)]

    def _end(self, block: _Block) -> ModelEvent:
        if block.kind == "text":
            return TextEnded(block.name)
        if block.kind == "tool_use":
            return ToolInputEnded(finished_call(block.name, block.tool, "".join(block.pieces)))
        vendor = {"provider_name": self._vendor, "signature": block.signature}
        if block.kind == "redacted_thinking":
            vendor["id"] = block.kind
        return ReasoningEnded(block.name, vendor if block.signature else None)


def _usage(usage: dict[str, Any]) -> Usage:
    read, written = (
        as_count(usage.get("cache_read_input_tokens")),
        as_count(usage.get("cache_creation_input_tokens")),
    )
    return Usage(
        # Here the vendor counts what came from the cache apart from the rest.
        input_tokens=as_count(usage.get("input_tokens")) + read + written,
        output_tokens=as_count(usage.get("output_tokens")),
        cache_read_tokens=read,
        cache_write_tokens=written,
    )
