"""Wake-up calls: "something about this topic has changed, look again". A hint is never the truth.

Within a process a hint is a callback. On PostgreSQL it also travels by NOTIFY to the other processes. Hints
may be late, doubled or lost; whoever waits for one also looks by itself from time to time.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta


class Hints:
    def __init__(self) -> None:
        self._listeners: dict[str, set[Callable[[], None]]] = {}

    def publish(self, topic: str) -> None:
        """Call from the event loop's thread only."""
        for listener in tuple(self._listeners.get(topic, ())):
            listener()

    @contextmanager
    def listen(self, topic: str, listener: Callable[[], None]) -> Iterator[None]:
        listeners = self._listeners.setdefault(topic, set())
        listeners.add(listener)
        try:
            yield
        finally:
            listeners.discard(listener)
            if not listeners:
                self._listeners.pop(topic, None)

    @contextmanager
    def watch(self, topic: str) -> Iterator["Watch"]:
        watch = Watch()
        with self.listen(topic, watch.wake):
            yield watch


class Watch:
    """Remembers hints between waits, so that one that comes while nobody waits is not lost."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        self._event.set()

    async def wait(self, at_most: timedelta) -> bool:
        """True when a hint came since the last wait, False when `at_most` has passed without one."""
        # Not `wait_for`: on Python 3.11 it swallows a cancellation that comes together with the event.
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most.total_seconds()):
                await self._event.wait()
        hinted = self._event.is_set()
        self._event.clear()
        return hinted
