"""The sandbox of a session: POST and DELETE /api/sandbox, its status, its proof of life, its pause."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from fermata.edges.http.auth import CallerDep, get_fermata
from fermata.edges.http.door import Door
from fermata.edges.http.errors import json_response
from fermata.edges.http.validation import RepositoryUrlText, Says, WireModel
from fermata.edges.http.wire import Lifecycle, Success, epoch_ms, errors
from fermata.flows.sandbox import Connected
from fermata.kit.errors import (
    ErrorKind,
    FermataError,
    InvalidRequestError,
    SandboxFailedError,
    SandboxGoneError,
)
from fermata.sandboxes.model import LifecycleState, SandboxRecord
from fermata.wiring import Fermata

router = APIRouter(route_class=Door, tags=["Sandbox"])

FermataDep = Annotated[Fermata, Depends(get_fermata)]
SessionQuery = Annotated[str, Query(min_length=1, max_length=128), Says(wrong="Missing sessionId")]


class CreateSandboxRequest(WireModel):
    #: GitHub repository URL that the sandbox should hold.
    repoUrl: Annotated[
        RepositoryUrlText,
        Says(wrong="repoUrl is required", missing="repoUrl is required", empty="repoUrl cannot be empty"),
    ]
    #: Owning session. Without it, a one-shot sandbox is made that ends at its timeout.
    sessionId: str | None = None


class Timing(WireModel):
    readyMs: int


class CreateSandboxResponse(WireModel):
    createdAt: int
    timeout: int
    currentBranch: str
    #: The sandbox provider. The contract knows only `vercel`; this is its one deliberate widening.
    mode: Literal["local", "vercel"]
    timing: Timing


class SessionBody(WireModel):
    sessionId: Annotated[str, Says(wrong="Missing sessionId", missing="Missing sessionId")]


class LifecycleTimes(WireModel):
    serverTime: int
    state: Lifecycle | None
    lastActivityAt: int | None
    hibernateAfter: int | None
    sandboxExpiresAt: int | None


class SandboxStatusAnswer(WireModel):
    status: Literal["active", "no_sandbox"]
    hasSnapshot: bool
    lifecycleVersion: int
    lifecycle: LifecycleTimes


class ReconnectAnswer(WireModel):
    status: Literal["connected", "expired", "no_sandbox"]
    hasSnapshot: bool
    expiresAt: int | None = None
    lifecycle: LifecycleTimes


class SnapshotAnswer(WireModel):
    snapshotId: str
    createdAt: int


class StoppedAnswer(Success):
    alreadyStopped: bool | None = None


@router.post(
    "/api/sandbox", response_model=CreateSandboxResponse, responses=errors(400, 401, 403, 404, 409, 502, 504)
)
async def create_sandbox(fermata: FermataDep, caller: CallerDep, body: CreateSandboxRequest) -> Response:
    """Create or restore the sandbox of a session, named `session-<sessionId>`.

    Answers when it is ready. Ten of these at once, or one beside the orchestrator, give one sandbox. Without
    `sessionId` the sandbox belongs to no session and is destroyed at its timeout.
    """
    received = time.monotonic()
    if not body.repoUrl:
        raise InvalidRequestError("repoUrl cannot be empty", field=("repoUrl",))
    try:
        if body.sessionId:
            started = await fermata.sandbox_flow.start_for_session(caller, body.sessionId, body.repoUrl)
        else:
            started = await fermata.sandbox_flow.start_alone(caller, body.repoUrl)
    except FermataError as error:
        raise _provisioning(error) from error
    now = fermata.clock.now()
    record = started.record
    lifetime = record.expires_at - now if record.expires_at else fermata.sandboxes.timers.lifetime
    return json_response(
        {
            "createdAt": epoch_ms(now),
            "timeout": max(int(lifetime.total_seconds() * 1000), 0),
            "currentBranch": started.branch or "main",
            "mode": record.provider,
            "timing": {"readyMs": int((time.monotonic() - received) * 1000)},
        }
    )


def _provisioning(error: FermataError) -> FermataError:
    """What the provider could not do is its failure (502), whatever kind it had below. A missing disk too:
    404 is for sessions that are not there."""
    lost = error.code == SandboxGoneError.code
    if lost or error.kind in (ErrorKind.UPSTREAM, ErrorKind.UNAVAILABLE, ErrorKind.INTERNAL):
        return SandboxFailedError(f"Failed to provision sandbox: {error.message}")
    return error


@router.get("/api/sandbox/status", response_model=SandboxStatusAnswer, responses=errors(400, 401, 403, 404))
async def get_sandbox_status(fermata: FermataDep, caller: CallerDep, sessionId: SessionQuery) -> Response:
    """What the session's row says of its sandbox. Changes nothing and asks nobody."""
    record = await fermata.sandbox_flow.status(caller, sessionId)
    running = fermata.sandbox_flow.is_running(record)
    return json_response(
        {
            "status": "active" if running else "no_sandbox",
            "hasSnapshot": _has_snapshot(record),
            "lifecycleVersion": record.version,
            "lifecycle": _times(fermata, record),
        }
    )


@router.get("/api/sandbox/reconnect", response_model=ReconnectAnswer, responses=errors(400, 401, 403, 404))
async def reconnect_sandbox(fermata: FermataDep, caller: CallerDep, sessionId: SessionQuery) -> Response:
    """Prove that the sandbox lives by running a command in it. A probe is no activity."""
    connected, record = await fermata.sandbox_flow.reconnect(caller, sessionId)
    answer: dict[str, Any] = {"status": connected.value, "hasSnapshot": _has_snapshot(record)}
    if connected is Connected.CONNECTED:
        answer["expiresAt"] = epoch_ms(record.expires_at)
    return json_response({**answer, "lifecycle": _times(fermata, record)})


@router.post(
    "/api/sandbox/snapshot",
    response_model=SnapshotAnswer,
    responses=errors(400, 401, 403, 404, 409, 502, 503, 504),
)
async def pause_sandbox(fermata: FermataDep, caller: CallerDep, body: SessionBody) -> Response:
    """Put the sandbox to sleep with its files. POST /api/sandbox wakes it. Idempotent."""
    record, _ = await fermata.sandbox_flow.pause(caller, body.sessionId)
    if not record.has_disk:
        raise InvalidRequestError("Sandbox not initialized")
    at = record.snapshot_created_at or record.updated_at
    return json_response({"snapshotId": record.id, "createdAt": epoch_ms(at)})


@router.delete(
    "/api/sandbox", response_model=StoppedAnswer, responses=errors(400, 401, 403, 404, 409, 502, 503, 504)
)
async def stop_sandbox(fermata: FermataDep, caller: CallerDep, body: SessionBody) -> Response:
    """End the running machine of a session. Its files are kept, as with a pause."""
    _, slept = await fermata.sandbox_flow.pause(caller, body.sessionId)
    return json_response({"success": True} if slept else {"success": True, "alreadyStopped": True})


def _has_snapshot(record: SandboxRecord) -> bool:
    return record.has_disk and record.state is not LifecycleState.ACTIVE


def _times(fermata: Fermata, record: SandboxRecord) -> dict[str, Any]:
    return {
        "serverTime": epoch_ms(fermata.clock.now()),
        "state": record.state,
        "lastActivityAt": epoch_ms(record.last_activity_at),
        "hibernateAfter": epoch_ms(record.hibernate_after),
        "sandboxExpiresAt": epoch_ms(record.expires_at),
    }
