"""A stored stream as server-sent events: the AI SDK's UI message stream, version 1.

`data:` holds the chunk as it was stored, `id:` its index. A comment keeps silent connections alive. `[DONE]`
follows the last chunk of a stream that has ended; a connection that ends without it was cut, and the client
comes back with the number of chunks it has, or with `Last-Event-ID`.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from weakref import WeakKeyDictionary

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fermata.kit.errors import InvalidRequestError, NotFoundError, UnavailableError
from fermata.stream.model import Batch, decide_start
from fermata.stream.service import StreamService

_HEADERS = {
    "cache-control": "no-cache",
    "connection": "keep-alive",
    "x-accel-buffering": "no",
    "x-vercel-ai-ui-message-stream": "v1",
}
_DONE = b"data: [DONE]\n\n"
_HEARTBEAT = b": still here\n\n"


def read_start(request: Request, start_index: int | None) -> int:
    """Where a viewer begins: `startIndex`, else after its `Last-Event-ID`, else at the first chunk."""
    last = request.headers.get("last-event-id")
    if start_index is not None or not last:
        return start_index or 0
    if not last.isascii() or not last.isdecimal() or len(last) > 15:
        raise InvalidRequestError("Last-Event-ID must be the index of a chunk")
    return int(last) + 1


class _EventStream(Response):
    """An answer that goes on until its stream has ended, its client has gone away, or it is cut because this
    server will not send the rest.

    To clients an answer that ends properly is a turn that has ended: they would keep half a message for the
    whole. So an answer that is cut lacks the last frame of HTTP, and the server closes the connection.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], headers: dict[str, str]) -> None:
        super().__init__(headers=headers)
        del self.headers["content-length"]
        self._events = events
        self._gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        sending = asyncio.current_task()
        assert sending is not None
        watching = asyncio.create_task(self._watch(receive, sending))
        try:
            async with aclosing(self._events) as events:
                async for data in events:
                    ended = data is _DONE
                    await send({"type": "http.response.body", "body": data, "more_body": not ended})
        except asyncio.CancelledError:
            if not self._gone or sending.uncancel() > 0:
                raise
        finally:
            watching.cancel()

    async def _watch(self, receive: Receive, sending: "asyncio.Task[None]") -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        sending.cancel()


async def stream_response(stream: StreamService, run_id: str, start: int = 0) -> Response:
    """The chunks of a run from `start` until it has ended. A client that goes away only detaches itself.

    A negative `start` is resolved against the same end that the header tells, so that clients can compute
    the index of the first chunk they get.
    """
    state = await stream.state(run_id)
    if stream.closed:
        # Begun now it would be marked as the last answer of its connection, and clients exist (Node's) that
        # take the end of such a connection for the end of the answer.
        raise UnavailableError("The server is ending. Ask again.")
    headers = {
        **_HEADERS,
        "x-workflow-run-id": run_id,
        "x-workflow-stream-tail-index": str(state.length - 1),
    }
    return _EventStream(_events(stream, run_id, decide_start(start, state.length)), headers)


async def _events(stream: StreamService, run_id: str, start: int) -> AsyncGenerator[bytes, None]:
    """`_DONE` last, and only if the stream has ended."""
    async with aclosing(stream.read(run_id, start)) as batches:
        async for batch in batches:
            yield _encoded(batch) if batch.lines else _HEARTBEAT
    if await _has_ended(stream, run_id):
        yield _DONE


#: Viewers at the same place of a stream are given the same batch.
_cache: WeakKeyDictionary[Batch, bytes] = WeakKeyDictionary()


def _encoded(batch: Batch) -> bytes:
    found = _cache.get(batch)
    if found is None:
        numbered = enumerate(batch.lines, batch.first)
        text = "".join([f"id: {index}\ndata: {line}\n\n" for index, line in numbered])
        found = _cache[batch] = text.encode()
    return found


async def _has_ended(stream: StreamService, run_id: str) -> bool:
    try:
        return (await stream.state(run_id)).closed
    except NotFoundError:  # deleted with its chat
        return False
