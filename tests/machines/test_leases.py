"""Leases: claims, renewals, expiries and hand-overs in any order. No write with an old fence succeeds."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule
from tests.support.memory import MemoryRows

from fermata.kit.errors import LeaseLostError
from fermata.runs import store
from fermata.runs.model import ENDED, Run, RunState, new_run

LEASE = timedelta(seconds=10)
KEYS = ("a", "b")
WORKERS = ("one", "two", "three")


class Leases(RuleBasedStateMachine):
    """Workers that go on with what they have claimed, also long after they have lost it."""

    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.rows = MemoryRows()
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        #: What must be so, by run id.
        self.state: dict[str, RunState] = {}
        self.fence: dict[str, int] = {}
        self.due: dict[str, datetime] = {}
        self.owner: dict[str, str | None] = {}
        self.live: dict[str, str] = {}
        self.stops: set[str] = set()

    @rule(key=st.sampled_from(KEYS))
    def submit(self, key: str) -> None:
        run = new_run(f"run-{len(self.state)}", "job", key, now=self.now)
        with self.rows.transaction() as connection:
            accepted = store.insert(connection, run)
        if key in self.live:
            assert accepted.id == self.live[key]
            return
        assert accepted.id == run.id
        self.live[key] = run.id
        self.state[run.id], self.fence[run.id] = RunState.QUEUED, 0
        self.due[run.id], self.owner[run.id] = self.now, None

    @rule(seconds=st.integers(1, 15))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(target=claims, worker=st.sampled_from(WORKERS), count=st.integers(1, 3))
    def claim(self, worker: str, count: int) -> object:
        with self.rows.transaction() as connection:
            claimed = store.claim_due(
                connection, kind="job", owner=worker, now=self.now, lease=LEASE, count=count
            )
        due = [run_id for run_id in self.live.values() if self.due[run_id] <= self.now]
        assert len(claimed) == min(count, len(due))
        for run in claimed:
            assert run.id in due
            assert run.fence == self.fence[run.id] + 1
            self.fence[run.id], self.owner[run.id] = run.fence, worker
            self.state[run.id], self.due[run.id] = RunState.RUNNING, self.now + LEASE
        return multiple(*claimed)

    def is_held(self, run: Run) -> bool:
        return self.state[run.id] is RunState.RUNNING and self.fence[run.id] == run.fence

    @rule(run=claims)
    def write(self, run: Run) -> None:
        with self.rows.transaction() as connection:
            if self.is_held(run):
                store.guard(connection, run.id, run.fence)
            else:
                with pytest.raises(LeaseLostError):
                    store.guard(connection, run.id, run.fence)

    @rule(run=claims, other=claims)
    def renew(self, run: Run, other: Run) -> None:
        until = self.now + LEASE
        with self.rows.transaction() as connection:
            renewed = store.renew(connection, [(run.id, run.fence), (other.id, other.fence)], until)
        held = {one.id: one.id in self.stops for one in (run, other) if self.is_held(one)}
        assert renewed == held
        for run_id in held:
            self.due[run_id] = until

    @rule(run=claims, state=st.sampled_from(sorted(ENDED)))
    def end(self, run: Run, state: RunState) -> None:
        held = self.is_held(run)
        try:
            with self.rows.transaction() as connection:
                store.end(connection, run.id, run.fence, state, at=self.now)
        except LeaseLostError:
            assert not held
            return
        assert held
        self.state[run.id] = state
        self.owner[run.id] = None
        del self.live[run.key]

    @rule(run=claims, seconds=st.integers(0, 20))
    def release(self, run: Run, seconds: int) -> None:
        due = self.now + timedelta(seconds=seconds)
        with self.rows.transaction() as connection:
            store.release(connection, run.id, run.fence, due_at=due, attempts=0)
        if self.is_held(run):
            self.state[run.id], self.due[run.id], self.owner[run.id] = RunState.QUEUED, due, None

    @rule(run=claims)
    def ask_to_stop(self, run: Run) -> None:
        with self.rows.transaction() as connection:
            asked = store.request_stop(connection, run.id, self.now)
        assert asked == (self.state[run.id] not in ENDED)
        if asked:
            self.stops.add(run.id)

    @rule(run=claims)
    def cancel_unbegun(self, run: Run) -> None:
        with self.rows.transaction() as connection:
            cancelled = store.cancel_queued(connection, run.id, self.now)
        assert cancelled == (self.state[run.id] is RunState.QUEUED)
        if cancelled:
            self.state[run.id] = RunState.CANCELLED
            del self.live[run.key]

    @rule()
    def a_lone_process_starts(self) -> None:
        with self.rows.transaction() as connection:
            store.expire_all(connection, self.now)
        for run_id, state in self.state.items():
            if state is RunState.RUNNING:
                self.due[run_id] = self.now

    @invariant()
    def rows_are_as_expected(self) -> None:
        with self.rows.transaction() as connection:
            for run_id, state in self.state.items():
                run = store.find(connection, run_id)
                assert run is not None
                assert (run.state, run.fence, run.lease_owner) == (
                    state,
                    self.fence[run_id],
                    self.owner[run_id],
                )
            for key in KEYS:
                found = store.find_live(connection, "job", key)
                assert (found.id if found else None) == self.live.get(key)

    def teardown(self) -> None:
        self.rows.close()


Leases.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestLeases = Leases.TestCase
