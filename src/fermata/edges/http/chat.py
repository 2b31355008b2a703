"""Turns: POST /api/chat, their streams, their stop, and turns without a screen."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from fermata.edges.http.auth import CallerDep
from fermata.edges.http.door import Door, body
from fermata.edges.http.errors import json_response
from fermata.edges.http.sandbox import FermataDep
from fermata.edges.http.sse import read_start, stream_response
from fermata.edges.http.validation import ABSENT, RequestModel, Says, WireModel
from fermata.edges.http.wire import errors
from fermata.kit.errors import InvalidRequestError, NotFoundError
from fermata.kit.ids import new_id
from fermata.sessions.model import ID_LIMIT, Busy

router = APIRouter(route_class=Door, tags=["Chat"])

MIB = 1 << 20
#: A message may carry files as `data:` URLs, and clients send the whole chat each time.
CHAT_BODY_LIMIT = 16 * MIB

ChatId = Annotated[str, Path(min_length=1, max_length=ID_LIMIT)]


class ChatRequest(RequestModel):
    #: The chat as the client has it. Only the last message is read, and it must be the user's: everything
    #: before it is what the server has stored.
    messages: list[dict[str, Any]]
    chatId: Annotated[str, Says(missing="chatId is required", empty="chatId is required")]
    sessionId: Annotated[str, Says(missing="sessionId is required", empty="sessionId is required")]
    #: `regenerate-message` answers the last message anew.
    trigger: str | None = None
    #: What to do with the message while another one is being answered: `queue` it (the default), `steer` the
    #: running turn with it, `interrupt` that turn, or `reject` the message (409).
    busy: Literal["queue", "steer", "interrupt", "reject"] = ABSENT


class StartRunRequest(WireModel):
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    artistId: str | None = None
    organizationId: str | None = None
    #: Only the caller's own account.
    accountId: str | None = None
    model: str | None = None


class StopAnswer(WireModel):
    success: Literal[True]
    #: False when nothing was running.
    stopped: bool


class QueuedAnswer(WireModel):
    """The message waits. Its run's stream may be read at once, and begins when the turn does."""

    status: Literal["queued"]
    messageId: str
    runId: str
    #: In the queue, counting from 1.
    position: int
    busy: Literal["queue", "steer", "interrupt"]


class StartedRun(WireModel):
    runId: str
    chatId: str
    sessionId: str


class RunAnswer(WireModel):
    runId: str
    status: Literal["queued", "running", "completed", "failed", "cancelled"]


_RUN_ID = {"x-workflow-run-id": {"schema": {"type": "string"}}}
_SSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "AI SDK UI message stream, version 1.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "headers": {
            **_RUN_ID,
            "x-workflow-stream-tail-index": {"schema": {"type": "integer"}},
        },
    }
}


_QUEUED: dict[int | str, dict[str, Any]] = {202: {"model": QueuedAnswer, "headers": _RUN_ID}}


@router.post("/api/chat", responses={**_SSE, **_QUEUED, **errors(400, 401, 403, 404, 409, 413, 429)})
@body(limit=CHAT_BODY_LIMIT)
async def start_turn(fermata: FermataDep, caller: CallerDep, body: ChatRequest) -> Response:
    """Send a message and stream its answer.

    The message is stored before the answer begins, and the turn goes on when the connection is cut. The same
    message again rejoins its turn. Another one while a turn runs waits for its end (202), unless `busy` says
    otherwise.
    """
    for name, value in (("chatId", body.chatId), ("sessionId", body.sessionId)):
        if not value:
            raise InvalidRequestError(f"{name} is required", field=(name,))
    accepted = await fermata.turns.accept(
        caller,
        session_id=body.sessionId,
        chat_id=body.chatId,
        message=_last_message(body.messages),
        regenerate=body.trigger == "regenerate-message",
        busy=Busy(body.busy or Busy.QUEUE),
    )
    if (waiting := accepted.waiting) is not None:
        queued = {
            "status": "queued",
            "messageId": waiting.received.id,
            "runId": waiting.run_id,
            "position": waiting.place,
            "busy": waiting.received.busy,
        }
        return json_response(queued, 202, {"x-workflow-run-id": waiting.run_id})
    return await stream_response(fermata.stream, accepted.run_id)


@router.get("/api/chat/{chatId}/stream", responses={**_SSE, 204: {}, **errors(400, 401, 403, 404)})
async def resume_stream(
    fermata: FermataDep,
    caller: CallerDep,
    request: Request,
    chatId: ChatId,
    startIndex: Annotated[
        int | None, Query(ge=-(2**31), lt=2**31), Says(wrong="startIndex must be an integer")
    ] = None,
) -> Response:
    """Rejoin a turn at any chunk, by the id of its chat or of its run.

    By the chat's id: the turn that runs now, or 204. By the run's id: also a turn that has ended, and one
    that waits for the turns before it. A negative `startIndex` counts from the end.
    """
    start = read_start(request, startIndex)
    try:
        run_id = await fermata.turns.find_active(caller, chatId)
    except NotFoundError:
        run_id = await _as_run(fermata, caller, chatId)
    if run_id is None:
        return Response(status_code=204)
    return await stream_response(fermata.stream, run_id, start)


async def _as_run(fermata: FermataDep, caller: CallerDep, run_id: str) -> str:
    try:
        return (await fermata.turns.get_run(caller, run_id)).id
    except NotFoundError as error:
        raise NotFoundError("Chat not found") from error


@router.post("/api/chat/{chatId}/stop", response_model=StopAnswer, responses=errors(401, 403, 404, 504))
async def stop_turn(fermata: FermataDep, caller: CallerDep, chatId: ChatId) -> Response:
    """End the running turn of a chat, and answer when it has ended. What it has said is kept."""
    return json_response({"success": True, "stopped": await fermata.turns.stop(caller, chatId)})


@router.post(
    "/api/chat/runs",
    status_code=202,
    response_model=StartedRun,
    responses=errors(400, 401, 403, 413),
)
@body(limit=CHAT_BODY_LIMIT)
async def start_run(fermata: FermataDep, caller: CallerDep, body: StartRunRequest) -> Response:
    """Start a turn without a screen, in a new session of its own."""
    if bool(body.prompt) == bool(body.messages):
        raise InvalidRequestError("Exactly one of prompt or messages must be provided")
    message = (
        _last_message(body.messages)
        if body.messages
        else {"id": new_id(), "role": "user", "parts": [{"type": "text", "text": body.prompt}]}
    )
    started = await fermata.headless.start(
        caller,
        message=message,
        account_id=body.accountId,
        organization_id=body.organizationId,
        artist_id=body.artistId,
        model_id=body.model,
    )
    answer = {"runId": started.run_id, "chatId": started.chat_id, "sessionId": started.session_id}
    return json_response(answer, 202, {"location": f"/api/chat/runs/{started.run_id}"})


@router.get("/api/chat/runs/{runId}", response_model=RunAnswer, responses=errors(401, 404))
async def get_run(
    fermata: FermataDep, caller: CallerDep, runId: Annotated[str, Path(min_length=1, max_length=ID_LIMIT)]
) -> Response:
    """Where a turn stands."""
    run = await fermata.turns.get_run(caller, runId)
    return json_response({"runId": run.id, "status": run.state})


def _last_message(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The message to answer, checked: everything else that a client sends is not trusted."""
    if not messages:
        raise InvalidRequestError("messages cannot be empty", field=("messages",))
    last = messages[-1]
    at = ("messages", len(messages) - 1)
    if last.get("role") != "user":
        raise InvalidRequestError("The last message must have the role user", field=(*at, "role"))
    parts = last.get("parts")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise InvalidRequestError(
            "The last message must have parts, an array of objects", field=(*at, "parts")
        )
    message_id = last.get("id", "")
    if not isinstance(message_id, str) or len(message_id) > ID_LIMIT:
        raise InvalidRequestError(
            f"The id of a message must be a text of at most {ID_LIMIT} characters", field=(*at, "id")
        )
    kept = {"id": message_id or new_id(), "role": "user", "parts": parts}
    return kept | ({"metadata": last["metadata"]} if "metadata" in last else {})
