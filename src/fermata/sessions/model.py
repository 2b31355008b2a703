"""Sessions, chats and messages. Pure."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

#: Title of a chat until its first message gives it one.
NEW_CHAT_TITLE = "New chat"

#: Ids are opaque text; clients may bring their own for chats and messages, up to this many characters.
ID_LIMIT = 128


class SessionStatus(StrEnum):
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    ARCHIVED = "archived"


class Role(StrEnum):
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Session:
    id: str
    #: The owner: who created it.
    account_id: str
    #: Its members may use the session too.
    organization_id: str | None
    artist_id: str | None
    title: str
    status: SessionStatus
    repo_owner: str | None
    repo_name: str | None
    branch: str | None
    clone_url: str | None
    #: The branch was made up by us and does not exist before the sandbox makes it.
    is_new_branch: bool
    #: `{"source": ..., "skillName": ...}` each.
    global_skill_refs: list[dict[str, Any]]
    lines_added: int | None
    lines_removed: int | None
    cached_diff: dict[str, Any] | None
    cached_diff_updated_at: datetime | None
    #: Of the last message or change; lists are in this order.
    active_at: datetime
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Chat:
    id: str
    session_id: str
    title: str
    model_id: str
    #: The run that answers now. At most one: it is claimed and released by guarded updates.
    active_run_id: str | None
    last_assistant_message_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ChatSummary:
    """A chat as one reader sees it."""

    chat: Chat
    has_unread: bool


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as it is kept. `message` and `history` are JSON text."""

    id: str
    role: Role
    #: The UI message that clients see.
    message: str
    #: What later model calls see of it; None when they see nothing.
    history: str | None


@dataclass(frozen=True, slots=True)
class ChatRun:
    """One turn of a chat: which message asked, and which one answers."""

    run_id: str
    chat_id: str
    user_message_id: str
    assistant_message_id: str
    created_at: datetime
