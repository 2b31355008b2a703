"""GET /api/events: what happens to the caller's sessions, as server-sent events."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from fermata.accounts.model import Caller
from fermata.edges.http.context import CallerDep, FermataDep
from fermata.edges.http.door import Door
from fermata.edges.http.validation import Says
from fermata.edges.http.wire import errors, instant
from fermata.events.model import Cursor, parse_cursor
from fermata.views.events import EventFeed, Page

router = APIRouter(route_class=Door, tags=["events"])

_HEADERS = {"cache-control": "no-cache", "connection": "keep-alive", "x-accel-buffering": "no"}

_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events. `id` is the cursor, `event` the type, `data` a JSON object.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get("/api/events", summary="Follow events", responses={**_ANSWER, **errors(400, 401)})
async def follow_events(
    caller: CallerDep,
    fermata: FermataDep,
    request: Request,
    cursor: Annotated[
        str,
        Query(description="The last `id` that was seen. Without it: from now on.", max_length=100),
        Says(wrong="Invalid cursor"),
    ] = "",
) -> Response:
    """Sessions, chats, machines, messages and turns of the caller and of its organizations, as they change.

    The first event is `ready`, or `reset` when the cursor is too old: then read the lists again. The cursor
    may also be sent as `Last-Event-ID`. The answer does not end by itself.
    """
    text = cursor or request.headers.get("last-event-id", "")
    after = parse_cursor(text) if text else None
    return StreamingResponse(
        _lines(fermata.feed, caller, after), headers=_HEADERS, media_type="text/event-stream"
    )


async def _lines(feed: EventFeed, caller: Caller, after: Cursor | None) -> AsyncIterator[bytes]:
    is_first = True
    async for page in feed.read(caller, after):
        if is_first:
            yield _line(page.cursor, "reset" if page.reset else "ready", {})
            is_first = False
        elif page.events:
            yield _events(page)
        else:  # no event, but a newer cursor
            yield f"id: {page.cursor}\n: still here\n\n".encode()


def _events(page: Page) -> bytes:
    return b"".join(
        _line(
            Cursor(event.position, page.cursor.at),
            event.kind,
            {**event.data, "at": instant(event.at)},
        )
        for event in page.events
    )


def _line(cursor: Cursor, kind: str, data: dict[str, Any]) -> bytes:
    body = orjson.dumps({"type": kind, **data}).decode()
    return f"id: {cursor}\nevent: {kind}\ndata: {body}\n\n".encode()
