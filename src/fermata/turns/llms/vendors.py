"""The one door to model vendors: one request, its answer streamed as events, and second attempts.

Two protocols reach nearly all of them: OpenAI's chat completions (OpenAI itself, any compatible server, the
Vercel AI Gateway) and Anthropic's messages. Requests are built by pydantic-ai (`requests.py`); answers are
read by ourselves (`openai_answers.py`, `anthropic_answers.py`).
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import orjson
import structlog

from fermata.turns.llms import anthropic_answers, openai_answers
from fermata.turns.llms.sse import EventSplitter, EventTooLongError
from fermata.turns.llms.vendor import Protocol, Refusal, Request, Vendor
from fermata.turns.llms.vendor_errors import Trouble, VendorError, decide_trouble, read_retry_after
from fermata.turns.model import ModelCall, ModelEvent

if TYPE_CHECKING:
    import aiohttp

log = structlog.get_logger(__name__)

#: Seconds before each further attempt at a call that has not begun to answer.
PAUSES = (0.5, 2.0, 5.0)
#: A vendor that asks for a longer pause than this gets no further attempt.
LONGEST_PAUSE = 30.0
CONNECT_LIMIT = 10.0
#: Seconds between two pieces of an answer.
READ_LIMIT = 300.0
#: Seconds in which the next pieces of an answer are left to gather in the socket, and bytes that show that
#: they gather by themselves. Being woken for each token would cost more than all that is done with it.
GATHER_FOR = 0.02
GATHERED = 1 << 14
#: Bytes of an answer that tells an error; more than this says nothing more.
ERROR_LIMIT = 1 << 16


class VendorLlm:
    """The models of one vendor. A call's `model_id` is the vendor's own name for the model."""

    def __init__(self, vendor: Vendor, *, pauses: Sequence[float] = PAUSES) -> None:
        self._vendor = vendor
        self._pauses = pauses
        answers = anthropic_answers if vendor.protocol is Protocol.ANTHROPIC else openai_answers
        self._reader = answers.AnswerReader
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def stream(self, call: ModelCall) -> AsyncIterator[AsyncIterator[ModelEvent]]:
        async with aclosing(self._events(call)) as events:
            yield events

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _events(self, call: ModelCall) -> AsyncGenerator[ModelEvent, None]:
        try:
            first, rest = await self._begin(call)
            async with aclosing(rest):
                yield first
                async for event in rest:
                    yield event
        except VendorError as error:
            self._note(error, again=False)
            # `from None`: what lies behind it may hold a key.
            raise error.to_model_error(self._vendor.title, call.model_id) from None

    async def _begin(self, call: ModelCall) -> tuple[ModelEvent, AsyncGenerator[ModelEvent, None]]:
        """The first event of an answer and the rest of it; tried again while there is no first event."""
        for pause in self._pauses:
            events = self._answer(call)
            try:
                return await anext(events), events
            except VendorError as error:
                if not error.trouble.retriable or error.retry_after > LONGEST_PAUSE:
                    raise
                self._note(error, again=True)
                pause = max(pause, error.retry_after)
            await asyncio.sleep(pause)
        events = self._answer(call)
        return await anext(events), events

    def _note(self, error: VendorError, *, again: bool) -> None:
        vendor, trouble = self._vendor.title, error.trouble.name.lower()
        log.warning("model_call_failed", vendor=vendor, trouble=trouble, status=error.status, again=again)

    async def _answer(self, call: ModelCall) -> AsyncGenerator[ModelEvent, None]:
        """One answer; closing the iterator ends it. What the network raises becomes a `VendorError`."""
        session = await self._open_session()
        import aiohttp

        try:
            async with self._ask(session, call) as (response, vendor):
                reader, splitter = self._reader(vendor), EventSplitter()
                while piece := await response.content.readany():
                    for data in splitter.feed(piece):
                        for event in reader.read(data):
                            yield event
                    if len(piece) < GATHERED:
                        await _let_gather(response)
                for event in reader.end():
                    yield event
        except TimeoutError:
            raise VendorError(Trouble.TIMED_OUT) from None
        except aiohttp.ClientError:
            raise VendorError(Trouble.CONNECTION_FAILED) from None
        except EventTooLongError:
            raise VendorError(Trouble.NOT_UNDERSTOOD) from None

    @asynccontextmanager
    async def _ask(
        self, session: "aiohttp.ClientSession", call: ModelCall
    ) -> "AsyncIterator[tuple[aiohttp.ClientResponse, str]]":
        """An answer of which only the head has been read, and the vendor's name in its data."""
        from yarl import URL

        refusals: list[Refusal] = []
        failed = VendorError(Trouble.NOT_ASKED)
        while request := await asyncio.to_thread(_build, self._vendor, call, refusals):
            if refusals:
                self._note(failed, again=True)
            url = URL(request.url, encoded=True)
            async with session.request(
                request.method, url, data=request.body, headers=request.headers, allow_redirects=False
            ) as response:
                if response.status == 200:
                    yield response, request.vendor
                    return
                failed, body = await _refusal(response)
            if failed.trouble.retriable:
                break
            refusals.append(Refusal(response.status, body))
        raise failed

    async def _open_session(self) -> "aiohttp.ClientSession":
        """One for all calls, so that connections are used again. As many at once as there are turns."""
        if self._session is None:
            # In a thread, because it takes a third of a second.
            await asyncio.to_thread(import_module, "aiohttp")
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_LIMIT, sock_read=READ_LIMIT),
                trust_env=True,
            )
        return self._session


async def _let_gather(response: "aiohttp.ClientResponse") -> None:
    connection = response.connection
    if connection is None or connection.protocol is None:  # all of the answer has arrived
        return
    connection.protocol.pause_reading()
    await asyncio.sleep(GATHER_FOR)
    connection.protocol.resume_reading()


def _build(vendor: Vendor, call: ModelCall, refusals: Sequence[Refusal]) -> Request | None:
    """Imports pydantic-ai with the first call: for a thread."""
    from fermata.turns.llms import requests

    return requests.build(vendor, call, refusals)


async def _refusal(response: "aiohttp.ClientResponse") -> tuple[VendorError, bytes]:
    raw = await response.content.read(ERROR_LIMIT)
    try:
        told = orjson.loads(raw)
    except orjson.JSONDecodeError:
        told = None
    trouble = decide_trouble(response.status, told)
    pause = read_retry_after(response.headers.get("retry-after"))
    return VendorError(trouble, status=response.status, retry_after=pause), raw
