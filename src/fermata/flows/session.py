"""Change, archive and delete a session, together with its sandbox and its turns."""

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime

from fermata.accounts.model import Caller
from fermata.flows.hibernate import KIND as HIBERNATE
from fermata.flows.provision import DESTROY_KIND
from fermata.flows.queue import begin_next
from fermata.kit.clock import Clock
from fermata.kit.database import Connection, Database
from fermata.kit.errors import ConflictError, VersionMismatchError
from fermata.runs import store as runs
from fermata.runs.service import Offer, RunService
from fermata.sandboxes import store as sandboxes
from fermata.sandboxes.model import LifecycleState, SandboxRecord, session_sandbox_id
from fermata.sessions import access
from fermata.sessions import store as sessions
from fermata.sessions.ending import abandon
from fermata.sessions.feed import tell
from fermata.sessions.model import Session, SessionStatus

STILL_PAUSING = "Sandbox is still being paused, try again in a few seconds."


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionChanges:
    """None leaves a field as it is."""

    title: str | None = None
    status: SessionStatus | None = None
    lines_added: int | None = None
    lines_removed: int | None = None
    #: Change nothing unless the sandbox's lifecycle has this version.
    expected_version: int | None = None


class SessionFlow:
    def __init__(self, *, database: Database, clock: Clock, runs: RunService) -> None:
        self._database = database
        self._clock = clock
        self._runs = runs

    async def change(self, caller: Caller, session_id: str, changes: SessionChanges) -> None:
        """Archiving ends running turns and puts the sandbox to sleep; its disk is kept, and so are messages
        that wait, which go on when the session is unarchived.

        `VersionMismatchError` when `expected_version` is not the lifecycle's, `ConflictError` while an
        archived sandbox is still being put to sleep.
        """
        with ExitStack() as stack:
            stops = (
                stack.enter_context(
                    self._runs.offer(HIBERNATE, session_sandbox_id(session_id), {"reason": "archive"})
                )
                if changes.status is SessionStatus.ARCHIVED
                else None
            )
            await self._database.write(
                lambda connection: self._change(connection, caller, session_id, changes, stops)
            )
            if stops is not None:
                stops.begin()

    def _change(
        self,
        connection: Connection,
        caller: Caller,
        session_id: str,
        changes: SessionChanges,
        stops: Offer | None,
    ) -> None:
        now = self._clock.now()
        session = access.get_session(connection, session_id, caller, lock=True)
        sandbox = sandboxes.find_for_session(connection, session_id)
        expected = changes.expected_version
        if expected is not None and (sandbox is None or sandbox.version != expected):
            raise VersionMismatchError("The session's lifecycleVersion is another one by now.")
        archives = changes.status is SessionStatus.ARCHIVED
        was_archived = session.status is SessionStatus.ARCHIVED
        actor = f"account:{caller.account_id}"
        if archives and not was_archived:
            _stop_turns(connection, session, now)
            if sandbox is not None:
                _archive(connection, sandbox, actor, now, stops)
        elif was_archived and changes.status is not None and not archives and sandbox is not None:
            _unarchive(connection, sandbox, actor, now)
        wanted = {
            "title": changes.title,
            "status": changes.status,
            "lines_added": changes.lines_added,
            "lines_removed": changes.lines_removed,
        }
        given = {name: value for name, value in wanted.items() if value is not None}
        if not given:
            return
        changed = sessions.update_session(connection, session, at=now, **given)
        tell(connection, changed, "session.updated", now, title=changed.title, status=changed.status.value)
        if was_archived and not archives:
            for chat in sessions.list_chats(connection, session_id):
                if chat.active_run_id is None:
                    begin_next(connection, changed, chat.id, now)

    async def delete(self, caller: Caller, session_id: str) -> None:
        """Delete a session and everything in it. Only its owner may. Its sandbox is destroyed by a run that
        is accepted in the same transaction, so that no machine is forgotten."""
        sandbox_id = session_sandbox_id(session_id)
        with self._runs.offer(DESTROY_KIND, sandbox_id, {}) as offer:

            def write(connection: Connection) -> None:
                now = self._clock.now()
                session = access.get_own_session(connection, session_id, caller)
                for chat in sessions.list_chats(connection, session.id):
                    abandon(connection, chat, now)
                sandbox = sandboxes.find_for_session(connection, session_id)
                if sandbox is not None:
                    sandboxes.mark_doomed(connection, sandbox.id)
                    offer.insert(connection)
                sessions.delete_session(connection, session.id)
                tell(connection, session, "session.deleted", now)

            await self._database.write(write)
            offer.begin()


def _stop_turns(connection: Connection, session: Session, now: datetime) -> None:
    for chat in sessions.list_chats(connection, session.id):
        if chat.active_run_id is not None:
            runs.request_stop(connection, chat.active_run_id, now)


def _archive(
    connection: Connection, sandbox: SandboxRecord, actor: str, now: datetime, stops: Offer | None
) -> None:
    if sandbox.state is not LifecycleState.ARCHIVED:
        sandboxes.move(
            connection,
            sandbox,
            LifecycleState.ARCHIVED,
            reason="archived",
            actor=actor,
            at=now,
            error=None,
            run_id=None,
            expires_at=None,
            hibernate_after=None,
        )
    if sandbox.has_disk and stops is not None:
        stops.insert(connection)


def _unarchive(connection: Connection, sandbox: SandboxRecord, actor: str, now: datetime) -> None:
    if runs.find_live(connection, HIBERNATE, sandbox.id) is not None:
        raise ConflictError(STILL_PAUSING)
    if sandbox.state is LifecycleState.ARCHIVED:
        to = LifecycleState.HIBERNATED if sandbox.has_disk else LifecycleState.PROVISIONING
        sandboxes.move(connection, sandbox, to, reason="unarchived", actor=actor, at=now, error=None)
