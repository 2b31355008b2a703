"""/api/sessions"""

import base64
import hashlib
import re
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query
from pydantic import ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from fermata.edges.http.context import CallerDep, FermataDep, SessionId
from fermata.edges.http.door import Door, body
from fermata.edges.http.errors import json_response
from fermata.edges.http.validation import (
    ABSENT,
    BRANCH_PATTERN,
    WHOLE,
    OwnerText,
    RepositoryText,
    RepositoryUrlText,
    RequestModel,
    Says,
    UuidText,
    WireModel,
    without_null_defaults,
)
from fermata.edges.http.wire import (
    OneSession,
    SessionAndChat,
    SessionItemWire,
    Status,
    Success,
    chat_to_wire,
    errors,
    session_to_wire,
)
from fermata.flows.open_session import NewSession, Once, Opened
from fermata.flows.session import SessionChanges
from fermata.kit.errors import InvalidRequestError
from fermata.sessions.model import SessionStatus
from fermata.views.sessions import Filter, Position, SessionItem, SessionView

router = APIRouter(route_class=Door, tags=["sessions"])

TITLE_LIMIT = 1000
LARGEST_INTEGER = 2**53 - 1


def _describe_branch(schema: dict[str, Any]) -> None:
    """What `branch` may be matters only where it is not ignored."""
    without_null_defaults(schema)
    new_branch = {"properties": {"isNewBranch": {"const": True}}, "required": ["isNewBranch"]}
    schema["if"] = new_branch
    schema["else"] = {"properties": {"branch": {"pattern": BRANCH_PATTERN}}}
    schema["dependentRequired"] = {"repoOwner": ["repoName"], "repoName": ["repoOwner"]}


class CreateSessionRequest(RequestModel):
    """All fields are optional, and so is the body.

    Without a repository the session works in the caller's own workspace repository, or with `organizationId`
    in the organization's. A repository may be named by owner and name, by clone URL, or by both, if the
    caller may use it.
    """

    model_config = ConfigDict(json_schema_extra=_describe_branch)

    title: Annotated[str, Field(max_length=TITLE_LIMIT)] = ABSENT
    organizationId: Annotated[UuidText, Says(wrong="organizationId must be a valid UUID")] = ABSENT
    artistId: Annotated[UuidText, Says(wrong="artistId must be a valid UUID")] = ABSENT
    repoOwner: Annotated[OwnerText, Says(wrong="Invalid repository owner")] = ABSENT
    repoName: Annotated[RepositoryText, Says(wrong="Invalid repository name")] = ABSENT
    #: Ignored with `isNewBranch`, which makes up a new one.
    branch: str = ABSENT
    cloneUrl: Annotated[RepositoryUrlText, Says(wrong="cloneUrl must be a valid GitHub repository URL")] = (
        ABSENT
    )
    isNewBranch: bool = ABSENT
    sandboxType: Annotated[str, Says(wrong="Invalid sandbox type")] = ABSENT


class ChangeSessionRequest(RequestModel):
    title: Annotated[str, Field(max_length=TITLE_LIMIT)] = ABSENT
    status: Status = ABSENT
    linesAdded: Annotated[int, Field(ge=0, le=LARGEST_INTEGER), WHOLE] = ABSENT
    linesRemoved: Annotated[int, Field(ge=0, le=LARGEST_INTEGER), WHOLE] = ABSENT


class SessionList(WireModel):
    sessions: list[SessionItemWire]
    nextCursor: str | None


@router.get(
    "/api/sessions/{sessionId}",
    summary="Get session by id",
    response_model=OneSession,
    responses=errors(400, 401, 403, 404),
)
async def get_session(caller: CallerDep, fermata: FermataDep, session_id: SessionId) -> Response:
    """Returns a single agent session by its id."""
    view = await fermata.views.get_session(caller, session_id)
    return json_response({"session": session_to_wire(view)})


@router.post(
    "/api/sessions",
    summary="Create session",
    response_model=SessionAndChat,
    responses=errors(400, 401, 403, 409, 413),
    openapi_extra={
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "Sent twice within 24 hours with the same body, the request is done once.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
            }
        ]
    },
)
@body(optional=True)
async def create_session(
    caller: CallerDep, fermata: FermataDep, request: Request, wanted: CreateSessionRequest
) -> Response:
    """Creates a new agent session and an initial empty chat in a single transaction.

    The session is created in the `provisioning` lifecycle state; the orchestrator claims it and starts the
    sandbox."""
    answer = await fermata.open_session(
        caller,
        NewSession(
            title=wanted.title,
            organization_id=wanted.organizationId and wanted.organizationId.lower(),
            artist_id=wanted.artistId and wanted.artistId.lower(),
            repo_owner=wanted.repoOwner,
            repo_name=wanted.repoName,
            clone_url=wanted.cloneUrl,
            branch=wanted.branch,
            is_new_branch=wanted.isNewBranch or False,
            sandbox_type=wanted.sandboxType,
        ),
        _render,
        _once(request),
    )
    return Response(answer, media_type="application/json")


def _render(opened: Opened) -> str:
    session = session_to_wire(SessionView(opened.session, opened.sandbox))
    return orjson.dumps({"session": session, "chat": chat_to_wire(opened.chat)}).decode()


_KEY = re.compile(r"[!-~]{1,255}")


def _once(request: Request) -> Once | None:
    """What makes two requests one: the caller's key, and a hash of everything that was asked for."""
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise InvalidRequestError("Idempotency-Key must be 1 to 255 visible ASCII characters")
    raw = request.scope["fermata.body"].strip()
    canonical = orjson.dumps(orjson.loads(raw), option=orjson.OPT_SORT_KEYS) if raw else b"{}"
    text = f"{request.method}\n{request.url.path}\n".encode() + canonical
    return Once(keys[0], hashlib.sha256(text).hexdigest())


@router.get(
    "/api/sessions",
    summary="List sessions",
    response_model=SessionList,
    responses=errors(400, 401),
)
async def list_sessions(
    caller: CallerDep,
    fermata: FermataDep,
    status: Annotated[
        Literal["all", "active", "archived", "running", "completed", "failed"],
        Query(description="`active`: all that are not archived."),
        Says(wrong="Invalid status filter"),
    ] = "all",
    search: Annotated[
        str, Query(alias="q", description="Part of the title, in any case.", max_length=TITLE_LIMIT)
    ] = "",
    limit: Annotated[
        int, Query(ge=1, le=100, description="Sessions in one answer."), Says(wrong="Invalid limit")
    ] = 50,
    cursor: Annotated[
        str,
        Query(description="`nextCursor` of the page before.", max_length=400),
        Says(wrong="Invalid cursor"),
    ] = "",
) -> Response:
    """The caller's sessions and those of its organizations, newest activity first."""
    found, after = await fermata.views.list_sessions(
        caller,
        choice=Filter(status),
        search=search,
        after=_read_cursor(cursor) if cursor else None,
        limit=limit,
    )
    return json_response(
        {"sessions": [_item_to_wire(item) for item in found], "nextCursor": after and _write_cursor(after)}
    )


def _item_to_wire(item: SessionItem) -> dict[str, Any]:
    return session_to_wire(item.view) | {
        "hasUnread": item.has_unread,
        "hasStreaming": item.is_streaming,
        "latestChatId": item.latest_chat_id,
    }


def _write_cursor(position: Position) -> str:
    raw = orjson.dumps([position.active_at, position.session_id])
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _read_cursor(text: str) -> Position:
    """`InvalidRequestError` for everything that `_write_cursor` does not write."""
    try:
        position = orjson.loads(
            base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        )
    except ValueError:
        raise _bad_cursor() from None
    match position:
        case [int(active_at), str(session_id)] if 0 <= active_at < 2**62 and "\0" not in session_id:
            return Position(active_at, session_id)
    raise _bad_cursor()


def _bad_cursor() -> InvalidRequestError:
    return InvalidRequestError("Invalid cursor", field=("cursor",))


@router.patch(
    "/api/sessions/{sessionId}",
    summary="Change session",
    response_model=OneSession,
    responses=errors(400, 401, 403, 404, 409, 412, 413),
    openapi_extra={
        "parameters": [
            {
                "name": "If-Match",
                "in": "header",
                "required": False,
                "description": "Change nothing (412) unless the session's `lifecycleVersion` is this number.",
                "schema": {"type": "string", "pattern": '^"?[0-9]{1,18}"?$'},
            }
        ]
    },
)
@body(optional=True)
async def change_session(
    caller: CallerDep,
    fermata: FermataDep,
    request: Request,
    session_id: SessionId,
    changes: ChangeSessionRequest,
) -> Response:
    """Changes what is given and leaves the rest. `archived` puts the sandbox to sleep, its disk is kept;
    any other status takes a session out of the archive."""
    await fermata.session_flow.change(
        caller,
        session_id,
        SessionChanges(
            title=changes.title,
            status=SessionStatus(changes.status) if changes.status else None,
            lines_added=changes.linesAdded,
            lines_removed=changes.linesRemoved,
            expected_version=_expected_version(request),
        ),
    )
    view = await fermata.views.get_session(caller, session_id)
    return json_response({"session": session_to_wire(view)})


def _expected_version(request: Request) -> int | None:
    text = request.headers.get("if-match")
    if text is None or text.strip() == "*":
        return None
    found = re.fullmatch(r'"?([0-9]{1,18})"?', text.strip())
    if found is None:
        raise InvalidRequestError("If-Match must be a lifecycleVersion")
    return int(found[1])


@router.delete(
    "/api/sessions/{sessionId}",
    summary="Delete session",
    response_model=Success,
    responses=errors(400, 401, 403, 404),
)
async def delete_session(caller: CallerDep, fermata: FermataDep, session_id: SessionId) -> Response:
    """Deletes a session with its chats and its sandbox. Only the owner may."""
    await fermata.session_flow.delete(caller, session_id)
    return json_response({"success": True})
