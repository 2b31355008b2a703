"""Put a sandbox to sleep with its disk kept, by hand or when its time has come, and end one for good."""

from datetime import datetime, timedelta
from typing import Any

from fermata.flows.provision import LOST_DISK, TIMERS_KIND
from fermata.kit.database import Connection
from fermata.kit.errors import ConflictError, InternalError, SandboxGoneError
from fermata.runs.contract import Later, RunHandle
from fermata.runs.model import RetryPolicy, Run
from fermata.runs.service import RunService
from fermata.sandboxes import store
from fermata.sandboxes.model import LifecycleState, SandboxRecord
from fermata.sandboxes.service import SandboxService
from fermata.sessions import store as sessions

KIND = "hibernate"
DESTROY_KIND = "destroy"

_S = LifecycleState

#: How soon to look again at a sandbox whose time has come while a turn runs in it.
BUSY_PAUSE = timedelta(seconds=30)


def is_busy(connection: Connection, record: SandboxRecord) -> bool:
    """Whether a turn of its session is running or waiting to run."""
    if record.session_id is None:
        return False
    return any(chat.active_run_id for chat in sessions.list_chats(connection, record.session_id))


class Hibernate:
    """Handler of runs whose key is a sandbox id. Result: `{"slept": whether this run put it to sleep}`."""

    kind = KIND
    at_once = 8
    policy = RetryPolicy(attempts=5)

    def __init__(self, *, sandboxes: SandboxService) -> None:
        self._sandboxes = sandboxes

    async def work(self, handle: RunHandle) -> dict[str, Any]:
        record = await handle.write(lambda connection: self._begin(connection, handle))
        if record is None:
            return {"slept": False}
        try:
            await self._sandboxes.provider(record).stop(record.id)
        except SandboxGoneError as error:
            raise SandboxGoneError(LOST_DISK) from error
        if record.state is _S.HIBERNATING:
            await handle.write(lambda connection: self._finish(connection, handle, record))
        return {"slept": True}

    def _begin(self, connection: Connection, handle: RunHandle) -> SandboxRecord | None:
        """Claim the sandbox for stopping. None when there is nothing to stop."""
        record = store.find(connection, handle.run.key)
        if record is None or not record.has_disk:
            return None
        if record.state in (_S.HIBERNATING, _S.ARCHIVED):
            return record  # begun by an attempt that died, or archived with the machine still up
        if record.state is not _S.ACTIVE:
            return None
        if is_busy(connection, record):
            raise ConflictError("A turn is running in this session. Stop it first, or wait for its end.")
        return store.move(
            connection,
            record,
            _S.HIBERNATING,
            reason=handle.run.input.get("reason", "pause"),
            actor=f"run:{handle.run.id}",
            at=handle.now(),
            run_id=handle.run.id,
            error=None,
        )

    def _finish(self, connection: Connection, handle: RunHandle, record: SandboxRecord) -> None:
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

    def give_up(self, connection: Connection, run: Run, error: dict[str, Any]) -> None:
        record = store.find(connection, run.key)
        if record is not None and record.state is _S.HIBERNATING:
            store.move(
                connection,
                record,
                _S.FAILED,
                reason="stop failed",
                actor=f"run:{run.id}",
                at=record.updated_at,
                error=error["message"],
                run_id=None,
            )


class Timers:
    """Handler of the run that waits beside each running sandbox until it has idled or lived long enough."""

    kind = TIMERS_KIND
    at_once = 8
    policy = RetryPolicy(attempts=100)

    def __init__(self, *, runs: RunService) -> None:
        self._runs = runs

    async def work(self, handle: RunHandle) -> Later | None:
        record, busy = await handle.read(lambda connection: self._look(connection, handle.run.key))
        if record is None or record.state is not _S.ACTIVE:
            return None
        due = due_at(record)
        if due > handle.now():
            return Later(due)
        if busy:
            return Later(handle.now() + BUSY_PAUSE)
        if record.session_id is None:
            await self._runs.submit(DESTROY_KIND, record.id, {})
        else:
            await self._runs.submit(KIND, record.id, {"reason": "idle"})
        # Should a turn have begun at this moment, hibernation refuses, and this looks again.
        return Later(handle.now() + BUSY_PAUSE)

    def _look(self, connection: Connection, sandbox_id: str) -> tuple[SandboxRecord | None, bool]:
        record = store.find(connection, sandbox_id)
        return record, record is not None and is_busy(connection, record)

    def give_up(self, connection: Connection, run: Run, error: dict[str, Any]) -> None:
        """Nobody waits for it; the next activation starts a new one."""


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

    async def work(self, handle: RunHandle) -> None:
        record = await handle.read(lambda connection: store.find(connection, handle.run.key))
        if record is None:
            return
        if record.session_id is not None:
            raise InternalError("A sandbox that belongs to a session is never destroyed.")
        await self._sandboxes.provider(record).destroy(record.id)
        await handle.write(lambda connection: store.delete(connection, record.id))

    def give_up(self, connection: Connection, run: Run, error: dict[str, Any]) -> None:
        """The row stays and says that a machine may be left."""
