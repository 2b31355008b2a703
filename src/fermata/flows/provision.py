"""Make a sandbox active, from whatever state it is in: the only way a machine is started.

One durable run per sandbox does it, so that the orchestrator, POST /api/sandbox and a turn that come at the
same moment wait for the same machine. Moves are guarded by the version and by the run's fence. A machine
that was made and not yet written down as active holds nobody's work and is made again.
"""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, NoReturn

import structlog

from fermata.flows.boot import Boot
from fermata.kit.database import Connection
from fermata.kit.errors import (
    ConflictError,
    FermataError,
    LeaseLostError,
    NotFoundError,
    SandboxFailedError,
    SandboxGoneError,
    SandboxStoppedError,
    SandboxUnsupportedError,
    TimedOutError,
    VersionMismatchError,
)
from fermata.kit.ids import new_ordered_id
from fermata.runs import store as runs
from fermata.runs.contract import RunHandle
from fermata.runs.model import RetryPolicy, Run, new_run
from fermata.runs.service import RunService
from fermata.sandboxes import store
from fermata.sandboxes.model import LifecycleState, SandboxRecord
from fermata.sandboxes.service import SandboxService

log = structlog.get_logger()

KIND = "provision"
#: The runs that keep a running sandbox's timers, put it to sleep, and end it for good: see `hibernate.py`.
TIMERS_KIND = "timers"
HIBERNATE_KIND = "hibernate"
DESTROY_KIND = "destroy"

#: How often one start looks at the sandbox anew.
LOOKS = 5
#: After this the start is ended and tried again: no sandbox stays between two states for ever.
DEADLINE = timedelta(minutes=15)

_S = LifecycleState

LOST_DISK = (
    "The disk of this sandbox is missing at its provider, and what was not pushed from it with it. "
    "Nothing was replaced: restore the provider's data and try again, or delete the session."
)
ARCHIVED = "This session is archived. Unarchive it first."


class Provision:
    """Handler of runs whose key is a sandbox id."""

    kind = KIND
    at_once = 16
    policy = RetryPolicy(attempts=3)

    def __init__(self, *, sandboxes: SandboxService, runs: RunService, boot: Boot) -> None:
        self._sandboxes = sandboxes
        self._runs = runs
        self._boot = boot

    async def work(self, handle: RunHandle) -> dict[str, Any]:
        try:
            async with asyncio.timeout(DEADLINE.total_seconds()):
                return await self._start_as_it_is(handle)
        except TimeoutError as error:
            raise TimedOutError("The sandbox did not start in time.") from error
        except SandboxUnsupportedError as error:
            # Trying again in a second would find the same machine.
            raise SandboxFailedError(error.message) from error

    async def _start_as_it_is(self, handle: RunHandle) -> dict[str, Any]:
        """From the state that it is in, and once more from the next when others move it meanwhile."""
        for _ in range(LOOKS):
            record = await handle.read(lambda connection: _get_wanted(connection, handle.run.key))
            try:
                return await self._start(handle, record)
            except VersionMismatchError:
                log.info("sandbox was moved while it started", sandbox=record.id, version=record.version)
        raise ConflictError("The sandbox is being changed by others, try again in a few seconds.")

    async def _start(self, handle: RunHandle, record: SandboxRecord) -> dict[str, Any]:
        if record.state is _S.HIBERNATING:
            record = await self._settled(handle, record)
        if record.state is _S.ARCHIVED:
            raise ConflictError(ARCHIVED)
        if record.state is _S.ACTIVE and await self._is_up(record):
            return {"restored": True}
        if record.has_disk:
            await self._restore(handle, record)
            return {"restored": True}
        await self._create(handle, record)
        return {"restored": False}

    async def _settled(self, handle: RunHandle, record: SandboxRecord) -> SandboxRecord:
        """Wait for the run that is putting the sandbox to sleep."""
        live = await handle.read(lambda connection: runs.find_live(connection, HIBERNATE_KIND, record.id))
        if live is not None:
            await self._runs.wait(live.id, timedelta(seconds=60))
        record = await handle.read(lambda connection: store.get(connection, record.id))
        if record.state is _S.HIBERNATING:
            raise TimedOutError("The sandbox is still being paused, try again in a few seconds.")
        return record

    async def _is_up(self, record: SandboxRecord) -> bool:
        try:
            await self._sandboxes.provider(record).connect(record.id)
        except (SandboxStoppedError, SandboxGoneError):
            return False
        return True

    async def _restore(self, handle: RunHandle, record: SandboxRecord) -> None:
        if record.state is not _S.RESTORING:
            reason = "found stopped" if record.state is _S.ACTIVE else "restore"
            record = await self._move(handle, record, _S.RESTORING, reason, run_id=handle.run.id)
        try:
            sandbox = await self._sandboxes.provider(record).resume(record.id)
        except SandboxGoneError as error:
            raise SandboxGoneError(LOST_DISK) from error
        try:
            branch = await self._boot.current_branch(sandbox)
            await self._activate(handle, record, "restored", branch=branch)
        except LeaseLostError:
            raise  # whoever has taken this over goes on with the machine
        except FermataError as error:
            with suppress(SandboxGoneError):
                await self._sandboxes.provider(record).stop(record.id)
            await self._explain(handle, record, error)

    async def _create(self, handle: RunHandle, record: SandboxRecord) -> None:
        if record.state is not _S.PROVISIONING:
            record = await self._move(handle, record, _S.PROVISIONING, "retry", run_id=handle.run.id)
        branch = await self._boot.create(record)
        try:
            await self._activate(handle, record, "created", branch=branch)
        except LeaseLostError:
            raise  # whoever has taken this over makes the machine again
        except FermataError as error:
            # Archived or deleted while it was made: nobody else knows this machine.
            current = await handle.read(lambda connection: store.find(connection, record.id))
            if current is None or not current.has_disk:
                await self._sandboxes.provider(record).destroy(record.id)
            await self._explain(handle, record, error)

    async def _explain(self, handle: RunHandle, record: SandboxRecord, error: FermataError) -> NoReturn:
        """Why a machine that had started is not to be active."""
        current = await handle.read(lambda connection: store.find(connection, record.id))
        if current is not None and current.state is _S.ARCHIVED:
            raise ConflictError(ARCHIVED) from error
        raise error

    async def _activate(
        self, handle: RunHandle, record: SandboxRecord, reason: str, *, branch: str | None
    ) -> None:
        now = handle.now()
        fields = self._sandboxes.activation(now)
        timers = new_run(
            new_ordered_id(),
            TIMERS_KIND,
            record.id,
            now=now,
            due_at=min(fields["expires_at"], fields["hibernate_after"]),
        )

        def activate(connection: Connection) -> None:
            kept = runs.insert(connection, timers)
            store.move(
                connection,
                record,
                _S.ACTIVE,
                reason=reason,
                actor=f"run:{handle.run.id}",
                at=now,
                branch=branch,
                run_id=kept.id,
                **fields,
            )

        await handle.write(activate)

    async def _move(
        self, handle: RunHandle, record: SandboxRecord, to: LifecycleState, reason: str, **changes: Any
    ) -> SandboxRecord:
        return await handle.write(
            lambda connection: store.move(
                connection,
                record,
                to,
                reason=reason,
                actor=f"run:{handle.run.id}",
                at=handle.now(),
                **{"error": None, **changes},
            )
        )

    def give_up(self, connection: Connection, run: Run, error: dict[str, Any], now: datetime) -> None:
        record = store.find(connection, run.key)
        if record is None or record.state not in (_S.PROVISIONING, _S.RESTORING):
            return
        store.move(
            connection,
            record,
            _S.FAILED,
            reason="start failed",
            actor=f"run:{run.id}",
            at=now,
            error=error["message"],
            run_id=None,
        )
        if record.session_id is None:  # nobody can ask for it again
            runs.insert(connection, new_run(new_ordered_id(), DESTROY_KIND, record.id, now=now))


def _get_wanted(connection: Connection, sandbox_id: str) -> SandboxRecord:
    if runs.find_live(connection, DESTROY_KIND, sandbox_id) is not None:
        raise NotFoundError("The sandbox is being deleted.")
    return store.get(connection, sandbox_id)
