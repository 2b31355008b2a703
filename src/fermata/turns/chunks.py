"""Chunks of the UI message stream, made from what a model streams and what tools return.

Older clients check each chunk with a strict schema: one key too many ends their stream. So every chunk is
made here, and `KEYS` is the whole vocabulary that both version 6 and 7 of the `ai` package accept.
What the vendor attaches to parts (signatures, item ids) is for the next model call and stays on the server.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from fermata.turns.model import Chunk, FinishReason, Usage

#: Keys beside `type` that a chunk may have. `data-*` chunks have `id`, `data` and `transient`.
KEYS: dict[str, frozenset[str]] = {
    "start": frozenset({"messageId", "messageMetadata"}),
    "start-step": frozenset(),
    "finish-step": frozenset(),
    "text-start": frozenset({"id", "providerMetadata"}),
    "text-delta": frozenset({"id", "delta", "providerMetadata"}),
    "text-end": frozenset({"id", "providerMetadata"}),
    "reasoning-start": frozenset({"id", "providerMetadata"}),
    "reasoning-delta": frozenset({"id", "delta", "providerMetadata"}),
    "reasoning-end": frozenset({"id", "providerMetadata"}),
    "tool-input-start": frozenset({"toolCallId", "toolName"}),
    "tool-input-delta": frozenset({"toolCallId", "inputTextDelta"}),
    "tool-input-available": frozenset({"toolCallId", "toolName", "input"}),
    "tool-input-error": frozenset({"toolCallId", "toolName", "input", "errorText"}),
    "tool-output-available": frozenset({"toolCallId", "output", "preliminary"}),
    "tool-output-error": frozenset({"toolCallId", "errorText"}),
    "message-metadata": frozenset({"messageMetadata"}),
    "data-steer": frozenset({"id", "data"}),
    "error": frozenset({"errorText"}),
    "finish": frozenset({"finishReason", "messageMetadata"}),
}


def start(message_id: str, model_id: str) -> Chunk:
    metadata = {"selectedModelId": model_id, "modelId": model_id}
    return {"type": "start", "messageId": message_id, "messageMetadata": metadata}


def start_step() -> Chunk:
    return {"type": "start-step"}


def finish_step() -> Chunk:
    return {"type": "finish-step"}


def part_start(kind: str, part: str) -> Chunk:
    """`kind` is `text` or `reasoning`, here and below."""
    return {"type": f"{kind}-start", "id": part}


def part_delta(kind: str, part: str, delta: str) -> Chunk:
    return {"type": f"{kind}-delta", "id": part, "delta": delta}


def part_end(kind: str, part: str) -> Chunk:
    return {"type": f"{kind}-end", "id": part}


def tool_input_start(call_id: str, tool: str) -> Chunk:
    return {"type": "tool-input-start", "toolCallId": call_id, "toolName": tool}


def tool_input_delta(call_id: str, delta: str) -> Chunk:
    return {"type": "tool-input-delta", "toolCallId": call_id, "inputTextDelta": delta}


def tool_input_available(call_id: str, tool: str, value: Any) -> Chunk:
    return {"type": "tool-input-available", "toolCallId": call_id, "toolName": tool, "input": value}


def tool_input_error(call_id: str, tool: str, raw: Any, error: str) -> Chunk:
    return {
        "type": "tool-input-error",
        "toolCallId": call_id,
        "toolName": tool,
        "input": raw,
        "errorText": error,
    }


def tool_output(call_id: str, output: Any) -> Chunk:
    return {"type": "tool-output-available", "toolCallId": call_id, "output": output}


def tool_output_error(call_id: str, error: str) -> Chunk:
    return {"type": "tool-output-error", "toolCallId": call_id, "errorText": error}


def error(text: str) -> Chunk:
    return {"type": "error", "errorText": text}


def finish(reason: FinishReason) -> Chunk:
    # With metadata, though there is nothing to add: pages look at the message again only when it has some.
    return {"type": "finish", "finishReason": reason.value, "messageMetadata": {}}


def text_part(part: str, text: str) -> list[Chunk]:
    return [part_start("text", part), part_delta("text", part, text), part_end("text", part)]


def step_metadata(reasons: Sequence[tuple[FinishReason, str | None]], last: Usage, total: Usage) -> Chunk:
    """What the page shows about the steps so far; `reasons` holds one pair per finished step."""
    steps = [_reason("finishReason", reason, "rawFinishReason", raw) for reason, raw in reasons]
    newest = _reason("lastStepFinishReason", reasons[-1][0], "lastStepRawFinishReason", reasons[-1][1])
    metadata = {
        **newest,
        "lastStepUsage": usage_to_wire(last),
        "totalMessageUsage": usage_to_wire(total),
        "stepFinishReasons": steps,
    }
    return {"type": "message-metadata", "messageMetadata": metadata}


def _reason(key: str, reason: FinishReason, raw_key: str, raw: str | None) -> dict[str, str]:
    return {key: reason.value} if raw is None else {key: reason.value, raw_key: raw}


def usage_to_wire(usage: Usage) -> dict[str, Any]:
    """Usage as the `ai` package writes it."""
    no_cache = usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens
    return {
        "inputTokens": usage.input_tokens,
        "inputTokenDetails": {
            "noCacheTokens": max(0, no_cache),
            "cacheReadTokens": usage.cache_read_tokens,
            "cacheWriteTokens": usage.cache_write_tokens,
        },
        "outputTokens": usage.output_tokens,
        "outputTokenDetails": {
            "textTokens": max(0, usage.output_tokens - usage.reasoning_tokens),
            "reasoningTokens": usage.reasoning_tokens,
        },
        "totalTokens": usage.input_tokens + usage.output_tokens,
        "reasoningTokens": usage.reasoning_tokens,
        "cachedInputTokens": usage.cache_read_tokens,
    }


#: Chunk types whose neighbours can be joined: the keys that must be equal, and the key that grows.
_JOINABLE = {
    "text-delta": ("id", "delta"),
    "reasoning-delta": ("id", "delta"),
    "tool-input-delta": ("toolCallId", "inputTextDelta"),
}


def merge_deltas(chunks: Iterable[Chunk]) -> list[Chunk]:
    """Join neighbouring deltas of one part. Order, parts and text stay the same."""
    merged: list[Chunk] = []
    pieces: list[str] = []

    def flush() -> None:
        if len(pieces) > 1:
            merged[-1] = {**merged[-1], _JOINABLE[merged[-1]["type"]][1]: "".join(pieces)}
        pieces.clear()

    for chunk in chunks:
        joint = _JOINABLE.get(chunk["type"])
        if joint and pieces and _same_part(merged[-1], chunk, joint[0]):
            pieces.append(chunk[joint[1]])
            continue
        flush()
        merged.append(chunk)
        if joint and "providerMetadata" not in chunk:
            pieces.append(chunk[joint[1]])
    flush()
    return merged


def _same_part(before: Chunk, chunk: Chunk, key: str) -> bool:
    return before["type"] == chunk["type"] and before[key] == chunk[key] and "providerMetadata" not in chunk
