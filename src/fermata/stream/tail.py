"""What the viewers of one stream in this process share: its hints, its newest pages, one look for all."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from fermata.kit.hints import Hints
from fermata.stream.model import Page

#: Pages that are kept for those who come to the same place a little later.
KEPT = 4


class Tail:
    """A page with chunks is right for ever, because a stream only grows at its end. One without is right
    until the next hint, or until it is time to look again all the same."""

    def __init__(self, look: Callable[[int], Awaitable[Page | None]]) -> None:
        """`look` reads a page from an index on; None when there is no such stream any more."""
        self._look = look
        #: By the index asked for: at which version it was read, and what was found.
        self._pages: dict[int, tuple[int, Page | None]] = {}
        self._reading = asyncio.Lock()
        self._news = asyncio.Event()
        self.version = 0

    def wake(self) -> None:
        """Something may have changed: everyone looks again."""
        self.version += 1
        self._news.set()
        # Whoever waited is on the way; whoever comes from here on waits for the next time.
        self._news.clear()

    async def wait(self, seen: int) -> None:
        """Until something may have changed since version `seen`."""
        if self.version == seen:
            await self._news.wait()

    async def page(self, at: int) -> tuple[int, Page | None]:
        """The page at an index, and the version as of which it is known."""
        # Only one looks; the others then find what it has found.
        async with self._reading:
            known = self._pages.get(at)
            if known is not None and (known[0] == self.version or (known[1] and known[1].batch.lines)):
                return known
            version = self.version
            found = self._pages[at] = (version, await self._look(at))
            if len(self._pages) > KEPT:
                del self._pages[next(iter(self._pages))]
            return found

    @contextmanager
    def listening(self, hints: Hints, topic: str, poll: timedelta) -> Iterator[None]:
        """Wake everyone at each hint, and at least every `poll`, should a hint be lost between processes."""
        loop, seconds = asyncio.get_running_loop(), poll.total_seconds()

        def again() -> None:
            self.wake()
            timers[0] = loop.call_later(seconds, again)

        timers = [loop.call_later(seconds, again)]
        try:
            with hints.listen(topic, self.wake):
                yield
        finally:
            timers[0].cancel()
