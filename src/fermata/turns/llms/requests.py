"""Builds the requests to vendors with pydantic-ai, which knows how each model wants to be asked: messages,
tools, settings, headers, and what to change in a request that was refused.

The library makes its call with a transport of ours, which sends nothing: it notes the request. Sending it and
reading the answer is the part of `vendors.py`, because the library's reading takes several times as much for
each token as all the rest of its way.

Importing this module takes seconds.
"""

import asyncio
import gc
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import httpx2
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic_ai import exceptions as pai
from pydantic_ai.direct import model_request_stream
from pydantic_ai.messages import InstructionPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.anthropic import AnthropicModel, AnthropicModelSettings
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.vercel import VercelProvider
from pydantic_ai.tools import ToolDefinition

from fermata.turns.llms.messages import to_pydantic
from fermata.turns.llms.vendor import Protocol, Refusal, Request, Vendor
from fermata.turns.model import ModelCall

# A quarter of a million objects were imported, which stay. Every full collection would walk them, and hold up
# all turns and viewers for a third of a second.
gc.freeze()

#: Said by the connection that carries a request.
_OF_CONNECTIONS = frozenset({"host", "connection", "content-length", "accept-encoding"})

#: What is the same in the next call is read from the vendor's cache: tools, instructions, the chat so far.
_CACHED = AnthropicModelSettings(
    anthropic_cache_instructions=True, anthropic_cache_tool_definitions=True, anthropic_cache_messages=True
)


def build(vendor: Vendor, call: ModelCall, refusals: Sequence[Refusal] = ()) -> Request | None:
    """The request for a call; after refusals, the request to try instead. None when there is none.

    Depends on nothing but its arguments. For a thread of its own: a long chat takes a tenth of a second."""
    return asyncio.run(_build(vendor, call, refusals))


async def _build(vendor: Vendor, call: ModelCall, refusals: Sequence[Refusal]) -> Request | None:
    notes = _Notes(refusals)
    async with httpx2.AsyncClient(transport=notes, trust_env=False) as client:
        model = _model(vendor, call.model_id, client)
        # Besides `_Noted`, and what SDKs make of it: that the chat cannot be sent, and the refusals.
        with suppress(_Noted, pai.AgentRunError, pai.UserError):
            await _call(model, call)
    if (noted := notes.request) is None:
        return None
    unsent = _OF_CONNECTIONS if vendor.api_key else _OF_CONNECTIONS | {"authorization"}
    headers = tuple(item for item in noted.headers.multi_items() if item[0] not in unsent)
    return Request(noted.method, str(noted.url), headers, await noted.aread(), model.system)


async def _call(model: Model, call: ModelCall) -> None:
    settings = _CACHED if isinstance(model, AnthropicModel) else None
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
        instruction_parts=[InstructionPart(content=call.instructions)] if call.instructions else None,
    )
    messages = to_pydantic(call.messages, model.system)
    async with model_request_stream(
        model, messages, model_settings=settings, model_request_parameters=parameters, instrument=False
    ):
        pass


def _model(vendor: Vendor, name: str, client: httpx2.AsyncClient) -> Model:
    common: dict[str, Any] = {
        # The SDKs want a key also for a server that wants none.
        "api_key": vendor.api_key or "none",
        "base_url": vendor.base_url,
        "http_client": client,
        "max_retries": 0,
    }
    if vendor.protocol is Protocol.ANTHROPIC:
        return AnthropicModel(name, provider=AnthropicProvider(anthropic_client=AsyncAnthropic(**common)))
    provider = VercelProvider if vendor.protocol is Protocol.GATEWAY else OpenAIProvider
    return OpenAIChatModel(name, provider=provider(openai_client=AsyncOpenAI(**common)))


class _Noted(Exception):
    """The request is known; there will be no answer."""


class _Notes(httpx2.AsyncBaseTransport):
    """Answers with the refusals, one for each request, and notes the request that comes after them."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        self._refusals = list(refusals)
        self.request: httpx2.Request | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if not self._refusals:
            self.request = request
            raise _Noted
        refusal = self._refusals.pop(0)
        return httpx2.Response(refusal.status, content=refusal.body, request=request)
