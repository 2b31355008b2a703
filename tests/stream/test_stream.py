"""Streams: one gap-free sequence, readable from anywhere, while it grows and after."""

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermata.kit.database import Database
from fermata.kit.errors import ConflictError, NotFoundError
from fermata.stream import store
from fermata.stream.model import decide_start
from fermata.stream.service import StreamService

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def fill(database: Database, batches: list[list[str]], *, closed: bool = True) -> None:
    await database.write(lambda connection: store.create(connection, "s", NOW))
    for batch in batches:
        await database.write(lambda connection, batch=batch: store.append(connection, "s", batch))
    if closed:
        await database.write(lambda connection: store.close(connection, "s"))


async def collect(service: StreamService, start: int = 0) -> list[tuple[int, str]]:
    return [
        (batch.first + offset, line)
        async for batch in service.read("s", start)
        for offset, line in enumerate(batch.lines)
    ]


async def test_a_closed_stream_replays_exactly_the_suffix_from_every_index(database: Database) -> None:
    await fill(database, [["a", "b", "c"], ["d"], ["e", "f"]])
    service = StreamService(database=database)
    whole = list(enumerate("abcdef"))
    for start in range(8):
        assert await collect(service, start) == whole[start:]
    for start in range(-8, 0):
        assert await collect(service, start) == whole[start:]


async def test_a_stream_longer_than_a_page_is_read_whole(database: Database) -> None:
    await fill(database, [[str(number)] for number in range(3 * store.PAGE + 5)])
    found = await collect(StreamService(database=database))
    assert [line for _, line in found] == [str(number) for number in range(3 * store.PAGE + 5)]


async def test_viewers_that_join_while_it_grows_see_the_same_gap_free_sequence(database: Database) -> None:
    await fill(database, [], closed=False)
    service = StreamService(database=database)

    async def write() -> None:
        for number in range(40):
            lines = [f"{number}-{part}" for part in range(number % 3 + 1)]
            await database.write(lambda connection, lines=lines: store.append(connection, "s", lines))
            await asyncio.sleep(0.002)
        await database.write(lambda connection: store.close(connection, "s"))

    async def view(delay: float) -> list[tuple[int, str]]:
        await asyncio.sleep(delay)
        return await collect(service)

    _, *seen = await asyncio.gather(write(), *(view(number * 0.01) for number in range(8)))
    assert all(one == seen[0] for one in seen)
    assert [index for index, _ in seen[0]] == list(range(len(seen[0])))
    assert seen[0][-1][1].startswith("39-")


async def test_two_writers_at_once_get_places_without_gap_or_overlap(database: Database) -> None:
    await fill(database, [], closed=False)
    firsts = await asyncio.gather(
        *(database.write(lambda connection: store.append(connection, "s", ["x", "y"])) for _ in range(50))
    )
    assert sorted(firsts) == list(range(0, 100, 2))


async def test_nothing_can_be_added_to_a_closed_stream(database: Database) -> None:
    await fill(database, [["a"]])
    with pytest.raises(ConflictError):
        await database.write(lambda connection: store.append(connection, "s", ["b"]))


async def test_an_unknown_stream_is_not_found(database: Database) -> None:
    with pytest.raises(NotFoundError):
        await StreamService(database=database).state("nothing")


async def test_closing_the_service_lets_viewers_of_a_growing_stream_go(database: Database) -> None:
    await fill(database, [["a"]], closed=False)
    service = StreamService(database=database)
    viewer = asyncio.create_task(collect(service))
    await asyncio.sleep(0.05)
    service.close()
    assert await asyncio.wait_for(viewer, 5) == [(0, "a")]


@given(st.integers(-50, 50), st.integers(0, 40))
def test_a_negative_start_counts_from_the_end_and_never_leaves_the_stream(start: int, length: int) -> None:
    at = decide_start(start, length)
    assert at == start if start >= 0 else at == max(0, length + start)
