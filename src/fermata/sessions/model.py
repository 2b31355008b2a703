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


class Busy(StrEnum):
    """What is to become of a message that comes while another one is being answered."""

    #: It waits for its turn.
    QUEUE = "queue"
    #: The running turn shows it to the model before its next call; if there is none, it is next.
    STEER = "steer"
    #: The running turn is stopped, what it said is kept, and this one is next.
    INTERRUPT = "interrupt"
    #: It is refused, and not received.
    REJECT = "reject"


class ReceivedState(StrEnum):
    QUEUED = "queued"
    #: A turn has taken it, as its own or on its way.
    ANSWERED = "answered"
    #: By the user, before a turn had taken it.
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Received:
    """A message of a user. There is one row for each that was accepted, so that none can be lost silently:
    received = answered + queued + cancelled."""

    chat_id: str
    id: str
    state: ReceivedState
    busy: Busy
    #: The order among those that are queued; without meaning afterwards.
    position: int
    #: The run that answers it; while it is queued, the one that will, unless a running turn takes it.
    run_id: str
    #: Taken by a running turn before its model call of this number (0, 1, ...).
    step: int | None
    #: The UI message as JSON text, while it is queued; then it is a message of the chat, or gone.
    message: str | None
    #: What a model sees of it, while it is queued or when a running turn has taken it.
    history: str | None
    created_at: datetime
    ended_at: datetime | None
