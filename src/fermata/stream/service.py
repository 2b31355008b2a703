"""Reading a stream while it grows and after it has ended."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from fermata.kit.database import Database
from fermata.kit.errors import NotFoundError
from fermata.stream import store
from fermata.stream.model import Batch, Page, StreamState, decide_start
from fermata.stream.tail import Tail

#: Looks again at least this often, should a hint be lost (between processes only).
POLL = timedelta(seconds=1)
#: After this long without a chunk, an empty batch keeps the connection alive: proxies cut a silent stream
#: after about two minutes.
HEARTBEAT = timedelta(seconds=15)


@dataclass(slots=True)
class _Shared:
    tail: Tail
    viewers: int = 0
    listening: ExitStack = field(default_factory=ExitStack)


class StreamService:
    def __init__(self, *, database: Database) -> None:
        self._database = database
        self._shared: dict[str, _Shared] = {}
        #: Set by `close`.
        self.closed = False

    def close(self) -> None:
        """End every reader where it is, so that their connections can be closed. They may come back."""
        self.closed = True
        for shared in self._shared.values():
            shared.tail.wake()

    async def state(self, stream_id: str) -> StreamState:
        """`NotFoundError` when there is no such stream."""
        return await self._database.read(lambda connection: store.get_state(connection, stream_id))

    async def read(self, stream_id: str, start: int = 0) -> AsyncGenerator[Batch, None]:
        """Chunks from index `start` (negative: that many before the present end) until the stream is closed.

        Each viewer has its own cursor and holds one page at most, so a slow one costs nobody else anything.
        A batch without lines is a heartbeat. Also ends when the stream is deleted or this service is closed:
        whoever must know whether it was read to its end asks for its state.
        """
        at = start if start >= 0 else decide_start(start, (await self.state(stream_id)).length)
        now = asyncio.get_running_loop().time
        silent_since = now()
        found = False
        with self._share(stream_id) as tail:
            while not self.closed:
                version, page = await tail.page(at)
                if page is None and not found:
                    raise NotFoundError("Stream not found")
                found = True
                if page is None:
                    return
                if page.batch.lines:
                    yield page.batch
                    at = page.batch.end
                    silent_since = now()
                if page.is_last:
                    return
                if page.has_more:
                    # What was read goes out, and others have their turn, before the next page.
                    await asyncio.sleep(0)
                    continue
                if now() - silent_since >= HEARTBEAT.total_seconds():
                    yield Batch(at, ())
                    silent_since = now()
                await tail.wait(version)

    @contextmanager
    def _share(self, stream_id: str) -> Iterator[Tail]:
        """The stream's tail, which is there as long as somebody views the stream."""
        shared = self._shared.get(stream_id)
        if shared is None:
            shared = self._shared[stream_id] = _Shared(Tail(lambda at: self._look(stream_id, at)))
            listening = shared.tail.listening(self._database.hints, store.topic(stream_id), POLL)
            shared.listening.enter_context(listening)
        shared.viewers += 1
        try:
            yield shared.tail
        finally:
            shared.viewers -= 1
            if shared.viewers == 0:
                del self._shared[stream_id]
                shared.listening.close()

    async def _look(self, stream_id: str, at: int) -> Page | None:
        return await self._database.read(lambda connection: store.find_page(connection, stream_id, at))
