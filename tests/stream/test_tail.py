"""What viewers of one stream share in a process."""

import asyncio
import gc
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from tests.stream.test_stream import NOW

from fermata.edges.http import sse
from fermata.kit.database import Connection, Database, Statement
from fermata.stream import service as stream_service
from fermata.stream import store
from fermata.stream.model import Batch
from fermata.stream.service import StreamService

T = TypeVar("T")


class CountingDatabase:
    """Counts looks, each of which takes a moment, as with a database that is elsewhere."""

    def __init__(self, inner: Database) -> None:
        self._inner = inner
        self.hints = inner.hints
        self.looks = 0

    async def read(self, work: Callable[[Connection], T]) -> T:
        self.looks += 1
        await asyncio.sleep(0.001)
        return await self._inner.read(work)


@pytest.fixture
def no_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not told by a hint is not seen."""
    monkeypatch.setattr(stream_service, "POLL", timedelta(hours=1))


async def append(database: Database, *lines: str) -> None:
    await database.write(lambda connection: store.append(connection, "s", lines))


async def create(database: Database) -> None:
    await database.write(lambda connection: store.create(connection, "s", NOW))


async def view(service: Any, found: list[Batch], start: int = 0) -> None:
    async for batch in service.read("s", start):
        found.append(batch)


@pytest.mark.usefixtures("no_poll")
async def test_many_viewers_at_one_place_look_once_and_share_what_they_find(database: Database) -> None:
    await create(database)
    counting: Any = CountingDatabase(database)
    service = StreamService(database=counting)
    found: list[list[Batch]] = [[] for _ in range(50)]
    viewers = [asyncio.create_task(view(service, some)) for some in found]
    for number in range(10):
        await append(database, f"line {number}")
        while not all(some and some[-1].end == number + 1 for some in found):
            await asyncio.sleep(0.001)
    await database.write(lambda connection: store.close(connection, "s"))
    await asyncio.gather(*viewers)
    assert all(some == found[0] for some in found)
    # A look for each chunk and one after it, and some for the beginning and the end; not fifty times as many.
    assert counting.looks < 50
    batch = found[0][-1]
    assert sse._encoded(batch) is sse._encoded(found[1][-1])


@pytest.mark.usefixtures("no_poll")
async def test_a_viewer_who_comes_to_an_old_page_still_sees_what_came_after_it(database: Database) -> None:
    await create(database)
    service = StreamService(database=database)
    first: list[Batch] = []
    second: list[Batch] = []
    await append(database, "a")
    watching = asyncio.create_task(view(service, first))
    while not first:
        await asyncio.sleep(0.001)
    await append(database, "b")
    while len(first) < 2:
        await asyncio.sleep(0.001)
    # It is given the page that held "a" alone, and must go on to "b" without waiting for a hint.
    late = asyncio.create_task(view(service, second))
    async with asyncio.timeout(30):
        while sum(len(batch.lines) for batch in second) < 2:
            await asyncio.sleep(0.001)
    await database.write(lambda connection: store.close(connection, "s"))
    await asyncio.gather(watching, late)
    assert [line for batch in second for line in batch.lines] == ["a", "b"]


async def test_a_lost_hint_costs_time_and_no_chunk(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(database)
    service = StreamService(database=database)
    found: list[Batch] = []
    viewer = asyncio.create_task(view(service, found))
    await asyncio.sleep(0.05)
    monkeypatch.setattr(database.hints, "publish", lambda topic: None)
    await append(database, "a")
    await database.write(lambda connection: store.close(connection, "s"))
    async with asyncio.timeout(10):
        await viewer
    assert [batch.lines for batch in found] == [("a",)]


async def test_a_silent_stream_beats_until_its_viewer_leaves_and_nothing_is_kept(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_service, "HEARTBEAT", stream_service.POLL)
    await create(database)
    service = StreamService(database=database)
    events = service.read("s")
    assert (await anext(events)).lines == ()
    await events.aclose()
    assert not service._shared
    assert not database.hints._listeners
    gc.collect()
    assert not sse._cache


@pytest.mark.usefixtures("no_poll")
async def test_one_viewer_who_leaves_takes_no_hints_from_the_others(database: Database) -> None:
    await create(database)
    service = StreamService(database=database)
    found: list[Batch] = []
    staying = asyncio.create_task(view(service, found))
    leaving = asyncio.create_task(view(service, []))
    await asyncio.sleep(0.05)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await append(database, "a")
    async with asyncio.timeout(30):
        while not found:
            await asyncio.sleep(0.001)
    service.close()
    await staying


async def test_a_deleted_stream_ends_its_viewers(database: Database) -> None:
    await create(database)
    service = StreamService(database=database)
    viewer = asyncio.create_task(view(service, []))
    await asyncio.sleep(0.05)
    await database.write(lambda connection: connection.run(Statement(sa.delete(store.streams))))
    async with asyncio.timeout(10):
        await viewer
