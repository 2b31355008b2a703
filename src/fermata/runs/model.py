"""What a run is, and what becomes of one that did not succeed. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from fermata.kit.errors import ErrorKind


class RunState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED})


@dataclass(frozen=True, slots=True)
class Run:
    id: str
    #: Which handler works on it.
    kind: str
    #: What it is about. At most one queued or running run per kind and key.
    key: str
    state: RunState
    input: dict[str, Any]
    result: dict[str, Any] | None
    #: `{"code": ..., "kind": ..., "message": ...}` of a failed run.
    error: dict[str, Any] | None
    #: Not before. While it is running: when its lease runs out and another worker may take it.
    due_at: datetime
    #: How often a worker has begun it.
    attempts: int
    lease_owner: str | None
    lease_until: datetime | None
    #: Grows with every claim. A write on behalf of a run proves that it holds the newest.
    fence: int
    stop_requested_at: datetime | None
    created_at: datetime
    ended_at: datetime | None


def new_run(
    run_id: str,
    kind: str,
    key: str,
    *,
    now: datetime,
    due_at: datetime | None = None,
    input: dict[str, Any] | None = None,
) -> Run:
    """A run that nobody has begun."""
    return Run(
        id=run_id,
        kind=kind,
        key=key,
        state=RunState.QUEUED,
        input=input or {},
        result=None,
        error=None,
        due_at=due_at or now,
        attempts=0,
        lease_owner=None,
        lease_until=None,
        fence=0,
        stop_requested_at=None,
        created_at=now,
        ended_at=None,
    )


@dataclass(frozen=True, slots=True)
class Step:
    run_id: str
    number: int
    record: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class EffectRecord:
    """One outside effect: the intent is committed before it, the result after it."""

    run_id: str
    id: str
    step: int
    name: str
    input: Any
    #: None: intended, and nobody knows whether it happened.
    result: dict[str, Any] | None
    intended_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    #: Beginnings in all; a run whose worker died was begun.
    attempts: int = 5
    first_pause_for: timedelta = timedelta(seconds=1)
    longest_pause_for: timedelta = timedelta(minutes=1)


#: What may pass by itself. Everything else fails at once: trying again would only hide it.
RETRIED = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.TIMEOUT, ErrorKind.INTERNAL})


def decide_retry(policy: RetryPolicy, attempts: int, kind: ErrorKind, now: datetime) -> datetime | None:
    """When to try again, or None when the run has failed. Pauses double."""
    if kind not in RETRIED or attempts >= policy.attempts:
        return None
    doubled: timedelta = policy.first_pause_for * 2 ** max(attempts - 1, 0)
    pause = min(doubled, policy.longest_pause_for)
    return now + pause
