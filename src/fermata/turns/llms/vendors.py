"""The one door to model vendors, through pydantic-ai's models.

Two protocols reach nearly all of them: OpenAI's chat completions (OpenAI itself, any compatible server, the
Vercel AI Gateway) and Anthropic's messages. SDKs are imported with the first call, in a thread, because
that takes seconds.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import structlog

from fermata.turns.model import ModelCall, ModelEvent

if TYPE_CHECKING:
    from pydantic_ai.models import Model

log = structlog.get_logger(__name__)

#: Seconds before each further attempt at a call that has not begun to answer.
PAUSES = (0.5, 2.0, 5.0)
#: A vendor that asks for a longer pause than this gets no further attempt.
LONGEST_PAUSE = 30.0
CONNECT_LIMIT = 10.0
#: Seconds between two pieces of an answer.
READ_LIMIT = 300.0


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


class VendorLlm:
    """The models of one vendor. A call's `model_id` is the vendor's own name for the model."""

    def __init__(self, vendor: Vendor, *, pauses: Sequence[float] = PAUSES) -> None:
        self._vendor = vendor
        self._pauses = pauses
        self._client: Any = None

    @asynccontextmanager
    async def stream(self, call: ModelCall) -> AsyncIterator[AsyncIterator[ModelEvent]]:
        async with aclosing(self._events(call)) as events:
            yield events

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _events(self, call: ModelCall) -> AsyncGenerator[ModelEvent, None]:
        door, errors = await asyncio.to_thread(_import_door, self._vendor.protocol)
        model = self._model(call.model_id)
        try:
            first, rest = await self._begin(lambda: door.stream_events(model, self._settings(), call), errors)
            async with aclosing(rest):
                yield first
                async for event in rest:
                    yield event
        except errors.FOREIGN as error:
            self._note(error, again=False)
            # `from None`: the vendor's own words may hold a key.
            raise errors.to_model_error(error, self._vendor.title, call.model_id) from None

    async def _begin(
        self, start: Callable[[], AsyncGenerator[ModelEvent, None]], errors: ModuleType
    ) -> tuple[ModelEvent, AsyncGenerator[ModelEvent, None]]:
        """The first event of an answer and the rest of it; tried again while there is no first event."""
        for pause in self._pauses:
            events = start()
            try:
                return await anext(events), events
            except errors.FOREIGN as error:
                asked = errors.retry_after(error)
                if not errors.is_retriable(error) or asked > LONGEST_PAUSE:
                    raise
                self._note(error, again=True)
            await asyncio.sleep(max(pause, asked))
        events = start()
        return await anext(events), events

    def _note(self, error: Exception, *, again: bool) -> None:
        log.warning(
            "model_call_failed",
            vendor=self._vendor.title,
            error=type(error).__name__,
            status=getattr(error, "status_code", None),
            code=getattr(error, "provider_error_code", None),
            again=again,
        )

    def _settings(self) -> dict[str, Any]:
        if self._vendor.protocol is not Protocol.ANTHROPIC:
            return {}
        names = (
            "anthropic_cache_instructions",
            "anthropic_cache_tool_definitions",
            "anthropic_cache_messages",
        )
        return dict.fromkeys(names, True)

    def _model(self, name: str) -> "Model":
        if self._vendor.protocol is Protocol.ANTHROPIC:
            return self._anthropic(name)
        from openai import AsyncOpenAI, Timeout
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider
        from pydantic_ai.providers.vercel import VercelProvider

        self._client = self._client or AsyncOpenAI(
            # The SDK wants a key even for a server that wants none.
            api_key=self._vendor.api_key or "none",
            base_url=self._vendor.base_url,
            max_retries=0,
            timeout=Timeout(READ_LIMIT, connect=CONNECT_LIMIT),
        )
        gateway = self._vendor.protocol is Protocol.GATEWAY
        provider = (VercelProvider if gateway else OpenAIProvider)(openai_client=self._client)
        return OpenAIChatModel(name, provider=provider)

    def _anthropic(self, name: str) -> "Model":
        from anthropic import AsyncAnthropic, Timeout
        from pydantic_ai.models.anthropic import AnthropicModel
        from pydantic_ai.providers.anthropic import AnthropicProvider

        self._client = self._client or AsyncAnthropic(
            api_key=self._vendor.api_key or "none",
            base_url=self._vendor.base_url,
            max_retries=0,
            timeout=Timeout(READ_LIMIT, connect=CONNECT_LIMIT),
        )
        return AnthropicModel(name, provider=AnthropicProvider(anthropic_client=self._client))


def _import_door(protocol: Protocol) -> tuple[ModuleType, ModuleType]:
    """pydantic-ai and the SDK of the protocol, imported by whoever calls a vendor first."""
    sdk = "anthropic" if protocol is Protocol.ANTHROPIC else "openai"
    import_module(f"pydantic_ai.models.{sdk}")
    from fermata.turns.llms import pydantic_door, vendor_errors

    return pydantic_door, vendor_errors
