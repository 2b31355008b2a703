"""Claims runs that are due, works on them, keeps their leases, and hands them over when it must end.

A worker that dies says nothing: its leases run out and others claim its runs with a higher fence, after
which nothing that the dead one might still write is accepted.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

import structlog

from fermata.kit.clock import Clock
from fermata.kit.database import Connection, Database
from fermata.kit.errors import ErrorKind, FermataError, LeaseLostError
from fermata.kit.hints import Watch
from fermata.kit.ids import new_ordered_id
from fermata.kit.rows import instant_from_column
from fermata.runs import store
from fermata.runs.contract import Handler, Later, RunHandle
from fermata.runs.model import Run, RunState, decide_retry

log = structlog.get_logger()

#: Looks at the database at least this often, should a hint be lost.
POLL = timedelta(seconds=1)


class Worker:
    def __init__(
        self, *, database: Database, clock: Clock, lease: timedelta, handlers: Sequence[Handler]
    ) -> None:
        self.owner = new_ordered_id()
        self._database = database
        self._clock = clock
        self._lease = lease
        self._handlers = {handler.kind: handler for handler in handlers}
        self._places = {handler.kind: handler.at_once for handler in handlers}
        self._tasks: dict[str, tuple[RunHandle, asyncio.Task[None]]] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._watch = Watch()
        self._draining = True

    async def open(self, *, alone: bool) -> None:
        """Begin to claim. `alone`: no other process can be working on this database, so whatever is leased
        belonged to one that died, and is taken over at once."""
        if alone:
            await self._database.write(lambda connection: store.expire_all(connection, self._clock.now()))
        self._draining = False
        self._loops = [
            asyncio.create_task(self._claim_for_ever(), name="runs-claim"),
            asyncio.create_task(self._renew_for_ever(), name="runs-renew"),
        ]

    async def close(self) -> None:
        """Stop claiming, interrupt what runs and give it back, so that another worker goes on at once."""
        self._draining = True
        tasks = [task for _, task in self._tasks.values()]
        for task in [*self._loops, *tasks]:
            task.cancel()
        await asyncio.gather(*self._loops, *tasks, return_exceptions=True)
        self._loops = []

    @contextmanager
    def reserve(self, kind: str) -> Iterator["Place | None"]:
        """A place for one run that is about to be accepted, so that it begins here without being claimed
        again; None when there is no place. Unused, it is free again afterwards."""
        if self._draining or self._places.get(kind, 0) <= 0:
            yield None
            return
        self._places[kind] -= 1
        place = Place(self, kind)
        try:
            yield place
        finally:
            if not place.used:
                self._free(kind)

    @property
    def lease(self) -> timedelta:
        return self._lease

    def begin(self, run: Run) -> None:
        """Work on a run that this worker has claimed and has a place for."""
        handle = RunHandle(run, self._database, self._clock)
        handler = self._handlers[run.kind]
        task = asyncio.create_task(self._work(handler, handle), name=f"run-{run.kind}-{run.id}")
        self._tasks[run.id] = (handle, task)
        task.add_done_callback(lambda done: self._done(run, done))

    def _done(self, run: Run, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            # The database was away when the run was to be settled. Its lease runs out, and it is begun again.
            log.error("run could not be settled", run=run.id, kind=run.kind, exc_info=error)
        del self._tasks[run.id]
        self._free(run.kind)

    def _free(self, kind: str) -> None:
        self._places[kind] += 1
        self._watch.wake()

    async def _claim_for_ever(self) -> None:
        with self._database.hints.listen("runs", self._watch.wake):
            while True:
                try:
                    pause = await self._claim()
                except Exception:  # the database may be away for a while; the loop must live
                    log.exception("claiming runs failed")
                    pause = POLL
                await self._watch.wait(pause)

    async def _claim(self) -> timedelta:
        """Claim what is due and fits; how long nothing more can be due."""
        now = self._clock.now()
        due = await self._database.read(store.next_due)
        if due is None:
            return POLL
        if instant_from_column(due) > now:
            return min(instant_from_column(due) - now, POLL)
        claimed = 0
        for kind in self._handlers:
            if (places := self._places[kind]) > 0:
                claimed += await self._claim_kind(kind, places)
        return timedelta(0) if claimed else POLL

    async def _claim_kind(self, kind: str, places: int) -> int:
        with ExitStack() as stack:
            held = [place for _ in range(places) if (place := stack.enter_context(self.reserve(kind)))]
            runs = await self._database.write(
                lambda connection: store.claim_due(
                    connection,
                    kind=kind,
                    owner=self.owner,
                    now=self._clock.now(),
                    lease=self._lease,
                    count=len(held),
                )
            )
            for place, run in zip(held, runs, strict=False):
                place.begin(run)
            return len(runs)

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            if not self._tasks:
                continue
            # Only what is being worked on here: a run that nobody works on is for others to take over.
            known = {(run_id, task[0].run.fence): task for run_id, task in self._tasks.items()}
            until = self._clock.now() + self._lease

            def renew(
                connection: Connection, held: Any = tuple(known), until: Any = until
            ) -> dict[str, bool]:
                return store.renew(connection, held, until)

            try:
                renewed = await self._database.write(renew)
            except Exception:  # an expired lease is found by the fence; keep trying
                log.exception("renewing leases failed")
                continue
            for (run_id, _), (handle, task) in known.items():
                if run_id not in renewed and not handle.ended and not task.done():
                    log.warning("lease lost", run=run_id)
                    task.cancel()
                elif renewed.get(run_id):
                    handle.stopping.set()

    async def _work(self, handler: Handler, handle: RunHandle) -> None:
        run = handle.run
        bound = log.bind(run=run.id, kind=run.kind, attempt=run.attempts)
        if run.stop_requested_at is not None:
            handle.stopping.set()
        try:
            with self._database.hints.listen(f"stop:{run.id}", handle.stopping.set):
                if run.attempts > handler.policy.attempts:
                    await self._fail(handler, handle, _GAVE_UP)
                    return
                result = await handler.work(handle)
                if isinstance(result, Later):
                    await self._give_back(handle, result.due_at, attempts=0)
                elif not handle.ended:
                    await handle.end(RunState.COMPLETED, result=result)
        except LeaseLostError:
            bound.warning("run was taken over by another worker")
        except asyncio.CancelledError:
            if self._draining and not handle.ended:
                # As it was: an interrupted attempt is no failed one.
                await self._give_back(handle, self._clock.now(), attempts=run.attempts - 1)
            raise
        except Exception as error:  # noqa: BLE001 - decided on below, and logged
            await self._retry_or_fail(handler, handle, error)

    async def _retry_or_fail(self, handler: Handler, handle: RunHandle, error: Exception) -> None:
        run = handle.run
        known = error if isinstance(error, FermataError) else None
        kind = known.kind if known else ErrorKind.INTERNAL
        described = {
            "code": known.code if known else "internal",
            "kind": str(kind),
            "message": known.message if known else "Something went wrong on the server.",
        }
        if known is None:
            log.error("run broke", run=run.id, kind=run.kind, exc_info=error)
        again = decide_retry(handler.policy, run.attempts, kind, self._clock.now())
        with suppress(LeaseLostError):
            if again is None:
                await self._fail(handler, handle, described)
                return
            log.info("run will be tried again", run=run.id, kind=run.kind, at=again.isoformat())
            await self._give_back(handle, again, attempts=run.attempts, error=described)

    async def _fail(self, handler: Handler, handle: RunHandle, error: dict[str, Any]) -> None:
        log.warning("run failed", run=handle.run.id, kind=handle.run.kind, error=error["message"])
        await handle.end(
            RunState.FAILED,
            lambda connection: handler.give_up(connection, handle.run, error, handle.now()),
            error=error,
        )

    async def _give_back(
        self, handle: RunHandle, due_at: datetime, *, attempts: int, error: dict[str, Any] | None = None
    ) -> None:
        run = handle.run
        await self._database.write(
            lambda connection: store.release(
                connection, run.id, run.fence, due_at=due_at, attempts=attempts, error=error
            )
        )


_GAVE_UP = {
    "code": "gave_up",
    "kind": str(ErrorKind.INTERNAL),
    "message": "This was begun several times, and each time the server working on it died.",
}


class Place:
    """Room for one run in this process."""

    def __init__(self, worker: Worker, kind: str) -> None:
        self._worker = worker
        self._kind = kind
        self.used = False

    @property
    def owner(self) -> str:
        return self._worker.owner

    def begin(self, run: Run) -> None:
        self.used = True
        self._worker.begin(run)
