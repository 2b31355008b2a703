"""Asks a vendor through pydantic-ai, which knows how each model wants to be asked: messages, tools, settings,
headers, and what to change in a request that was refused.

Its client is given a transport of ours, and through that the request goes out. The transport hands a refusal
back to the library. An answer it keeps for our own reader, because the library's way takes several times as
much for each token as all the rest of its way; it then ends the library's part with `_Answered`.

Importing this module takes seconds: `vendors.py` does it when a model is first called.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx2
import orjson
import structlog
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
from yarl import URL

from fermata.turns.llms.messages import to_pydantic
from fermata.turns.llms.vendor import Protocol, Vendor
from fermata.turns.llms.vendor_errors import Trouble, VendorError, decide_trouble, read_retry_after
from fermata.turns.model import ModelCall

log = structlog.get_logger(__name__)

#: Bytes of an answer that tells an error; more than this says nothing more.
ERROR_LIMIT = 1 << 16

#: Said by the connection itself.
_OF_CONNECTIONS = frozenset({"host", "connection", "content-length", "accept-encoding"})

#: What is the same in the next call is read from the vendor's cache: tools, instructions, the chat so far.
_CACHED = AnthropicModelSettings(
    anthropic_cache_instructions=True, anthropic_cache_tool_definitions=True, anthropic_cache_messages=True
)


@dataclass(frozen=True, slots=True)
class Answer:
    response: aiohttp.ClientResponse
    #: pydantic-ai's name of the vendor, under which data is attached to parts.
    vendor: str


@asynccontextmanager
async def ask(session: aiohttp.ClientSession, vendor: Vendor, call: ModelCall) -> AsyncIterator[Answer]:
    """One answer, of which nothing but the head has been read; leaving the context ends the request.
    `VendorError` when there is none."""
    transport = _Transport(session, keyless=vendor.api_key is None)
    async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
        model = _model(vendor, call.model_id, client)
        # All that can be raised here is known better by the transport, or it was raised before a request.
        with suppress(_Answered, _Unreachable, pai.AgentRunError, pai.UserError):
            await _request(model, call)
        if transport.answer is None:
            raise transport.failed or VendorError(Trouble.NOT_ASKED)
        yield Answer(transport.answer, model.system)


async def _request(model: Model, call: ModelCall) -> None:
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


class _Answered(Exception):
    """The request has its answer; the library is not to read it."""


class _Unreachable(Exception):
    """The network failed."""


class _Transport(httpx2.AsyncBaseTransport):
    """Carries the library's requests over our connections, and holds the answer until it is closed."""

    def __init__(self, session: aiohttp.ClientSession, *, keyless: bool) -> None:
        self._session = session
        self._unsent = _OF_CONNECTIONS | ({"authorization"} if keyless else set())
        self.answer: aiohttp.ClientResponse | None = None
        #: How the last request failed.
        self.failed: VendorError | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if self.failed is not None:
            log.info("model_call_changed", refused=self.failed.trouble.name.lower())
        try:
            response = await self._send(request)
            if response.status == 200:
                self.answer = response
            else:
                async with response:
                    return await self._refuse(request, response)
        except TimeoutError:
            self.failed = VendorError(Trouble.TIMED_OUT)
            raise _Unreachable from None
        except aiohttp.ClientError:
            self.failed = VendorError(Trouble.CONNECTION_FAILED)
            raise _Unreachable from None
        raise _Answered

    async def _send(self, request: httpx2.Request) -> aiohttp.ClientResponse:
        headers = [item for item in request.headers.multi_items() if item[0] not in self._unsent]
        return await self._session.request(
            request.method,
            URL(str(request.url), encoded=True),
            data=await request.aread(),
            headers=headers,
            allow_redirects=False,
        )

    async def _refuse(self, request: httpx2.Request, response: aiohttp.ClientResponse) -> httpx2.Response:
        raw = await response.content.read(ERROR_LIMIT)
        try:
            told = orjson.loads(raw)
        except orjson.JSONDecodeError:
            told = None
        pause = read_retry_after(response.headers.get("retry-after"))
        trouble = decide_trouble(response.status, told)
        self.failed = VendorError(trouble, status=response.status, retry_after=pause)
        headers = {"content-type": response.headers.get("content-type", "")}
        return httpx2.Response(response.status, headers=headers, content=raw, request=request)

    async def aclose(self) -> None:
        if self.answer is not None:
            self.answer.release()
            await self.answer.wait_for_close()
