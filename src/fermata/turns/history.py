"""Messages of the model's view of a chat: to JSON and back, from a user's UI message, and repaired."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from fermata.turns.model import (
    AssistantMessage,
    File,
    Message,
    Reasoning,
    Text,
    ToolCall,
    ToolMessage,
    ToolResult,
    UserMessage,
)

Part = Text | Reasoning | ToolCall | File | ToolResult

_TYPES: dict[str, type[Part]] = {
    "text": Text,
    "reasoning": Reasoning,
    "tool-call": ToolCall,
    "file": File,
    "tool-result": ToolResult,
}
_NAMES = {part: name for name, part in _TYPES.items()}

TITLE_LIMIT = 80


def message_to_json(message: Message) -> dict[str, Any]:
    match message:
        case UserMessage(parts):
            return {"role": "user", "parts": [part_to_json(part) for part in parts]}
        case AssistantMessage(parts):
            return {"role": "assistant", "parts": [part_to_json(part) for part in parts]}
        case ToolMessage(results):
            return {"role": "tool", "parts": [part_to_json(part) for part in results]}


def message_from_json(data: dict[str, Any]) -> Message:
    """The inverse of `message_to_json`; `ValueError` for anything that it did not write."""
    parts = tuple(part_from_json(part) for part in data["parts"])
    role = data["role"]
    if role == "user" and (user := tuple(p for p in parts if isinstance(p, Text | File))) == parts:
        return UserMessage(user)
    if (
        role == "assistant"
        and (answer := tuple(p for p in parts if isinstance(p, Text | Reasoning | ToolCall))) == parts
    ):
        return AssistantMessage(answer)
    if role == "tool" and (results := tuple(p for p in parts if isinstance(p, ToolResult))) == parts:
        return ToolMessage(results)
    raise ValueError(f"not a message of the history: role {role!r}")


def history_to_json(messages: Iterable[Message]) -> list[dict[str, Any]]:
    return [message_to_json(message) for message in messages]


def history_from_json(data: Iterable[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(message_from_json(message) for message in data)


def part_to_json(part: Part) -> dict[str, Any]:
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    required = {"output", "input"}
    return {"type": _NAMES[type(part)]} | {k: v for k, v in values.items() if v is not None or k in required}


def part_from_json(data: dict[str, Any]) -> Part:
    try:
        return _TYPES[data["type"]](**{key: value for key, value in data.items() if key != "type"})
    except (KeyError, TypeError):
        raise ValueError(f"not a part of the history: {data.get('type')!r}") from None


def from_ui_message(message: dict[str, Any]) -> UserMessage:
    """What a model sees of a user's message: its text and files. Other parts are for the page.

    The message is untrusted; parts that are not well formed are left out. No parts may be left: whoever
    accepts messages refuses such a one.
    """
    return UserMessage(tuple(part for data in _dicts(message.get("parts")) if (part := _user_part(data))))


def _user_part(data: dict[str, Any]) -> Text | File | None:
    match data:
        case {"type": "text", "text": str(text)} if text.strip():
            return Text(text)
        case {"type": "file", "mediaType": str(media_type), "url": str(url)}:
            if not url.startswith(("data:", "https://")):
                return None
            filename = data.get("filename")
            return File(media_type, url, filename if isinstance(filename, str) else None)
    return None


def title_from(message: dict[str, Any]) -> str | None:
    """A chat's title: the words of a user's UI message on one line, at most 80 characters."""
    texts = [data.get("text") for data in _dicts(message.get("parts")) if data.get("type") == "text"]
    title = " ".join(" ".join(text for text in texts if isinstance(text, str)).split())
    if len(title) > TITLE_LIMIT:
        title = title[: TITLE_LIMIT - 1].rstrip() + "…"
    return title or None


def _dicts(parts: Any) -> list[dict[str, Any]]:
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


NO_RESULT = "No result of this call was recorded. Whether it acted is not known."


def repaired(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same history with a result for every call, directly after it, and no result without a call.

    One dangling call makes vendors refuse every later request, so whatever is read from storage goes
    through here. Assistant messages without content are dropped for the same reason.
    """
    result: list[Message] = []
    open_calls: dict[str, ToolCall] = {}
    answers: dict[str, ToolResult] = {}

    def close() -> None:
        if open_calls:
            result.append(
                ToolMessage(
                    tuple(
                        answers.get(call_id) or ToolResult(call_id, call.tool, None, NO_RESULT)
                        for call_id, call in open_calls.items()
                    )
                )
            )
        open_calls.clear()
        answers.clear()

    for message in messages:
        if isinstance(message, ToolMessage):
            answers.update({item.call_id: item for item in message.results if item.call_id in open_calls})
            continue
        close()
        if isinstance(message, AssistantMessage):
            if not message.parts:
                continue
            open_calls.update({part.call_id: part for part in message.parts if isinstance(part, ToolCall)})
        result.append(message)
    close()
    return tuple(result)


def call_ids(messages: Iterable[Message]) -> set[str]:
    return {
        part.call_id
        for message in messages
        if isinstance(message, AssistantMessage)
        for part in message.parts
        if isinstance(part, ToolCall)
    }
