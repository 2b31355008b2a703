"""What a client can ask of a session's sandbox: start, look, prove that it lives, pause, end."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial

import structlog

from fermata.accounts.model import Caller
from fermata.flows.hibernate import KIND as HIBERNATE
from fermata.flows.hibernate import is_busy
from fermata.flows.open_session import check_repository
from fermata.flows.provision import ARCHIVED
from fermata.flows.provision import KIND as PROVISION
from fermata.kit.clock import Clock
from fermata.kit.database import Connection, Database
from fermata.kit.errors import (
    ConflictError,
    InvalidRequestError,
    SandboxGoneError,
    SandboxStoppedError,
    UnavailableError,
    VersionMismatchError,
)
from fermata.kit.ids import new_id
from fermata.runs import store as runs
from fermata.runs.service import RunService
from fermata.sandboxes import store
from fermata.sandboxes.contract import Sandbox
from fermata.sandboxes.model import LifecycleState, SandboxRecord, is_running
from fermata.sandboxes.service import SandboxService
from fermata.sessions import access
from fermata.sessions.model import Session, SessionStatus
from fermata.workspaces.model import RepositoryName, parse_repository_url
from fermata.workspaces.service import WorkspaceService

log = structlog.get_logger()

#: A request waits this long for a sandbox; the run goes on when the client has gone.
START_LIMIT = timedelta(minutes=12)
STOP_LIMIT = timedelta(minutes=2)
PROBE_LIMIT = timedelta(seconds=15)
#: Others may undo at once what was asked for here; after so many times the caller is told.
ATTEMPTS = 3

_S = LifecycleState


class Connected(StrEnum):
    CONNECTED = "connected"
    EXPIRED = "expired"
    NO_SANDBOX = "no_sandbox"


@dataclass(frozen=True, slots=True)
class Started:
    record: SandboxRecord
    branch: str | None


class SandboxFlow:
    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        sandboxes: SandboxService,
        runs: RunService,
        workspaces: WorkspaceService,
    ) -> None:
        self._database = database
        self._clock = clock
        self._sandboxes = sandboxes
        self._runs = runs
        self._workspaces = workspaces

    async def start_for_session(self, caller: Caller, session_id: str, repo_url: str) -> Started:
        """Create or restore the session's sandbox. Idempotent: all who ask at once get the same one."""
        name = _parse(repo_url)
        session, record = await self._database.read(lambda found: self._find(found, caller, session_id))
        _check_repository(session, name)
        if session.status is SessionStatus.ARCHIVED:
            raise ConflictError(ARCHIVED)
        await self.ensure(record.id)
        if record.state is _S.ACTIVE:  # otherwise its activation has just set the timers
            await self._database.write(lambda connection: self._sandboxes.touch(connection, record.id))
        return await self._started(record.id)

    async def start_alone(self, caller: Caller, repo_url: str) -> Started:
        """A sandbox without a session, destroyed at the end of its lifetime."""
        asked_for = _parse(repo_url)
        name = await self._database.read(
            lambda connection: check_repository(connection, self._workspaces, caller, asked_for)
        )
        record = self._sandboxes.new_record(
            account_id=caller.account_id,
            provider=self._sandboxes.default,
            sandbox_id=f"sandbox-{new_id()}",
            repository=str(name),
        )
        actor = f"account:{caller.account_id}"
        with self._runs.offer(PROVISION, record.id, {}) as offer:

            def accept(connection: Connection) -> None:
                store.insert_new(connection, record, actor=actor)
                offer.insert(connection)

            await self._database.write(accept)
            offer.begin()
        await self._runs.result(offer.run.id, START_LIMIT)
        return await self._started(record.id)

    async def ensure(self, sandbox_id: str) -> Sandbox:
        """A handle on the running sandbox, which is created or woken first when need be."""
        for _ in range(ATTEMPTS):
            record = await self._record(sandbox_id)
            if record.state is _S.ACTIVE:
                try:
                    return await self._sandboxes.provider(record).connect(record.id)
                except (SandboxStoppedError, SandboxGoneError):
                    log.info("sandbox found stopped", sandbox=record.id)
            run = await self._runs.submit(PROVISION, record.id, {})
            await self._runs.result(run.id, START_LIMIT)
        raise UnavailableError("The sandbox was stopped again each time it had started.")

    async def status(self, caller: Caller, session_id: str) -> SandboxRecord:
        """The row as it is; nothing is asked of the provider and nothing is written."""
        _, record = await self._database.read(lambda found: self._find(found, caller, session_id))
        return record

    async def reconnect(self, caller: Caller, session_id: str) -> tuple[Connected, SandboxRecord]:
        """Prove that the sandbox lives by running a command in it. What is found dead is written down."""
        record = await self.status(caller, session_id)
        if record.state is not _S.ACTIVE:
            return Connected.NO_SANDBOX, record
        try:
            sandbox = await self._sandboxes.provider(record).connect(record.id)
            probe = await sandbox.exec(["pwd"], cwd="/", time_limit_for=PROBE_LIMIT)
            if probe.exit_code == 0:
                return Connected.CONNECTED, record
            log.warning("sandbox does not answer", sandbox=record.id, exit_code=probe.exit_code)
            return await self._stop_mute(record)
        except (SandboxStoppedError, SandboxGoneError) as error:
            log.info("sandbox is not running", sandbox=record.id, reason=error.code)
        return Connected.EXPIRED, await self._write_down_stopped(record)

    async def _stop_mute(self, record: SandboxRecord) -> tuple[Connected, SandboxRecord]:
        """A machine that is up and runs no command is put to sleep, unless a turn is making it sweat."""
        try:
            record, _ = await self._pause(record)
        except ConflictError:
            return Connected.CONNECTED, record
        return Connected.EXPIRED, record

    async def _write_down_stopped(self, record: SandboxRecord) -> SandboxRecord:
        """The machine is down though the row says active. Whether its disk is whole, waking it will tell."""
        now = self._clock.now()

        def write(connection: Connection) -> SandboxRecord:
            return store.move(
                connection,
                record,
                _S.HIBERNATED,
                reason="found stopped",
                actor="reconnect",
                at=now,
                run_id=None,
                expires_at=None,
                hibernate_after=None,
                snapshot_created_at=now,
            )

        try:
            return await self._database.write(write)
        except VersionMismatchError:
            return await self._record(record.id)

    async def pause(self, caller: Caller, session_id: str) -> tuple[SandboxRecord, bool]:
        """Stop the machine and keep its disk. The flag tells whether it was running."""
        return await self._pause(await self.status(caller, session_id))

    async def _pause(self, record: SandboxRecord) -> tuple[SandboxRecord, bool]:
        for _ in range(ATTEMPTS):
            await self._wait_for_start(record.id)
            record = await self._record(record.id)
            if not record.has_disk:
                if record.state is _S.PROVISIONING:
                    return record, False
                raise InvalidRequestError("Sandbox not initialized")
            run = await self._runs.submit(HIBERNATE, record.id, {"reason": "pause"})
            slept = bool((await self._runs.result(run.id, STOP_LIMIT)).get("slept"))
            record, busy = await self._database.read(partial(_look, sandbox_id=run.key))
            if slept or record.state not in (_S.ACTIVE, _S.RESTORING):
                return record, slept
            if busy:
                raise ConflictError("A turn is running in this session. Stop it first, or wait for its end.")
        raise UnavailableError("The sandbox was started again each time it had been paused.")

    async def _wait_for_start(self, sandbox_id: str) -> None:
        """Whoever pauses a sandbox that is just starting means the one that will be there."""
        starting = await self._database.read(lambda found: runs.find_live(found, PROVISION, sandbox_id))
        if starting is not None:
            await self._runs.wait(starting.id, START_LIMIT)

    async def _started(self, sandbox_id: str) -> Started:
        record = await self._record(sandbox_id)
        return Started(record, record.branch)

    async def _record(self, sandbox_id: str) -> SandboxRecord:
        return await self._database.read(lambda connection: store.get(connection, sandbox_id))

    def _find(self, connection: Connection, caller: Caller, session_id: str) -> tuple[Session, SandboxRecord]:
        session = access.get_session(connection, session_id, caller)
        record = store.find_for_session(connection, session_id)
        assert record is not None, "every session has a sandbox row"
        return session, record

    def now(self) -> datetime:
        return self._clock.now()

    def is_running(self, record: SandboxRecord) -> bool:
        return is_running(record, self._clock.now())


def _look(connection: Connection, sandbox_id: str) -> tuple[SandboxRecord, bool]:
    record = store.get(connection, sandbox_id)
    return record, is_busy(connection, record)


def _parse(repo_url: str) -> RepositoryName:
    name = parse_repository_url(repo_url)
    if name is None:
        raise InvalidRequestError("repoUrl must be a valid GitHub repository URL", field=("repoUrl",))
    return name


def _check_repository(session: Session, name: RepositoryName) -> None:
    """A session's sandbox holds the session's repository and no other."""
    if session.repo_owner is None or session.repo_name is None:
        return
    if RepositoryName(session.repo_owner, session.repo_name) != name:
        raise ConflictError(f"This session works in {session.repo_owner}/{session.repo_name}, not in {name}.")
