"""Reading a stream while it grows and after it has ended."""

from collections.abc import AsyncIterator
from datetime import timedelta

from fermata.kit.database import Database
from fermata.stream import store
from fermata.stream.model import Batch, StreamState, decide_start

#: Looks again at least this often, should a hint be lost (between processes only).
POLL = timedelta(seconds=1)
#: After this long without a chunk, an empty batch keeps the connection alive: proxies cut a silent stream
#: after about two minutes.
HEARTBEAT = timedelta(seconds=15)


class StreamService:
    def __init__(self, *, database: Database) -> None:
        self._database = database

    async def state(self, stream_id: str) -> StreamState:
        """`NotFoundError` when there is no such stream."""
        return await self._database.read(lambda connection: store.get_state(connection, stream_id))

    async def read(self, stream_id: str, start: int = 0) -> AsyncIterator[Batch]:
        """Chunks from index `start` (negative: that many before the present end) until the stream is closed.

        Each viewer has its own cursor and holds one page at most, so a slow one costs nobody else anything.
        A batch without lines is a heartbeat. Ends when a stream that was being read is deleted.
        """
        with self._database.hints.watch(store.topic(stream_id)) as watch:
            state = await self.state(stream_id)
            at = decide_start(start, state.length)
            silent = timedelta(0)
            while True:
                for batch in await self._page(stream_id, at):
                    yield batch
                    at = batch.first + len(batch.lines)
                    silent = timedelta(0)
                state = await self.state(stream_id)
                if at < state.length:
                    continue
                if state.closed:
                    return
                if not await watch.wait(POLL):
                    silent += POLL
                if silent >= HEARTBEAT:
                    silent = timedelta(0)
                    yield Batch(at, ())

    async def _page(self, stream_id: str, at: int) -> list[Batch]:
        return list(await self._database.read(lambda connection: store.read(connection, stream_id, at)))
