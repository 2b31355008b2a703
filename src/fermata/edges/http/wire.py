"""How sessions and chats look on the wire, and instants."""

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict

from fermata.edges.http.validation import WireModel
from fermata.sandboxes.model import LifecycleState, SandboxRecord
from fermata.sessions.model import Chat, ChatSummary
from fermata.views.sessions import SessionView

Status = Literal["running", "completed", "failed", "archived"]
Lifecycle = Literal["provisioning", "active", "hibernating", "hibernated", "restoring", "archived", "failed"]


def instant(at: datetime | None) -> str | None:
    """RFC 3339 in UTC with milliseconds."""
    return None if at is None else at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def epoch_ms(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp() * 1000)


class ErrorBody(WireModel):
    """What every failed request answers."""

    model_config = ConfigDict(json_schema_extra={"required": ["status", "error", "code"]})

    status: Literal["error"]
    #: A sentence for people.
    error: str
    #: A stable word for programs.
    code: str
    message: str = ""
    missing_fields: list[str | int] = []


class SandboxStateWire(WireModel):
    """`type` is the provider. The name is there once a machine was made, `expiresAt` while it runs."""

    type: str


class SessionWire(WireModel):
    id: str
    userId: str
    artistId: str | None
    title: str
    status: Status
    repoOwner: str | None
    repoName: str | None
    branch: str | None
    cloneUrl: str | None
    isNewBranch: bool
    globalSkillRefs: list[dict[str, Any]]
    sandboxState: dict[str, Any] | None
    lifecycleState: Lifecycle | None
    lifecycleVersion: int
    lastActivityAt: datetime | None
    sandboxExpiresAt: datetime | None
    hibernateAfter: datetime | None
    lifecycleRunId: str | None
    lifecycleError: str | None
    linesAdded: int | None
    linesRemoved: int | None
    snapshotUrl: str | None
    snapshotCreatedAt: datetime | None
    snapshotSizeBytes: int | None
    cachedDiff: dict[str, Any] | None
    cachedDiffUpdatedAt: datetime | None
    createdAt: datetime
    updatedAt: datetime


class SessionItemWire(SessionWire):
    """A session in a list, with what a screen needs of its chats."""

    hasUnread: bool
    hasStreaming: bool
    latestChatId: str | None


class ChatWire(WireModel):
    id: str
    sessionId: str
    title: str
    modelId: str
    activeStreamId: str | None
    lastAssistantMessageAt: datetime | None
    createdAt: datetime
    updatedAt: datetime


class ChatSummaryWire(ChatWire):
    hasUnread: bool
    isStreaming: bool


class SessionAndChat(WireModel):
    session: SessionWire
    chat: ChatWire


class OneSession(WireModel):
    session: SessionWire


class OneChat(WireModel):
    chat: ChatWire


class Success(WireModel):
    success: Literal[True]


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: which errors it may answer. 500 is added to all of them."""
    return {status: {"model": ErrorBody} for status in statuses}


def sandbox_state(sandbox: SandboxRecord | None) -> dict[str, Any] | None:
    if sandbox is None:
        return None
    state: dict[str, Any] = {"type": sandbox.provider}
    if sandbox.has_disk:
        state["sandboxName"] = sandbox.id
        if sandbox.state is LifecycleState.ACTIVE and sandbox.expires_at is not None:
            state["expiresAt"] = epoch_ms(sandbox.expires_at)
    return state


def session_to_wire(view: SessionView) -> dict[str, Any]:
    """Exactly the 28 keys of the contract."""
    session, sandbox = view.session, view.sandbox
    return {
        "id": session.id,
        "userId": session.account_id,
        "artistId": session.artist_id,
        "title": session.title,
        "status": session.status,
        "repoOwner": session.repo_owner,
        "repoName": session.repo_name,
        "branch": session.branch,
        "cloneUrl": session.clone_url,
        "isNewBranch": session.is_new_branch,
        "globalSkillRefs": session.global_skill_refs,
        "sandboxState": sandbox_state(sandbox),
        "lifecycleState": sandbox.state if sandbox else None,
        "lifecycleVersion": sandbox.version if sandbox else 0,
        "lastActivityAt": instant(sandbox.last_activity_at) if sandbox else None,
        "sandboxExpiresAt": instant(sandbox.expires_at) if sandbox else None,
        "hibernateAfter": instant(sandbox.hibernate_after) if sandbox else None,
        "lifecycleRunId": sandbox.run_id if sandbox else None,
        "lifecycleError": sandbox.error if sandbox else None,
        "linesAdded": session.lines_added,
        "linesRemoved": session.lines_removed,
        "snapshotUrl": None,
        "snapshotCreatedAt": instant(sandbox.snapshot_created_at) if sandbox else None,
        "snapshotSizeBytes": sandbox.snapshot_size_bytes if sandbox else None,
        "cachedDiff": session.cached_diff,
        "cachedDiffUpdatedAt": instant(session.cached_diff_updated_at),
        "createdAt": instant(session.created_at),
        "updatedAt": instant(session.updated_at),
    }


def chat_to_wire(chat: Chat) -> dict[str, Any]:
    return {
        "id": chat.id,
        "sessionId": chat.session_id,
        "title": chat.title,
        "modelId": chat.model_id,
        "activeStreamId": chat.active_run_id,
        "lastAssistantMessageAt": instant(chat.last_assistant_message_at),
        "createdAt": instant(chat.created_at),
        "updatedAt": instant(chat.updated_at),
    }


def summary_to_wire(summary: ChatSummary) -> dict[str, Any]:
    return chat_to_wire(summary.chat) | {
        "hasUnread": summary.has_unread,
        "isStreaming": summary.chat.active_run_id is not None,
    }
