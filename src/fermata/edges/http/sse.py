"""A stored stream as server-sent events: the AI SDK's UI message stream, version 1.

`data:` holds the chunk as it was stored, `id:` its index. A comment keeps silent connections alive. `[DONE]`
follows the last chunk of a stream that has ended; a connection that ends without it was cut, and the client
comes back with the number of chunks it has, or with `Last-Event-ID`.
"""

from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Send

from fermata.kit.errors import InvalidRequestError, NotFoundError, UnavailableError
from fermata.stream.model import decide_start
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


class _UnfinishedError(Exception):
    """The stream goes on, and this server will not send the rest of it."""


class _EventStream(StreamingResponse):
    """An answer that is cut when its stream has not ended, as when the server is told to stop.

    To clients an answer that ends properly is a turn that has ended: they would keep half a message for the
    whole. So the last frame of HTTP is left out, and the server closes the connection.
    """

    async def stream_response(self, send: Send) -> None:
        with suppress(_UnfinishedError):
            await super().stream_response(send)


async def stream_response(stream: StreamService, run_id: str, start: int = 0) -> StreamingResponse:
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
    events = _events(stream, run_id, decide_start(start, state.length))
    return _EventStream(events, headers=headers, media_type="text/event-stream")


async def _events(stream: StreamService, run_id: str, start: int) -> AsyncIterator[bytes]:
    async for batch in stream.read(run_id, start):
        if not batch.lines:
            yield _HEARTBEAT
            continue
        numbered = enumerate(batch.lines, batch.first)
        yield "".join([f"id: {index}\ndata: {line}\n\n" for index, line in numbered]).encode()
    if not await _has_ended(stream, run_id):
        raise _UnfinishedError
    yield _DONE


async def _has_ended(stream: StreamService, run_id: str) -> bool:
    try:
        return (await stream.state(run_id)).closed
    except NotFoundError:  # deleted with its chat
        return False
