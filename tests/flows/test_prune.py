"""What ended long ago is forgotten; what runs, what ended lately and every message is kept."""

from datetime import UTC, datetime, timedelta

from fermata.flows.prune import AT_ONCE, Prune
from fermata.kit.clock import SystemClock
from fermata.kit.database import Connection, Database
from fermata.runs import store as runs
from fermata.runs.contract import RunHandle
from fermata.runs.model import EffectRecord, RunState, Step, new_run
from fermata.stream import store as stream

NOW = datetime.now(UTC)
OLD = NOW - timedelta(days=8)
LATELY = NOW - timedelta(days=6)


def a_turn(connection: Connection, name: str, at: datetime, *, ended: bool) -> None:
    runs.insert(connection, new_run(name, "turn", name, now=at))
    runs.insert_step(connection, Step(name, 0, {}, at))
    runs.insert_effect(connection, EffectRecord(name, "call", 0, "bash", {}, None, at, None))
    stream.create(connection, name, at)
    stream.append(connection, name, ['{"type":"start"}'])
    if ended:
        [claimed] = runs.claim_due(connection, kind="turn", owner="w", now=at, lease=timedelta(1), count=1)
        runs.end(connection, name, claimed.fence, RunState.COMPLETED, at=at)
        stream.close(connection, name)


async def test_only_what_ended_before_the_time_is_forgotten(database: Database) -> None:
    def write(connection: Connection) -> None:
        for number in range(AT_ONCE + 5):
            a_turn(connection, f"old-{number}", OLD, ended=True)
        a_turn(connection, "lately", LATELY, ended=True)
        a_turn(connection, "long-running", OLD, ended=False)
        runs.insert(connection, new_run("prune-1", "prune", "all", now=NOW))

    await database.write(write)
    [run] = await database.write(
        lambda connection: runs.claim_due(
            connection, kind="prune", owner="w", now=datetime.now(UTC), lease=timedelta(minutes=1), count=1
        )
    )
    later = await Prune(keep_for=timedelta(days=7)).work(RunHandle(run, database, SystemClock()))
    assert later.due_at > datetime.now(UTC)

    def read(connection: Connection) -> None:
        for name, kept in (
            ("old-0", False),
            (f"old-{AT_ONCE + 4}", False),
            ("lately", True),
            ("long-running", True),
        ):
            assert (runs.find(connection, name) is not None) == kept
            assert (stream.find_state(connection, name) is not None) == kept
            assert (
                len(runs.list_steps(connection, name))
                == len(runs.list_effects(connection, name))
                == int(kept)
            )
            assert len(stream.read_all(connection, name)) == int(kept)

    await database.read(read)
