"""Our messages in pydantic-ai's terms. Importing this module takes seconds."""

import base64
import re
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

import orjson
from pydantic_ai import messages as pai

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

#: What models read as a file of its own; text is put into the message.
_SHOWN_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf"})
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/yaml")


def to_pydantic(messages: tuple[Message, ...], system: str) -> list[pai.ModelMessage]:
    """`system` is pydantic-ai's name of the vendor. What another vendor attached to a part is left out, and
    so is its reasoning, which no other vendor takes, and text that is nothing but white space, which some
    refuse. What follows one another on one side is one message."""
    joined: list[pai.ModelMessage] = []
    for message in _translate(messages, system):
        last = joined[-1] if joined else None
        if isinstance(last, pai.ModelRequest) and isinstance(message, pai.ModelRequest):
            joined[-1] = pai.ModelRequest(parts=[*last.parts, *message.parts])
        elif isinstance(last, pai.ModelResponse) and isinstance(message, pai.ModelResponse):
            joined[-1] = pai.ModelResponse(parts=[*last.parts, *message.parts], provider_name=system)
        else:
            joined.append(message)
    return joined


def _translate(messages: tuple[Message, ...], system: str) -> Iterator[pai.ModelMessage]:
    for message in messages:
        match message:
            case UserMessage(parts):
                shown = [part for part in parts if isinstance(part, File) or part.text.strip()]
                content = [part.text if isinstance(part, Text) else _file(part) for part in shown]
                # One text goes as a plain string: not every compatible server reads a list.
                only = content[0] if len(content) == 1 and isinstance(content[0], str) else content
                if content:
                    yield pai.ModelRequest(parts=[pai.UserPromptPart(content=only)])
            case ToolMessage(results):
                yield pai.ModelRequest(parts=[_tool_return(result, system) for result in results])
            case AssistantMessage(parts):
                answer = [part for item in parts if (part := _answer_part(item, system))]
                if answer:
                    yield pai.ModelResponse(parts=answer, provider_name=system)


def _file(file: File) -> pai.UserContent:
    name = f"{file.filename or 'without a name'}, {file.media_type}"
    if not file.url.startswith("data:"):
        # The server fetches nothing on a user's word. The vendor may, for a picture; the model can, by tools.
        if file.media_type in _SHOWN_TYPES and file.media_type.startswith("image/"):
            return pai.ImageUrl(url=file.url, media_type=file.media_type)
        return f"[file {name}: {file.url}]"
    head, _, body = file.url.partition(",")
    try:
        data = unquote_to_bytes(body)
        data = base64.b64decode(data, validate=True) if head.endswith(";base64") else data
    except ValueError:
        return f"[file {name}: its content is damaged]"
    if file.media_type in _SHOWN_TYPES:
        return pai.BinaryContent(data=data, media_type=file.media_type)
    if file.media_type.startswith(_TEXT_TYPES):
        return f"[file {name}]\n{data.decode(errors='replace')}"
    return f"[file {name}: a kind that models cannot read]"


def _tool_return(result: ToolResult, system: str) -> pai.ModelRequestPart:
    call_id = _call_id(result.call_id, system)
    shown = result.output if result.error is None else result.error
    if isinstance(shown, list):
        # The library would take it for several contents.
        shown = orjson.dumps(shown).decode()
    if shown is None or (isinstance(shown, str) and not shown.strip()):
        # Anthropic refuses blank text here too.
        shown = "(no output)"
    outcome: Literal["success", "failed"] = "success" if result.error is None else "failed"
    return pai.ToolReturnPart(result.tool, shown, call_id, outcome=outcome)


def _answer_part(part: Text | Reasoning | ToolCall, system: str) -> pai.ModelResponsePart | None:
    vendor = _own_data(part, system)
    match part:
        case Text(text):
            return pai.TextPart(text, **vendor) if text.strip() else None
        case Reasoning(text):
            return pai.ThinkingPart(text, **vendor) if vendor else None
        case ToolCall(call_id, tool, value):
            value = value if isinstance(value, dict) else {"invalid_arguments": value}
            return pai.ToolCallPart(tool, value, _call_id(call_id, system), **vendor)


def _own_data(part: Text | Reasoning | ToolCall, system: str) -> dict[str, Any]:
    """What this vendor attached to a part, as keyword arguments of the part."""
    return part.vendor if part.vendor and part.vendor.get("provider_name") == system else {}


def _call_id(call_id: str, system: str) -> str:
    """Anthropic takes letters, digits, `_` and `-` only; calls of another vendor's model may have more."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", call_id) if system == "anthropic" else call_id
