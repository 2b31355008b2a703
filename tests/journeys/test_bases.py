"""Base snapshots of repositories, and what a server finds when it starts."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from tests.journeys.conftest import MakePlace
from tests.support.places import Place
from tests.support.watched import until

from fermata.flows.reconcile import reconcile
from fermata.kit.clock import SystemClock
from fermata.kit.errors import SandboxFailedError
from fermata.runs import store as runs
from fermata.sandboxes import store
from fermata.sandboxes.contract import SandboxInfo
from fermata.sandboxes.model import LifecycleState


async def is_built(place: Place) -> bool:
    key = "/".join(place.session["cloneUrl"].split("/")[-2:])
    database = place.served.fermata.database
    return await database.read(lambda found: runs.find_live(found, "base_snapshot", key)) is None


async def bases(place: Place) -> list[str]:
    return [snapshot.name for snapshot in await place.provider.inner.list_snapshots()]


async def builders(place: Place) -> list[str]:
    known = await place.provider.inner.list_sandboxes()
    return [info.name for info in known if info.name.startswith("build-")]


async def test_the_next_session_of_a_repository_starts_from_its_base(place: Place) -> None:
    await place.open()
    await place.start()
    await until(lambda: is_built(place))
    assert len(await bases(place)) == 1
    # The second session of the same account works in the same repository.
    await place.open()
    assert (await place.start()).status == 200
    assert place.provider.count("create", place.sandbox_id) == 1
    seen = await place.say("git status --short --branch; git remote get-url origin")
    assert "## main" in seen.text
    assert place.session["cloneUrl"].removesuffix(".git") in seen.text


async def test_many_sessions_that_miss_at_once_have_one_base_built(make_place: MakePlace) -> None:
    place = await make_place()
    opened = [await place.open() for _ in range(5)]
    assert len({session["cloneUrl"] for session in opened}) == 1
    answers = await asyncio.gather(
        *(
            place.client.post("/api/sandbox", {"sessionId": one["id"], "repoUrl": one["cloneUrl"]})
            for one in opened
        )
    )
    assert [answer.status for answer in answers] == [200] * 5
    await until(lambda: is_built(place))
    assert len(await bases(place)) == 1
    assert not [
        info for info in await place.provider.inner.list_sandboxes() if info.name.startswith("build-")
    ]


async def test_a_base_that_cannot_be_built_hinders_nobody(make_place: MakePlace) -> None:
    place = await make_place()
    await place.open()
    with place.provider.failing("stop", SandboxFailedError("No.")):
        assert (await place.start()).status == 200
        await until(lambda: is_built(place))
    assert await bases(place) == []
    assert await builders(place) == []
    await place.open()
    assert (await place.start()).status == 200
    await until(lambda: is_built(place))
    assert len(await bases(place)) == 1


async def look(place: Place) -> Any:
    return await place.served.fermata.database.read(lambda found: store.get(found, place.sandbox_id))


async def test_a_starting_server_writes_down_what_has_stopped(place: Place) -> None:
    await place.open()
    await place.start()
    await place.provider.inner.stop(place.sandbox_id)
    fermata = place.served.fermata
    await reconcile(database=fermata.database, clock=SystemClock(), provider=place.provider.inner)
    record = await look(place)
    assert (record.state, record.expires_at, record.has_disk) == (LifecycleState.HIBERNATED, None, True)
    moves = await fermata.database.read(lambda found: store.list_moves(found, place.sandbox_id))
    assert (moves[-1].actor, moves[-1].to_state) == ("reconcile", LifecycleState.HIBERNATED)


async def test_a_starting_server_leaves_alone_what_another_has_just_started(place: Place) -> None:
    """The provider's list is older than the machine, or the row is older than the list: both are left."""
    await place.open()
    await place.start()
    fermata = place.served.fermata

    class Late:
        name = place.provider.inner.name

        async def list_sandboxes(self) -> list[SandboxInfo]:
            """While this answers, another process pauses and starts the sandbox again."""
            record = await look(place)
            if record.version == 1:
                await place.pause()
                await place.start()
            return []

    await reconcile(database=fermata.database, clock=SystemClock(), provider=Late())  # type: ignore[arg-type]
    record = await look(place)
    assert record.state is LifecycleState.ACTIVE
    assert record.updated_at <= datetime.now(UTC)
    assert (await place.reconnect())["status"] == "connected"
