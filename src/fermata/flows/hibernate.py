"""Put a sandbox to sleep with its disk kept, by hand or when its time has come, and end one for good."""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from fermata.flows.provision import DESTROY_KIND, HIBERNATE_KIND, LOST_DISK, TIMERS_KIND
from fermata.flows.provision import KIND as PROVISION_KIND
from fermata.kit.database import Connection
from fermata.kit.errors import InternalError, SandboxGoneError, TimedOutError
from fermata.runs import store as runs
from fermata.runs.contract import Later, RunHandle
from fermata.runs.model import RetryPolicy, Run, RunState
from fermata.runs.service import RunService
from fermata.sandboxes import store
from fermata.sandboxes.model import EXPIRY_BUFFER, LifecycleState, SandboxRecord
from fermata.sandboxes.service import SandboxService
from fermata.sessions import store as sessions

KIND = HIBERNATE_KIND
#: Why a run of this kind was asked for: nobody has used the sandbox for a while.
IDLE = "idle"

_S = LifecycleState

#: After this a stop is ended and tried again: no sandbox stays between two states for ever.
DEADLINE = timedelta(minutes=5)
#: How soon to look again at a sandbox whose time has come while a turn runs in it.
BUSY_PAUSE = timedelta(seconds=30)
#: How long an archived sandbox waits for turns that were asked to end.
TURN_LIMIT = timedelta(seconds=8)
#: How soon to look again whether a doomed sandbox is still being made or stopped.
MOVING_PAUSE = timedelta(milliseconds=200)


def running_turns(connection: Connection, record: SandboxRecord) -> list[str]:
    """The runs of turns of its session that are running or waiting to run."""
    if record.session_id is None:
        return []
    chats = sessions.list_chats(connection, record.session_id)
    return [chat.active_run_id for chat in chats if chat.active_run_id is not None]


def is_busy(connection: Connection, record: SandboxRecord) -> bool:
    return bool(running_turns(connection, record))


class Hibernate:
    """Handler of runs whose key is a sandbox id. Result: `slept` when this run put it to sleep.

    Refuses, and says so by ending without it, while a turn runs; an archived one waits for its turns' end.
    """

    kind = KIND
    at_once = 8
    policy = RetryPolicy(attempts=5)

    def __init__(self, *, sandboxes: SandboxService, runs: RunService) -> None:
        self._sandboxes = sandboxes
        self._runs = runs

    async def work(self, handle: RunHandle) -> None:
        record = await handle.end_unless(lambda connection: self._begin(connection, handle))
        if record is None:
            return
        if record.state is _S.ARCHIVED:
            await self._let_turns_end(handle, record)
        try:
            async with asyncio.timeout(DEADLINE.total_seconds()):
                await self._sandboxes.provider(record).stop(record.id)
        except SandboxGoneError as error:
            raise SandboxGoneError(LOST_DISK) from error
        except TimeoutError as error:
            raise TimedOutError("The sandbox did not stop in time.") from error
        await handle.end(
            RunState.COMPLETED,
            lambda connection: self._finish(connection, handle),
            result={"slept": True},
        )

    def _begin(self, connection: Connection, handle: RunHandle) -> SandboxRecord | None:
        """Claim the sandbox for stopping. None when it is not to be stopped."""
        record = store.find(connection, handle.run.key)
        if record is None or not record.has_disk:
            return None
        if record.state in (_S.HIBERNATING, _S.ARCHIVED, _S.FAILED):
            return record  # begun by an attempt that died, or the machine may still be up
        if record.state is not _S.ACTIVE or is_busy(connection, record):
            return None
        reason = handle.run.input.get("reason", "pause")
        if reason == IDLE and due_at(record) > handle.now():
            return None  # used again since
        return store.move(
            connection,
            record,
            _S.HIBERNATING,
            reason=reason,
            actor=f"run:{handle.run.id}",
            at=handle.now(),
            run_id=handle.run.id,
            error=None,
        )

    async def _let_turns_end(self, handle: RunHandle, record: SandboxRecord) -> None:
        """They were asked to end when the session was archived. What they still say is worth a moment."""
        for run_id in await handle.read(lambda connection: running_turns(connection, record)):
            with suppress(TimedOutError):
                await self._runs.wait(run_id, TURN_LIMIT)

    def _finish(self, connection: Connection, handle: RunHandle) -> None:
        record = store.get(connection, handle.run.key)
        if record.state not in (_S.HIBERNATING, _S.FAILED):
            return  # archived, maybe only just now
        now = handle.now()
        store.move(
            connection,
            record,
            _S.HIBERNATED,
            reason="stopped",
            actor=f"run:{handle.run.id}",
            at=now,
            run_id=None,
            error=None,
            expires_at=None,
            hibernate_after=None,
            snapshot_created_at=now,
        )

    def give_up(self, connection: Connection, run: Run, error: dict[str, Any], now: datetime) -> None:
        record = store.find(connection, run.key)
        if record is not None and record.state is _S.HIBERNATING:
            store.move(
                connection,
                record,
                _S.FAILED,
                reason="stop failed",
                actor=f"run:{run.id}",
                at=now,
                error=error["message"],
                run_id=None,
            )


class Timers:
    """Handler of the run that waits beside each running sandbox until it has idled or lived long enough."""

    kind = TIMERS_KIND
    at_once = 8
    policy = RetryPolicy(attempts=100)

    def __init__(self, *, sandboxes: SandboxService, runs: RunService) -> None:
        self._runs = runs
        self._pause = min(BUSY_PAUSE, sandboxes.timers.idle)

    async def work(self, handle: RunHandle) -> Later | None:
        record = await handle.end_unless(lambda connection: _find_active(connection, handle.run.key))
        if record is None:
            return None
        now = handle.now()
        if due_at(record) > now:
            return Later(due_at(record))
        if await handle.write(lambda connection: self._kept_by_turn(connection, record, now)):
            return Later(now + self._pause)
        if record.session_id is None:
            await self._runs.submit(DESTROY_KIND, record.id, {})
        else:
            await self._runs.submit(KIND, record.id, {"reason": IDLE})
        # Should a turn have begun at this moment, hibernation refuses, and this looks again.
        return Later(now + self._pause)

    def _kept_by_turn(self, connection: Connection, record: SandboxRecord, now: datetime) -> bool:
        """A sandbox outlives its time while a turn runs in it."""
        if not is_busy(connection, record):
            return False
        store.extend(connection, record.id, now + 2 * self._pause + EXPIRY_BUFFER)
        return True

    def give_up(self, connection: Connection, run: Run, error: dict[str, Any], now: datetime) -> None:
        """Nobody waits for it; the next activation starts a new one."""


def _find_active(connection: Connection, sandbox_id: str) -> SandboxRecord | None:
    record = store.find(connection, sandbox_id)
    return record if record is not None and record.state is _S.ACTIVE else None


def due_at(record: SandboxRecord) -> datetime:
    """When a running sandbox is to sleep. One without a session lives its whole life."""
    assert record.expires_at is not None
    assert record.hibernate_after is not None
    return record.expires_at if record.session_id is None else min(record.expires_at, record.hibernate_after)


class Destroy:
    """Handler that ends a sandbox for good: one whose session was deleted, or one without a session."""

    kind = DESTROY_KIND
    at_once = 8
    policy = RetryPolicy(attempts=10)

    def __init__(self, *, sandboxes: SandboxService) -> None:
        self._sandboxes = sandboxes

    async def work(self, handle: RunHandle) -> Later | None:
        record, moving = await handle.read(lambda connection: self._look(connection, handle.run.key))
        if record is None:
            return None
        if moving:  # what is being made under this name must be there to be destroyed
            return Later(handle.now() + MOVING_PAUSE)
        if record.session_id is not None:
            raise InternalError("A sandbox that belongs to a session is never destroyed.")
        await self._sandboxes.provider(record).destroy(record.id)
        await handle.write(lambda connection: store.delete(connection, record.id))
        return None

    def _look(self, connection: Connection, sandbox_id: str) -> tuple[SandboxRecord | None, bool]:
        live = [runs.find_live(connection, kind, sandbox_id) for kind in (PROVISION_KIND, HIBERNATE_KIND)]
        return store.find(connection, sandbox_id), any(live)

    def give_up(self, connection: Connection, run: Run, error: dict[str, Any], now: datetime) -> None:
        """The row stays and says that a machine may be left."""
