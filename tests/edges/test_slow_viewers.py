"""What one viewer may cost the server: one that does not read, and one that has gone."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from fermata.edges.http.sse import stream_response
from fermata.kit.database import Database
from fermata.stream import store
from fermata.stream.service import StreamService

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Connection:
    """The server's side of a connection, whose buffer is full until `room` is set."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.gone = asyncio.Event()
        self.sent: list[dict[str, Any]] = []

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        await self.room.wait()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def ended(self) -> bool:
        return any(message.get("more_body") is False for message in self.sent)


async def fill(database: Database, rows: int, *, closed: bool) -> None:
    def write(connection: Any) -> None:
        store.create(connection, "s", NOW)
        for number in range(rows):
            store.append(connection, "s", [f'"{number}"', '"and"'])
        if closed:
            store.close(connection, "s")

    await database.write(write)


async def begin(service: StreamService, connection: Connection) -> "asyncio.Task[None]":
    response = await stream_response(service, "s")
    call: Any = response({"type": "http"}, connection.receive, connection.send)
    return asyncio.create_task(call)


async def test_a_viewer_who_does_not_read_is_sent_one_page_and_no_more(database: Database) -> None:
    await fill(database, 3 * store.PAGE, closed=True)
    connection = Connection()
    viewer = await begin(StreamService(database=database), connection)
    await asyncio.sleep(0.1)
    assert len(connection.sent) == 1  # the head; its page waits
    connection.room.set()
    async with asyncio.timeout(30):
        await viewer
    pages = [message["body"] for message in connection.sent[1:-1]]
    assert [page.count(b"data: ") for page in pages] == [2 * store.PAGE] * 3
    assert connection.body.endswith(b'id: 383\ndata: "and"\n\ndata: [DONE]\n\n')
    assert connection.ended


async def test_a_viewer_who_goes_while_nothing_happens_leaves_nothing_behind(database: Database) -> None:
    await fill(database, 1, closed=False)
    connection = Connection()
    connection.room.set()
    service = StreamService(database=database)
    viewer = await begin(service, connection)
    async with asyncio.timeout(30):
        while not connection.body:
            await asyncio.sleep(0.01)
        connection.gone.set()
        await viewer
    assert not service._shared
    assert not connection.ended
    assert not viewer.cancelled()


async def test_a_cancelled_answer_stays_cancelled(database: Database) -> None:
    await fill(database, 1, closed=False)
    connection = Connection()
    connection.room.set()
    service = StreamService(database=database)
    viewer = await begin(service, connection)
    await asyncio.sleep(0.05)
    viewer.cancel()
    await asyncio.gather(viewer, return_exceptions=True)
    assert viewer.cancelled()
    assert not service._shared


async def test_an_answer_is_cut_and_not_ended_when_the_server_ends(database: Database) -> None:
    await fill(database, 1, closed=False)
    connection = Connection()
    connection.room.set()
    service = StreamService(database=database)
    viewer = await begin(service, connection)
    await asyncio.sleep(0.05)
    service.close()
    async with asyncio.timeout(30):
        await viewer
    assert b"[DONE]" not in connection.body
    assert not connection.ended
