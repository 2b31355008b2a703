"""Reading a stream while it grows and after it has ended."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta

from fermata.kit.database import Database
from fermata.kit.hints import Watch
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
        self._watches: set[Watch] = set()
        #: Set by `close`.
        self.closed = False

    def close(self) -> None:
        """End every reader where it is, so that their connections can be closed. They may come back."""
        self.closed = True
        for watch in self._watches:
            watch.wake()

    async def state(self, stream_id: str) -> StreamState:
        """`NotFoundError` when there is no such stream."""
        return await self._database.read(lambda connection: store.get_state(connection, stream_id))

    async def read(self, stream_id: str, start: int = 0) -> AsyncIterator[Batch]:
        """Chunks from index `start` (negative: that many before the present end) until the stream is closed.

        Each viewer has its own cursor and holds one page at most, so a slow one costs nobody else anything.
        A batch without lines is a heartbeat. Also ends when the stream is deleted or this service is closed:
        whoever must know whether it was read to its end asks for its state.
        """
        state = await self.state(stream_id)
        at = decide_start(start, state.length)
        silent = timedelta(0)
        with self._watch(stream_id) as watch:
            while not self.closed:
                for batch in await self._page(stream_id, at):
                    yield batch
                    at = batch.first + len(batch.lines)
                    silent = timedelta(0)
                found = await self._find_state(stream_id)
                if found is None or (found.closed and at >= found.length):
                    return
                if at < found.length:
                    continue
                if not await watch.wait(POLL):
                    silent += POLL
                if silent >= HEARTBEAT:
                    silent = timedelta(0)
                    yield Batch(at, ())

    @contextmanager
    def _watch(self, stream_id: str) -> Iterator[Watch]:
        with self._database.hints.watch(store.topic(stream_id)) as watch:
            self._watches.add(watch)
            try:
                yield watch
            finally:
                self._watches.discard(watch)

    async def _find_state(self, stream_id: str) -> StreamState | None:
        return await self._database.read(lambda connection: store.find_state(connection, stream_id))

    async def _page(self, stream_id: str, at: int) -> list[Batch]:
        return list(await self._database.read(lambda connection: store.read(connection, stream_id, at)))
