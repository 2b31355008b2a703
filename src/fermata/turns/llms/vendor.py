"""A model vendor as the settings know it."""

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
