"""Messages to pydantic-ai's models, and their events back. Importing this module takes seconds: `vendors.py`
does it when a model is first called."""

import base64
import json
import re
from collections.abc import AsyncGenerator, Iterator
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from pydantic_ai import messages as pai
from pydantic_ai.direct import model_request_stream
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

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
from fermata.turns.partial_json import parse_json

_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
    "tool_call": FinishReason.TOOL_CALLS,
    "error": FinishReason.ERROR,
}


async def stream_events(
    model: Model, settings: ModelSettings, call: ModelCall
) -> AsyncGenerator[ModelEvent, None]:
    """The events of one request. Foreign errors leave as they come; closing the iterator ends the request."""
    parameters = ModelRequestParameters(
        function_tools=[
            ToolDefinition(
                name=tool.name,
                description=tool.description,
                parameters_json_schema=tool.input_schema,
                strict=False,
            )
            for tool in call.tools
        ],
        instruction_parts=[pai.InstructionPart(content=call.instructions)] if call.instructions else None,
    )
    history = list(to_pydantic(call.messages, model.system))
    async with model_request_stream(
        model, history, model_settings=settings, model_request_parameters=parameters, instrument=False
    ) as response:
        translator = _Translator()
        async for event in response:
            for ours in translator.translate(event):
                yield ours
        for ours in translator.end(response):
            yield ours


def to_pydantic(messages: tuple[Message, ...], system: str) -> Iterator[pai.ModelMessage]:
    """`system` is pydantic-ai's name of the vendor. What another vendor attached to a part is left out, and
    so is its reasoning, which no other vendor takes."""
    for message in messages:
        match message:
            case UserMessage(parts):
                content = [part.text if isinstance(part, Text) else _file(part) for part in parts]
                # One text goes as a plain string: not every compatible server reads a list.
                only = content[0] if len(content) == 1 and isinstance(content[0], str) else content
                yield pai.ModelRequest(parts=[pai.UserPromptPart(content=only)])
            case ToolMessage(results):
                yield pai.ModelRequest(parts=[_tool_return(result, system) for result in results])
            case AssistantMessage(parts):
                answer = [part for item in parts if (part := _answer_part(item, system))]
                if answer:
                    yield pai.ModelResponse(parts=answer, provider_name=system)


#: What models read as a file of its own; text is put into the message.
_SHOWN_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf"})
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/yaml")


def _file(file: File) -> pai.UserContent:
    name = f"{file.filename or 'without a name'}, {file.media_type}"
    if not file.url.startswith("data:"):
        # The server fetches nothing on a user's word. The vendor may, for a picture; the model can, by tools.
        picture = file.media_type in _SHOWN_TYPES and file.media_type.startswith("image/")
        return (
            pai.ImageUrl(url=file.url, media_type=file.media_type)
            if picture
            else f"[file {name}: {file.url}]"
        )
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
    if result.error is not None:
        return pai.ToolReturnPart(result.tool, result.error, call_id, outcome="failed")
    return pai.ToolReturnPart(result.tool, result.output, call_id)


def _answer_part(part: Text | Reasoning | ToolCall, system: str) -> pai.ModelResponsePart | None:
    vendor = part.vendor if part.vendor and part.vendor.get("provider_name") == system else {}
    match part:
        case Text(text):
            # Anthropic refuses text that is nothing but white space.
            return pai.TextPart(text, **vendor) if text.strip() else None
        case Reasoning(text):
            return pai.ThinkingPart(text, **vendor) if vendor else None
        case ToolCall(call_id, tool, value):
            value = value if isinstance(value, dict) else {"invalid_arguments": value}
            return pai.ToolCallPart(tool, value, _call_id(call_id, system), **vendor)


def _call_id(call_id: str, system: str) -> str:
    """Anthropic takes letters, digits, `_` and `-` only; calls of another vendor's model may have more."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", call_id) if system == "anthropic" else call_id


def _vendor_data(part: pai.TextPart | pai.ThinkingPart | pai.ToolCallPart) -> dict[str, Any] | None:
    """What must come back with the part in the next call, as keyword arguments of the part, in plain JSON."""
    names = ("id", "signature", "provider_details")
    data = {name: value for name in names if (value := getattr(part, name, None))}
    kept: dict[str, Any] = json.loads(json.dumps({"provider_name": part.provider_name, **data}, default=str))
    return kept if data else None


class _Translator:
    """pydantic-ai counts parts with an index and may add to a part after the next one has begun. Then text
    goes on as a part of its own, and so that no call ends too early all of them end last."""

    def __init__(self) -> None:
        self._parts: dict[int, pai.ModelResponsePart] = {}
        self._open: dict[int, str] = {}
        self._count = 0

    def translate(self, event: pai.ModelResponseStreamEvent) -> Iterator[ModelEvent]:
        match event:
            case pai.PartStartEvent(index=index, part=part):
                self._parts[index] = part
                yield from self._start(index, part)
            case pai.PartDeltaEvent(index=index, delta=pai.ToolCallPartDelta(args_delta=args)):
                if isinstance(args, str) and args:
                    yield ToolInputAdded(self._open[index], args)
            case pai.PartDeltaEvent(index=index, delta=pai.TextPartDelta(content_delta=text)):
                yield from self._add(index, text)
            case pai.PartDeltaEvent(index=index, delta=pai.ThinkingPartDelta(content_delta=text)):
                yield from self._add(index, text or "")
            case pai.PartEndEvent(index=index, part=pai.TextPart() as part):
                yield TextEnded(self._open.pop(index), _vendor_data(part))
            case pai.PartEndEvent(index=index, part=pai.ThinkingPart() as part):
                yield ReasoningEnded(self._open.pop(index), _vendor_data(part))

    def _start(self, index: int, part: pai.ModelResponsePart) -> Iterator[ModelEvent]:
        self._count += 1
        name = str(self._count)
        match part:
            case pai.TextPart():
                self._open[index] = name
                yield TextStarted(name)
                yield from self._add(index, part.content)
            case pai.ThinkingPart():
                self._open[index] = name
                yield ReasoningStarted(name)
                yield from self._add(index, part.content)
            case pai.ToolCallPart():
                self._open[index] = part.tool_call_id
                yield ToolInputStarted(part.tool_call_id, part.tool_name)
                if isinstance(part.args, str) and part.args:
                    yield ToolInputAdded(part.tool_call_id, part.args)

    def _add(self, index: int, text: str) -> Iterator[ModelEvent]:
        if not text:
            return
        thinking = isinstance(self._parts[index], pai.ThinkingPart)
        if index not in self._open:
            self._count += 1
            self._open[index] = str(self._count)
            yield (ReasoningStarted if thinking else TextStarted)(self._open[index])
        yield (ReasoningAdded if thinking else TextAdded)(self._open[index], text)

    def end(self, response: StreamedResponse) -> Iterator[ModelEvent]:
        message = response.get()
        for part in message.parts:
            if isinstance(part, pai.ToolCallPart):
                yield ToolInputEnded(_tool_call(part))
        raw = (response.provider_details or {}).get("finish_reason")
        usage = response.usage if not callable(response.usage) else response.usage()
        yield ModelFinished(
            _REASONS.get(response.finish_reason or "", FinishReason.OTHER),
            raw if isinstance(raw, str) else response.finish_reason,
            Usage(
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cache_read_tokens=usage.cache_read_tokens,
                cache_write_tokens=usage.cache_write_tokens,
                reasoning_tokens=usage.output_reasoning_tokens,
            ),
        )


def _tool_call(part: pai.ToolCallPart) -> ToolCall:
    vendor = _vendor_data(part)
    if isinstance(part.args, dict):
        return ToolCall(part.tool_call_id, part.tool_name, part.args, vendor)
    text = part.args or ""
    try:
        value = parse_json(text) if text.strip() else {}
    except ValueError:
        broken = "The arguments of this call are not valid JSON. The call was not run."
        return ToolCall(part.tool_call_id, part.tool_name, text, vendor, broken)
    if not isinstance(value, dict):
        broken = "The arguments of this call are not a JSON object. The call was not run."
        return ToolCall(part.tool_call_id, part.tool_name, text, vendor, broken)
    return ToolCall(part.tool_call_id, part.tool_name, cast(dict[str, Any], value), vendor)
