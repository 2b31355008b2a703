"""What does the work of a run, and what it may use meanwhile."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

from fermata.kit.clock import Clock
from fermata.kit.database import Connection, Database
from fermata.runs import store
from fermata.runs.model import RetryPolicy, Run, RunState

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Later:
    """Not yet: begin this run again at `due_at`. That is no failure and starts the count of attempts anew."""

    due_at: datetime


class RunHandle:
    """A claimed run in the hands of its handler. Every write goes through it and proves the fence."""

    def __init__(self, run: Run, database: Database, clock: Clock) -> None:
        self.run = run
        #: Set when somebody asked for the run to end soon.
        self.stopping = asyncio.Event()
        self.ended = False
        self._database = database
        self._clock = clock

    def now(self) -> datetime:
        return self._clock.now()

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self._database.read(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """`work` in a transaction in which the run is still ours; `LeaseLostError` and no write otherwise."""
        run = self.run

        def guarded(connection: Connection) -> T:
            store.guard(connection, run.id, run.fence)
            return work(connection)

        return await self._database.write(guarded)

    async def end_unless(self, going_on: Callable[[Connection], T | None]) -> T | None:
        """In one transaction: what `going_on` finds to be done, or, when that is None, the end of the run.

        Whoever joins a run (`store.insert`) either comes before this transaction, which then sees what they
        have written, or is given a run of their own.
        """
        run = self.run

        def decide(connection: Connection) -> T | None:
            store.guard(connection, run.id, run.fence)
            found = going_on(connection)
            if found is None:
                store.end(connection, run.id, run.fence, RunState.COMPLETED, at=self.now(), result={})
            return found

        found = await self._database.write(decide)
        self.ended = found is None
        return found

    async def end(
        self,
        state: RunState,
        work: Callable[[Connection], Any] = lambda _: None,
        *,
        result: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
    ) -> None:
        """End the run, and then do `work` in the same transaction. It may begin the next run of the same kind
        and key: the place is free."""
        run = self.run

        def ending(connection: Connection) -> None:
            store.end(connection, run.id, run.fence, state, at=self._clock.now(), result=result, error=error)
            work(connection)

        await self._database.write(ending)
        self.ended = True


class Handler(Protocol):
    @property
    def kind(self) -> str: ...

    @property
    def at_once(self) -> int:
        """Runs of this kind that one process works on at the same time."""
        ...

    @property
    def policy(self) -> RetryPolicy: ...

    async def work(self, handle: RunHandle) -> dict[str, Any] | Later | None:
        """Do it, from wherever an earlier attempt came to. The answer is the run's result, unless the handler
        ended the run itself. A `FermataError` of a kind that may pass is tried again, others fail the run.
        When cancelled, end what was started and write nothing."""
        ...

    def give_up(self, connection: Connection, run: Run, error: dict[str, Any], now: datetime) -> None:
        """The run fails for good, in this transaction: free what others wait for. Touches rows only."""
        ...
