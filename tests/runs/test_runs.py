"""Runs: accepted once, worked on by one worker at a time, taken over, tried again, ended visibly."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fermata.kit.clock import SystemClock
from fermata.kit.database import Connection, Database
from fermata.kit.errors import (
    ConflictError,
    ErrorKind,
    InternalError,
    LeaseLostError,
    TimedOutError,
    UnavailableError,
)
from fermata.runs import store
from fermata.runs.contract import Later, RunHandle
from fermata.runs.model import EffectRecord, RetryPolicy, Run, RunState, Step, decide_retry, new_run
from fermata.runs.service import Offer, RunService
from fermata.runs.worker import Worker

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = timedelta(milliseconds=600)
Work = Callable[[RunHandle], Awaitable[dict[str, Any] | Later | None]]


class Job:
    kind = "job"
    policy = RetryPolicy(attempts=3, first_pause_for=timedelta(milliseconds=20))

    def __init__(self, work: Work, at_once: int = 4) -> None:
        self._work = work
        self.at_once = at_once
        self.given_up: list[dict[str, Any]] = []

    async def work(self, handle: RunHandle) -> dict[str, Any] | Later | None:
        return await self._work(handle)

    def give_up(self, connection: Connection, run: Run, error: dict[str, Any], now: datetime) -> None:
        self.given_up.append(error)


@asynccontextmanager
async def working(database: Database, job: Job, *, attach: RunService | None = None) -> AsyncIterator[Worker]:
    worker = Worker(database=database, clock=SystemClock(), lease=LEASE, handlers=[job])
    await worker.open(alone=False)
    if attach:
        attach.attach(worker)
    try:
        yield worker
    finally:
        if attach:
            attach.attach(None)
        await worker.close()


@pytest.fixture
def service(database: Database) -> RunService:
    return RunService(database=database, clock=SystemClock())


async def test_a_submitted_run_is_worked_on_and_its_result_is_kept(
    database: Database, service: RunService
) -> None:
    async def work(handle: RunHandle) -> dict[str, Any]:
        return {"doubled": handle.run.input["n"] * 2}

    async with working(database, Job(work)):
        run = await service.submit("job", "a", {"n": 21})
        assert await service.result(run.id, timedelta(seconds=5)) == {"doubled": 42}
    assert (await service.get(run.id)).state is RunState.COMPLETED


async def test_an_attached_worker_begins_at_once_and_not_twice(
    database: Database, service: RunService
) -> None:
    begun: list[str] = []

    async def work(handle: RunHandle) -> None:
        begun.append(handle.run.id)
        await asyncio.sleep(LEASE.total_seconds() * 2)  # its lease must be kept, or it would be claimed again

    async with working(database, Job(work), attach=service):
        runs = [await service.submit("job", str(number), {}) for number in range(4)]
        await asyncio.gather(*(service.wait(run.id, timedelta(seconds=10)) for run in runs))
    assert sorted(begun) == sorted(run.id for run in runs)


async def test_ten_submissions_of_one_key_at_once_are_one_run(
    database: Database, service: RunService
) -> None:
    runs = await asyncio.gather(*(service.submit("job", "same", {}) for _ in range(10)))
    assert len({run.id for run in runs}) == 1


async def test_an_ended_run_makes_way_for_a_new_one_of_the_same_key(
    database: Database, service: RunService
) -> None:
    async def work(handle: RunHandle) -> None:
        return None

    async with working(database, Job(work)):
        first = await service.submit("job", "a", {})
        await service.wait(first.id, timedelta(seconds=5))
        second = await service.submit("job", "a", {})
        assert second.id != first.id
        await service.wait(second.id, timedelta(seconds=5))


async def test_the_id_of_an_ended_run_is_not_taken_again(database: Database, service: RunService) -> None:
    run = await service.submit("job", "a", {})
    await database.write(lambda connection: store.cancel_queued(connection, run.id, NOW))
    with pytest.raises(InternalError):
        await database.write(lambda connection: store.insert(connection, run))


async def test_a_run_that_nobody_works_on_is_not_kept_by_its_worker(
    database: Database, service: RunService
) -> None:
    """Claimed, and then the claim's answer was lost: the worker lives on and knows nothing of it."""
    seen: list[int] = []

    async def work(handle: RunHandle) -> None:
        seen.append(handle.run.fence)
        if handle.run.key == "other":
            await asyncio.sleep(LEASE.total_seconds() * 2)

    async with working(database, Job(work), attach=service) as worker:
        await service.submit("job", "other", {})  # keeps the worker renewing
        lost = new_run("lost", "job", "lost", now=datetime.now(UTC))
        orphan = replace(
            lost,
            state=RunState.RUNNING,
            attempts=1,
            fence=1,
            lease_owner=worker.owner,
            lease_until=datetime.now(UTC) + LEASE,
            due_at=datetime.now(UTC) + LEASE,
        )
        await database.write(lambda connection: store.insert(connection, orphan))
        await service.wait("lost", timedelta(seconds=10))
    assert 2 in seen


async def test_a_run_that_ends_unless_there_is_more_sees_what_a_joiner_wrote(
    database: Database, service: RunService
) -> None:
    """Who joins a live run has its wish seen by it, or gets a run of its own."""
    wishes: set[str] = set()
    granted: set[str] = set()

    async def work(handle: RunHandle) -> None:
        def more(_: Connection) -> str | None:
            return wishes.pop() if wishes else None

        while (wish := await handle.end_unless(more)) is not None:
            granted.add(wish)
            await asyncio.sleep(0.001)

    def wish(connection: Connection, offer: Offer, name: str) -> None:
        offer.insert(connection)
        wishes.add(name)

    async with working(database, Job(work), attach=service):
        for number in range(60):
            with service.offer("job", "one", {}) as offer:
                await database.write(lambda found, o=offer, n=str(number): wish(found, o, n))
                offer.begin()
            await asyncio.sleep(0.002 * (number % 3))
        async with asyncio.timeout(10):
            while len(granted) < 60:
                await asyncio.sleep(0.01)


async def test_no_more_runs_than_places_are_worked_on_at_once(
    database: Database, service: RunService
) -> None:
    now = 0
    most = 0

    async def work(handle: RunHandle) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1

    async with working(database, Job(work, at_once=3), attach=service):
        runs = [await service.submit("job", str(number), {}) for number in range(12)]
        await asyncio.gather(*(service.wait(run.id, timedelta(seconds=10)) for run in runs))
    assert most == 3


async def test_what_may_pass_is_tried_again_and_then_fails_visibly(
    database: Database, service: RunService
) -> None:
    attempts: list[int] = []

    async def work(handle: RunHandle) -> None:
        attempts.append(handle.run.attempts)
        raise UnavailableError("The moon is in the way.")

    job = Job(work)
    async with working(database, job):
        run = await service.submit("job", "a", {})
        with pytest.raises(Exception, match="The moon is in the way"):
            await service.result(run.id, timedelta(seconds=10))
    assert attempts == [1, 2, 3]
    assert [error["code"] for error in job.given_up] == ["unavailable"]


async def test_what_cannot_pass_fails_at_once(database: Database, service: RunService) -> None:
    attempts: list[int] = []

    async def work(handle: RunHandle) -> None:
        attempts.append(handle.run.attempts)
        raise ConflictError("No.")

    async with working(database, Job(work)):
        run = await service.submit("job", "a", {})
        ended = await service.wait(run.id, timedelta(seconds=5))
    assert ended.state is RunState.FAILED
    assert ended.error == {"code": "conflict", "kind": "conflict", "message": "No."}
    assert attempts == [1]


async def test_an_unexpected_exception_tells_clients_nothing_of_itself(
    database: Database, service: RunService
) -> None:
    async def work(handle: RunHandle) -> None:
        raise RuntimeError("secret at /root")

    async with working(database, Job(work)):
        run = await service.submit("job", "a", {})
        ended = await service.wait(run.id, timedelta(seconds=10))
    assert ended.error is not None
    assert "secret" not in str(ended.error)


async def test_later_puts_a_run_off_without_counting_it_as_an_attempt(
    database: Database, service: RunService
) -> None:
    seen: list[int] = []

    async def work(handle: RunHandle) -> Later | None:
        seen.append(handle.run.attempts)
        return Later(handle.now() + timedelta(milliseconds=20)) if len(seen) < 6 else None

    async with working(database, Job(work)):
        run = await service.submit("job", "a", {})
        ended = await service.wait(run.id, timedelta(seconds=10))
    assert ended.state is RunState.COMPLETED
    assert seen == [1] * 6


async def test_a_stop_reaches_the_run_whoever_asked(database: Database, service: RunService) -> None:
    started = asyncio.Event()

    async def work(handle: RunHandle) -> dict[str, Any]:
        started.set()
        await handle.stopping.wait()
        return {"stopped": True}

    async with working(database, Job(work)):
        run = await service.submit("job", "a", {})
        await asyncio.wait_for(started.wait(), 5)
        assert await service.request_stop(run.id)
        assert await service.result(run.id, timedelta(seconds=5)) == {"stopped": True}
        assert not await service.request_stop(run.id)


async def test_a_drained_worker_hands_its_runs_over_at_once_and_uncounted(
    database: Database, service: RunService
) -> None:
    started = asyncio.Event()
    attempts: list[int] = []

    async def wait_for_ever(handle: RunHandle) -> None:
        attempts.append(handle.run.attempts)
        started.set()
        await asyncio.Event().wait()

    async def finish(handle: RunHandle) -> None:
        attempts.append(handle.run.attempts)

    async with working(database, Job(wait_for_ever)):
        run = await service.submit("job", "a", {})
        await asyncio.wait_for(started.wait(), 5)
    assert (await service.get(run.id)).state is RunState.QUEUED
    async with working(database, Job(finish)):
        await service.wait(run.id, timedelta(seconds=5))
    assert attempts == [1, 1]


async def test_a_run_of_a_dead_worker_is_taken_over_and_the_dead_can_write_nothing(
    database: Database, service: RunService
) -> None:
    dead: list[RunHandle] = []
    run = await service.submit("job", "a", {})
    claimed = await database.write(
        lambda connection: store.claim_due(
            connection, kind="job", owner="dead", now=datetime.now(UTC), lease=LEASE, count=1
        )
    )
    dead.append(RunHandle(claimed[0], database, SystemClock()))

    async def finish(handle: RunHandle) -> dict[str, Any]:
        return {"attempts": handle.run.attempts, "fence": handle.run.fence}

    async with working(database, Job(finish)):
        assert await service.result(run.id, timedelta(seconds=10)) == {"attempts": 2, "fence": 2}
    written: list[str] = []
    for write in (
        dead[0].write(lambda _: written.append("write")),
        dead[0].end(RunState.COMPLETED, lambda _: written.append("end")),
    ):
        with pytest.raises(LeaseLostError):
            await write
    assert written == []


async def test_two_claims_at_once_never_get_the_same_run(database: Database, service: RunService) -> None:
    for number in range(20):
        await service.submit("job", str(number), {})

    async def claim(owner: str) -> list[Run]:
        return await database.write(
            lambda connection: store.claim_due(
                connection, kind="job", owner=owner, now=datetime.now(UTC), lease=LEASE, count=8
            )
        )

    claims = await asyncio.gather(*(claim(f"worker-{number}") for number in range(4)))
    ids = [run.id for claimed in claims for run in claimed]
    assert len(ids) == len(set(ids))


async def test_a_run_whose_workers_keep_dying_ends_with_a_reason(
    database: Database, service: RunService
) -> None:
    run = await service.submit("job", "a", {})
    moment = datetime.now(UTC)
    for number in range(Job.policy.attempts):
        moment += LEASE * 2
        await database.write(
            lambda connection, at=moment, number=number: store.claim_due(
                connection, kind="job", owner=f"dead-{number}", now=at, lease=-LEASE * 10, count=1
            )
        )

    async def never(handle: RunHandle) -> None:
        raise AssertionError("it was begun once too often")

    job = Job(never)
    async with working(database, job):
        ended = await service.wait(run.id, timedelta(seconds=10))
    assert ended.state is RunState.FAILED
    assert job.given_up[0]["code"] == "gave_up"


async def test_waiting_ends_in_time_and_the_run_goes_on(database: Database, service: RunService) -> None:
    run = await service.submit("job", "a", {})
    with pytest.raises(TimedOutError):
        await service.wait(run.id, timedelta(milliseconds=50))
    assert (await service.get(run.id)).state is RunState.QUEUED


async def test_steps_and_effects_come_back_as_they_were_recorded(
    database: Database, service: RunService
) -> None:
    run = await service.submit("job", "a", {})
    step = Step(run.id, 0, {"said": "ü"}, NOW)
    intent = EffectRecord(run.id, "call-1", 0, "bash", {"command": "true"}, None, NOW, None)

    def record(connection: Connection) -> None:
        store.insert_step(connection, step)
        store.insert_effect(connection, intent)
        store.insert_effect(connection, replace(intent, name="other"))

    await database.write(record)
    assert await database.read(lambda connection: store.list_steps(connection, run.id)) == [step]
    assert await database.read(lambda connection: store.list_effects(connection, run.id)) == [intent]
    await database.write(lambda connection: store.end_effect(connection, run.id, "call-1", {"ok": 1}, NOW))
    ended = replace(intent, result={"ok": 1}, ended_at=NOW)
    assert await database.read(lambda connection: store.list_effects(connection, run.id)) == [ended]


async def test_an_effect_that_was_never_intended_cannot_end(database: Database, service: RunService) -> None:
    run = await service.submit("job", "a", {})
    with pytest.raises(InternalError):
        await database.write(lambda connection: store.end_effect(connection, run.id, "call", {}, NOW))


class Flaky:
    """A database that is away for some of the writes."""

    def __init__(self, inner: Database) -> None:
        self.inner = inner
        self.hints = inner.hints
        self.dialect_name = inner.dialect_name
        self.away = False

    async def read(self, work: Callable[[Connection], Any]) -> Any:
        return await self.inner.read(work)

    async def write(self, work: Callable[[Connection], Any]) -> Any:
        if self.away:
            raise UnavailableError("The database is away.")
        return await self.inner.write(work)

    async def close(self) -> None:
        await self.inner.close()


async def test_a_run_whose_end_could_not_be_written_is_begun_again(
    database: Database, service: RunService
) -> None:
    flaky = Flaky(database)
    begun: list[int] = []

    async def work(handle: RunHandle) -> None:
        begun.append(handle.run.attempts)
        flaky.away = len(begun) == 1

    async def come_back() -> None:
        await asyncio.sleep(0.1)
        flaky.away = False

    async with working(flaky, Job(work)):
        run = await service.submit("job", "a", {})
        async with asyncio.timeout(10):
            while not begun:
                await asyncio.sleep(0.005)
            await come_back()
            await service.wait(run.id, timedelta(seconds=10))
    assert begun == [1, 2]


def test_pauses_double_up_to_the_longest_and_end_with_the_attempts() -> None:
    policy = RetryPolicy(
        attempts=5, first_pause_for=timedelta(seconds=1), longest_pause_for=timedelta(seconds=3)
    )
    pauses = [decide_retry(policy, attempts, ErrorKind.UNAVAILABLE, NOW) for attempts in range(1, 6)]
    assert [pause - NOW for pause in pauses if pause] == [
        timedelta(seconds=number) for number in (1, 2, 3, 3)
    ]
    assert decide_retry(policy, 1, ErrorKind.INVALID, NOW) is None
