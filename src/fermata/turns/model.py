"""What a turn is made of: messages as a model sees them, events as a model streams them, and outcomes.

These types are ours, so that neither a vendor's SDK nor the wire protocol decides what is stored. The
door to the vendors (`llms/`) and the UI message stream (`chunks.py`) translate at their edges. All of
them survive a round trip through JSON (`history.py`).
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

#: One chunk of the AI SDK UI message stream v1, as it goes over the wire: `{"type": ..., ...}`.
Chunk = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    #: Opaque data of the vendor that must come back unchanged in the next call (signatures, item ids).
    vendor: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str
    vendor: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    call_id: str
    tool: str
    input: Any
    vendor: dict[str, Any] | None = None
    #: Set when the model's arguments were not valid JSON; `input` then holds the raw text.
    broken: str | None = None


@dataclass(frozen=True, slots=True)
class File:
    media_type: str
    #: `data:` URL or https URL.
    url: str
    filename: str | None = None


@dataclass(frozen=True, slots=True)
class ToolResult:
    call_id: str
    tool: str
    #: What the user's page shows: plain JSON.
    output: Any
    #: Text in place of a result: the tool was refused, cancelled or failed before it had a result.
    error: str | None = None


@dataclass(frozen=True, slots=True)
class UserMessage:
    parts: tuple[Text | File, ...]


@dataclass(frozen=True, slots=True)
class AssistantMessage:
    parts: tuple[Text | Reasoning | ToolCall, ...]


@dataclass(frozen=True, slots=True)
class ToolMessage:
    results: tuple[ToolResult, ...]


Message = UserMessage | AssistantMessage | ToolMessage


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content-filter"
    TOOL_CALLS = "tool-calls"
    ERROR = "error"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or more model calls. Cached and reasoning tokens are included in the totals."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


# What a model streams. Text and reasoning parts have an id that is unique within one call and are
# started, added to and ended in this order; parts may interleave.


@dataclass(frozen=True, slots=True)
class TextStarted:
    part: str


@dataclass(frozen=True, slots=True)
class TextAdded:
    part: str
    delta: str


@dataclass(frozen=True, slots=True)
class TextEnded:
    part: str
    vendor: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ReasoningStarted:
    part: str


@dataclass(frozen=True, slots=True)
class ReasoningAdded:
    part: str
    delta: str


@dataclass(frozen=True, slots=True)
class ReasoningEnded:
    part: str
    vendor: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ToolInputStarted:
    call_id: str
    tool: str


@dataclass(frozen=True, slots=True)
class ToolInputAdded:
    call_id: str
    delta: str


@dataclass(frozen=True, slots=True)
class ToolInputEnded:
    call: ToolCall


@dataclass(frozen=True, slots=True)
class ModelFinished:
    """Always the last event of a call that was not cut."""

    reason: FinishReason
    raw_reason: str | None = None
    usage: Usage = field(default_factory=Usage)


ModelEvent = (
    TextStarted
    | TextAdded
    | TextEnded
    | ReasoningStarted
    | ReasoningAdded
    | ReasoningEnded
    | ToolInputStarted
    | ToolInputAdded
    | ToolInputEnded
    | ModelFinished
)


@dataclass(frozen=True, slots=True)
class ToolDescription:
    name: str
    description: str
    #: JSON Schema of the input, an object.
    input_schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One request to a model: everything it may see."""

    model_id: str
    instructions: str
    messages: tuple[Message, ...]
    tools: tuple[ToolDescription, ...]


class TurnEnd(StrEnum):
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    end: TurnEnd
    #: Chunks that end the stream (closing open parts, `error`, `finish`), not yet appended: whoever runs the
    #: turn appends them in the transaction that stores the message and frees the chat.
    closing: tuple[Chunk, ...]
    #: The assistant's UI message: the fold of every appended chunk and of `closing`.
    message: dict[str, Any]
    #: What later model calls see of this turn: assistant and tool messages, every call answered.
    history: tuple[Message, ...]
    usage: Usage
    #: A sentence for people when `end` is FAILED.
    error: str | None = None
