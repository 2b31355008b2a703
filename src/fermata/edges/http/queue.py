"""Messages that wait in a chat, and the deletion of messages."""

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Path
from pydantic import Field, model_validator
from starlette.responses import Response

from fermata.edges.http.chat import CHAT_BODY_LIMIT
from fermata.edges.http.context import CallerDep, ChatId, FermataDep, SessionId
from fermata.edges.http.door import Door, body
from fermata.edges.http.errors import json_response
from fermata.edges.http.validation import ABSENT, WHOLE, RequestModel, WireModel
from fermata.edges.http.wire import Success, errors, instant
from fermata.flows.queue import Waiting
from fermata.sessions.model import ID_LIMIT

router = APIRouter(route_class=Door, tags=["Chat"])

PATH = "/api/chat/{chatId}/queue"

MessageId = Annotated[str, Path(alias="messageId", description="The message's id.", max_length=ID_LIMIT)]


class ChangeQueuedRequest(RequestModel):
    """At least one field."""

    #: In place of those that the message has.
    parts: list[dict[str, Any]] = ABSENT
    #: Its new place, counting from 1. Behind the end is the end.
    position: Annotated[int, Field(ge=1, le=2**31), WHOLE] = ABSENT

    @model_validator(mode="after")
    def _has_one(self) -> "ChangeQueuedRequest":
        if not self.model_fields_set:
            raise ValueError("At least one field is required")
        return self


class QueuedWire(WireModel):
    id: str
    #: Its answer can be watched there, also before it begins.
    runId: str
    position: int
    busy: Literal["queue", "steer", "interrupt"]
    message: dict[str, Any]
    createdAt: str


class CountsWire(WireModel):
    """Of the chat's messages that were not deleted: received = answered + queued + cancelled."""

    received: int
    answered: int
    queued: int
    cancelled: int


class QueueAnswer(WireModel):
    messages: list[QueuedWire]
    counts: CountsWire


class OneQueued(WireModel):
    message: QueuedWire


class DeletedAnswer(WireModel):
    success: Literal[True]
    deletedMessageIds: list[str]


@router.get(PATH, summary="List queued", response_model=QueueAnswer, responses=errors(400, 401, 403, 404))
async def list_queued(caller: CallerDep, fermata: FermataDep, chat_id: ChatId) -> Response:
    """Messages that wait for the turns before them, the next one first."""
    view = await fermata.queue.view(caller, chat_id)
    counts = view.counts
    return json_response(
        {
            "messages": [_to_wire(waiting) for waiting in view.waiting],
            "counts": {
                "received": counts.received,
                "answered": counts.answered,
                "queued": counts.queued,
                "cancelled": counts.cancelled,
            },
        }
    )


@router.patch(
    PATH + "/{messageId}",
    summary="Change queued",
    response_model=OneQueued,
    responses=errors(400, 401, 403, 404, 409, 413),
)
@body(limit=CHAT_BODY_LIMIT)
async def change_queued(
    caller: CallerDep,
    fermata: FermataDep,
    chat_id: ChatId,
    message_id: MessageId,
    changes: ChangeQueuedRequest,
) -> Response:
    """Edit a message that waits, or move it. 409 when a turn has taken it or it was cancelled."""
    waiting = await fermata.queue.change(
        caller, chat_id, message_id, parts=changes.parts, place=changes.position
    )
    return json_response({"message": _to_wire(waiting)})


@router.delete(
    PATH + "/{messageId}",
    summary="Cancel queued",
    response_model=Success,
    responses=errors(400, 401, 403, 404, 409),
)
async def cancel_queued(
    caller: CallerDep, fermata: FermataDep, chat_id: ChatId, message_id: MessageId
) -> Response:
    """Take a message out of the queue for good. 409 when a turn has taken it."""
    await fermata.queue.cancel(caller, chat_id, message_id)
    return json_response({"success": True})


@router.delete(
    "/api/sessions/{sessionId}/chats/{chatId}/messages/{messageId}",
    summary="Delete message",
    response_model=DeletedAnswer,
    responses=errors(400, 401, 403, 404, 409),
)
async def delete_message(
    caller: CallerDep, fermata: FermataDep, session_id: SessionId, chat_id: ChatId, message_id: MessageId
) -> Response:
    """Delete a message of the user and everything that follows it. Never while a turn runs (409)."""
    deleted = await fermata.queue.delete_message(caller, session_id, chat_id, message_id)
    return json_response({"success": True, "deletedMessageIds": deleted})


def _to_wire(waiting: Waiting) -> dict[str, Any]:
    received = waiting.received
    return {
        "id": received.id,
        "runId": waiting.run_id,
        "position": waiting.place,
        "busy": received.busy,
        "message": orjson.Fragment(received.message or "null"),
        "createdAt": instant(received.created_at),
    }
