"""The verbs of runs for the rest of the house: accept, wait, ask to stop."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from fermata.kit.clock import Clock
from fermata.kit.database import Connection, Database
from fermata.kit.errors import ErrorKind, FermataError, InternalError, NotFoundError, TimedOutError
from fermata.kit.ids import new_ordered_id
from fermata.runs import store
from fermata.runs.model import ENDED, Run, RunState, new_run
from fermata.runs.worker import POLL, Place, Worker


class Offer:
    """A run that is about to be accepted in somebody's transaction."""

    def __init__(self, run: Run, place: Place | None) -> None:
        self.run = run
        self._place = place
        self._accepted: Run | None = None

    def insert(self, connection: Connection) -> Run:
        """In the transaction: accept it, or join the live run of the same kind and key."""
        self._accepted = store.insert(connection, self.run)
        return self._accepted

    def begin(self) -> None:
        """After the commit: start it here at once if it was accepted and this process has a place."""
        if self._place is not None and self._accepted is not None and self._accepted.id == self.run.id:
            self._place.begin(self.run)


class RunService:
    def __init__(self, *, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._worker: Worker | None = None

    def attach(self, worker: Worker | None) -> None:
        """Runs that are accepted here may begin in this worker, without waiting to be claimed."""
        self._worker = worker

    @contextmanager
    def offer(
        self, kind: str, key: str, input: dict[str, Any], *, due_at: datetime | None = None
    ) -> Iterator[Offer]:
        now = self._clock.now()
        run = new_run(new_ordered_id(), kind, key, now=now, due_at=due_at, input=input)
        if self._worker is None or due_at is not None:
            yield Offer(run, None)
            return
        with self._worker.reserve(kind) as place:
            if place is not None:
                until = now + self._worker.lease
                run = replace(
                    run,
                    state=RunState.RUNNING,
                    attempts=1,
                    fence=1,
                    lease_owner=place.owner,
                    lease_until=until,
                    due_at=until,
                )
            yield Offer(run, place)

    async def submit(self, kind: str, key: str, input: dict[str, Any]) -> Run:
        """Accept a run by itself, or join the live one of the same kind and key."""
        with self.offer(kind, key, input) as offer:
            accepted = await self._database.write(offer.insert)
            offer.begin()
        return accepted

    async def get(self, run_id: str) -> Run:
        run = await self._database.read(lambda connection: store.find(connection, run_id))
        if run is None:
            raise NotFoundError("Run not found")
        return run

    async def wait(self, run_id: str, at_most: timedelta) -> Run:
        """The run once it has ended; `TimedOutError` when it has not in time. It goes on then."""
        until = self._clock.now() + at_most
        with self._database.hints.watch(f"run:{run_id}") as watch:
            while (run := await self.get(run_id)).state not in ENDED:
                left = until - self._clock.now()
                if left <= timedelta(0):
                    raise TimedOutError("This takes longer than usual and goes on in the background.")
                await watch.wait(min(left, POLL))
        return run

    async def result(self, run_id: str, at_most: timedelta) -> dict[str, Any]:
        """The result of a run, or its error raised again."""
        run = await self.wait(run_id, at_most)
        if run.state is RunState.COMPLETED:
            return run.result or {}
        raise error_of(run)

    async def request_stop(self, run_id: str) -> bool:
        now = self._clock.now()
        return await self._database.write(lambda connection: store.request_stop(connection, run_id, now))


class RunFailedError(FermataError):
    """A run failed with the error of another class, which is no longer at hand: same code, kind, message."""

    def __init__(self, code: str, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.code = code  # type: ignore[misc]
        self.kind = kind  # type: ignore[misc]


def error_of(run: Run) -> FermataError:
    if run.error is None:
        return InternalError("The run ended without a result.")
    return RunFailedError(run.error["code"], ErrorKind(run.error["kind"]), run.error["message"])
