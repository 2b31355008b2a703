"""Anthropic's messages: the request, and the stream of an answer."""

import re
from dataclasses import dataclass, field
from typing import Any

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
    Message,
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

PATH = "/v1/messages"
HEADERS = {"anthropic-version": "2026-10-21"}

_REASONS = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
}

#: What is the same in the next call is read from the vendor's cache: tools, instructions, the chat so far.
_CACHED = {"cache_control": {"type": "ephemeral", "ttl": "5m"}}

#: The protocol wants a limit for the answer. Models of the first kind refuse a limit that, together with the
#: input, goes beyond their window; for the others it is the most that they can write.
_SMALL = (
    "claude-2",
    "claude-3-",
    "claude-opus-4-0",
    "claude-opus-4-2",
    "claude-sonnet-4-0",
    "claude-sonnet-4-2",
)
_MEDIUM = ("claude-haiku-4-5", "claude-opus-4-5", "claude-sonnet-4-5")
_LARGE = (
    *("claude-fable-5", "claude-mythos-5", "claude-opus-4-6", "claude-opus-4-7", "claude-opus-4-8"),
    *("claude-opus-5", "claude-sonnet-4-6", "claude-sonnet-5", "claude-haiku-5-5"),
)


def _answer_limit(model: str) -> int:
    if model.startswith(_SMALL) or model in ("claude-opus-4", "claude-sonnet-4"):
        return 4_096
    if model.startswith(_LARGE):
        return 128_000
    return 64_000 if model.startswith(_MEDIUM) else 16_384


def to_request(call: ModelCall, vendor: str) -> dict[str, Any]:
    """`vendor` is the name under which data of this vendor is attached to parts."""
    messages: list[dict[str, Any]] = []
    for message in call.messages:
        role = "assistant" if isinstance(message, AssistantMessage) else "user"
        content = _content(message, vendor)
        if content and messages and messages[-1]["role"] == role:
            messages[-1]["content"] += content
        elif content:
            messages.append({"role": role, "content": content})
    if messages:
        messages[-1]["content"][-1] |= _CACHED
    tools = [
        {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}
        for tool in call.tools
    ]
    request: dict[str, Any] = {
        "model": call.model_id,
        "max_tokens": _answer_limit(call.model_id),
        "messages": messages,
        "stream": True,
    }
    if call.instructions:
        request["system"] = [{"type": "text", "text": call.instructions, **_CACHED}]
    if tools:
        tools[-1] |= _CACHED
        request |= {"tool_choice": {"type": "auto"}, "tools": tools}
    return request


def _content(message: Message, vendor: str) -> list[dict[str, Any]]:
    match message:
        case UserMessage(parts):
            # Text that is nothing but white space is refused, here and below.
            return [_user_block(part) for part in parts if not isinstance(part, Text) or part.text.strip()]
        case ToolMessage(results):
            return [_tool_result(result) for result in results]
        case AssistantMessage(parts):
            return [block for part in parts if (block := _answer_block(part, own_data(part, vendor)))]


def _user_block(part: Text | File) -> dict[str, Any]:
    shown = part.text if isinstance(part, Text) else read_file(part)
    if isinstance(shown, str):
        return {"type": "text", "text": shown}
    kind = "image" if shown.is_picture else "document"
    if shown.data is None:
        return {"type": kind, "source": {"type": "url", "url": shown.url}}
    source = {"type": "base64", "media_type": shown.media_type, "data": shown.data}
    return {"type": kind, "source": source}


def _tool_result(result: ToolResult) -> dict[str, Any]:
    text = output_text(result.output) if result.error is None else result.error
    return {
        "type": "tool_result",
        "tool_use_id": _call_id(result.call_id),
        "content": [{"type": "text", "text": text}] if text.strip() else [],
        "is_error": result.error is not None,
    }


def _answer_block(part: Text | Reasoning | ToolCall, data: dict[str, Any] | None) -> dict[str, Any] | None:
    match part:
        case Text(text):
            return {"type": "text", "text": text} if text.strip() else None
        case Reasoning(text):
            if not data or not data.get("signature"):
                return None
            if data.get("id") == "redacted_thinking":
                return {"type": "redacted_thinking", "data": data["signature"]}
            return {"type": "thinking", "thinking": text, "signature": data["signature"]}
        case ToolCall():
            use = {"id": _call_id(part.call_id), "name": part.tool, "input": input_object(part)}
            return {"type": "tool_use", **use}


def _call_id(call_id: str) -> str:
    """Letters, digits, `_` and `-` only; calls of another vendor's model may have more."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", call_id)


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
            return events + (self._add(started, output_text(whole)) if whole else [])
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
