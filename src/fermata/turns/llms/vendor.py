"""A model vendor as the settings know it, and what goes over its wire."""

from dataclasses import dataclass, field
from enum import StrEnum


class Protocol(StrEnum):
    #: OpenAI itself, and every server that speaks its chat completions.
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    #: The Vercel AI Gateway: OpenAI's protocol, models named `vendor/model`.
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Vendor:
    """Where a vendor's models are and with which key."""

    #: As people call it, for error messages.
    title: str
    protocol: Protocol
    #: None for a server that wants no key.
    api_key: str | None = field(repr=False)
    base_url: str


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)
    #: pydantic-ai's name of the vendor, under which the vendor's data is attached to parts.
    vendor: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that tells an error."""

    status: int
    body: bytes
