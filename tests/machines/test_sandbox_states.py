"""The life of a sandbox: every cell of its table of moves, and histories of any length."""

import itertools
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.support.memory import MemoryRows

from fermata.kit.errors import ConflictError, VersionMismatchError
from fermata.sandboxes import store
from fermata.sandboxes.model import (
    EXPIRY_BUFFER,
    MOVES,
    LifecycleState,
    SandboxRecord,
    is_running,
    may_move,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STATES = list(LifecycleState)
_S = LifecycleState

#: Where a sandbox must be able to go on to, whatever happens to who was moving it.
WAYS_OUT = {
    _S.PROVISIONING: {_S.ACTIVE, _S.FAILED},
    _S.RESTORING: {_S.ACTIVE, _S.FAILED},
    _S.HIBERNATING: {_S.HIBERNATED, _S.FAILED},
}


def a_sandbox(state: LifecycleState = _S.PROVISIONING) -> SandboxRecord:
    return SandboxRecord(
        id="session-1", session_id="1", account_id="a", provider="memory", state=state, version=0,
        has_disk=False, repository="o/r", branch="main", is_new_branch=False, run_id=None, error=None,
        last_activity_at=None, expires_at=None, hibernate_after=None, snapshot_created_at=None,
        snapshot_size_bytes=None, created_at=NOW, updated_at=NOW,
    )  # fmt: skip


@pytest.mark.parametrize(("before", "after"), list(itertools.product(STATES, STATES)))
def test_every_move_is_made_or_refused_as_the_table_says(
    before: LifecycleState, after: LifecycleState
) -> None:
    rows = MemoryRows()
    with rows.transaction() as connection:
        store.insert_new(connection, a_sandbox(before), actor="test")
    with rows.transaction() as connection:
        seen = store.get(connection, "session-1")
        if may_move(before, after):
            moved = store.move(connection, seen, after, reason="r", actor="a", at=NOW, error="e")
            assert moved == replace(seen, state=after, version=1, error="e")
        else:
            with pytest.raises(ConflictError, match=f"{before} cannot become {after}"):
                store.move(connection, seen, after, reason="r", actor="a", at=NOW)
            assert store.get(connection, "session-1") == seen
        moves = store.list_moves(connection, "session-1")
    assert [(move.from_state, move.to_state) for move in moves[1:]] == (
        [(before, after)] if may_move(before, after) else []
    )
    rows.close()


def test_the_table_names_every_state_and_leaves_none_without_a_way_out() -> None:
    assert set(MOVES) == set(STATES)
    for state, ways in WAYS_OUT.items():
        assert ways <= MOVES[state]
    for state in STATES:
        assert _S.ARCHIVED in MOVES[state] or state is _S.ARCHIVED
        reached = {state}
        while len(reached) < len(reached := reached | {to for one in reached for to in MOVES[one]}):
            continue
        assert _S.ACTIVE in reached


@pytest.mark.parametrize("state", STATES)
def test_only_an_active_sandbox_that_is_not_about_to_end_counts_as_running(state: LifecycleState) -> None:
    record = a_sandbox(state)
    active = state is _S.ACTIVE
    assert is_running(record, NOW) == active
    assert is_running(replace(record, expires_at=NOW + EXPIRY_BUFFER + timedelta(seconds=1)), NOW) == active
    assert not is_running(replace(record, expires_at=NOW + EXPIRY_BUFFER), NOW)


def test_a_move_cannot_change_what_a_sandbox_is() -> None:
    rows = MemoryRows()
    with rows.transaction() as connection:
        store.insert_new(connection, a_sandbox(), actor="test")
        seen = store.get(connection, "session-1")
        with pytest.raises(TypeError, match="provider"):
            store.move(connection, seen, _S.ACTIVE, reason="r", actor="a", at=NOW, provider="other")
    rows.close()


class Life(RuleBasedStateMachine):
    """Several who look at a sandbox at different times, and move it as they have seen it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = MemoryRows()
        self.now = NOW
        with self.rows.transaction() as connection:
            store.insert_new(connection, a_sandbox(), actor="test")
            self.seen = {who: store.get(connection, "session-1") for who in range(3)}
        self.current = self.seen[0]
        self.history: list[tuple[Any, Any]] = [(None, _S.PROVISIONING)]

    @rule(who=st.integers(0, 2))
    def look(self, who: int) -> None:
        with self.rows.transaction() as connection:
            self.seen[who] = store.get(connection, "session-1")
        assert self.seen[who] == self.current

    @rule(who=st.integers(0, 2), to=st.sampled_from(STATES), has_disk=st.booleans())
    def move(self, who: int, to: LifecycleState, has_disk: bool) -> None:
        seen = self.seen[who]
        self.now += timedelta(seconds=1)
        if not may_move(seen.state, to):
            expected: type[Exception] | None = ConflictError
        elif seen.version != self.current.version:
            expected = VersionMismatchError
        else:
            expected = None
        refusal = pytest.raises(expected) if expected else nullcontext()
        with refusal, self.rows.transaction() as connection:
            moved = store.move(
                connection, seen, to, reason="r", actor=str(who), at=self.now, has_disk=has_disk
            )
        if expected is not None:
            return
        assert moved.version == self.current.version + 1
        self.history.append((self.current.state, to))
        self.current = self.seen[who] = moved

    @precondition(lambda self: self.current.state is _S.ACTIVE)
    @rule(seconds=st.integers(1, 100))
    def touch(self, seconds: int) -> None:
        at = self.now + timedelta(seconds=seconds)
        with self.rows.transaction() as connection:
            store.touch(connection, "session-1", at=self.now, hibernate_after=at)
        self.current = replace(self.current, last_activity_at=self.now, hibernate_after=at)

    @precondition(lambda self: self.current.state is not _S.ACTIVE)
    @rule()
    def activity_on_one_that_does_not_run_changes_nothing(self) -> None:
        with self.rows.transaction() as connection:
            store.touch(connection, "session-1", at=self.now, hibernate_after=self.now)
            store.extend(connection, "session-1", self.now + timedelta(days=1))

    @invariant()
    def the_row_and_its_history_are_whole(self) -> None:
        with self.rows.transaction() as connection:
            assert store.get(connection, "session-1") == self.current
            moves = store.list_moves(connection, "session-1")
        assert [move.version for move in moves] == list(range(self.current.version + 1))
        assert [(move.from_state, move.to_state) for move in moves] == self.history
        assert [move.at for move in moves] == sorted(move.at for move in moves)

    def teardown(self) -> None:
        self.rows.close()


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLife = Life.TestCase
