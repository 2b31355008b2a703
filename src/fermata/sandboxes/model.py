"""The life of a sandbox as states and allowed moves. Pure: time is an argument."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class LifecycleState(StrEnum):
    #: The row exists, no machine yet.
    PROVISIONING = "provisioning"
    ACTIVE = "active"
    HIBERNATING = "hibernating"
    #: Stopped, with its disk kept.
    HIBERNATED = "hibernated"
    RESTORING = "restoring"
    ARCHIVED = "archived"
    #: The last start or stop went wrong; `error` says how.
    FAILED = "failed"


_S = LifecycleState

#: The one table of moves. What is not here is refused.
MOVES: dict[LifecycleState, frozenset[LifecycleState]] = {
    _S.PROVISIONING: frozenset({_S.ACTIVE, _S.FAILED, _S.ARCHIVED}),
    # To RESTORING when the machine was found stopped: the process or the host that ran it has died.
    _S.ACTIVE: frozenset({_S.HIBERNATING, _S.HIBERNATED, _S.RESTORING, _S.FAILED, _S.ARCHIVED}),
    _S.HIBERNATING: frozenset({_S.HIBERNATED, _S.ACTIVE, _S.FAILED, _S.ARCHIVED}),
    _S.HIBERNATED: frozenset({_S.RESTORING, _S.FAILED, _S.ARCHIVED}),
    _S.RESTORING: frozenset({_S.ACTIVE, _S.HIBERNATED, _S.FAILED, _S.ARCHIVED}),
    _S.FAILED: frozenset({_S.PROVISIONING, _S.RESTORING, _S.HIBERNATED, _S.ARCHIVED}),
    _S.ARCHIVED: frozenset({_S.HIBERNATED, _S.PROVISIONING}),
}


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """What we know of a sandbox. The provider knows whether it runs; see `has_disk` for what we owe it."""

    #: Also its name at the provider: `session-<session id>`, or `sandbox-<uuid>` without a session.
    id: str
    session_id: str | None
    account_id: str
    provider: str
    state: LifecycleState
    #: Grows by one with every move; nothing else changes it.
    version: int
    #: The provider holds a disk under this name. Never forgotten before the disk is destroyed.
    has_disk: bool
    #: `owner/name` of the repository in its workspace.
    repository: str | None
    branch: str | None
    is_new_branch: bool
    #: The durable run that moves it now.
    run_id: str | None
    error: str | None
    last_activity_at: datetime | None
    expires_at: datetime | None
    hibernate_after: datetime | None
    snapshot_created_at: datetime | None
    snapshot_size_bytes: int | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Move:
    """One row of history."""

    sandbox_id: str
    #: The version after the move.
    version: int
    from_state: LifecycleState | None
    to_state: LifecycleState
    reason: str
    actor: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Timers:
    """How long a sandbox may run, and how long it may idle."""

    lifetime: timedelta
    idle: timedelta


#: A sandbox this close to its end is not offered as running any more.
EXPIRY_BUFFER = timedelta(seconds=10)


def session_sandbox_id(session_id: str) -> str:
    return f"session-{session_id}"


def is_running(record: SandboxRecord, now: datetime) -> bool:
    """As far as the row tells; only running a command proves it."""
    if record.state is not LifecycleState.ACTIVE:
        return False
    return record.expires_at is None or now < record.expires_at - EXPIRY_BUFFER


def may_move(from_state: LifecycleState, to_state: LifecycleState) -> bool:
    return to_state in MOVES[from_state]
