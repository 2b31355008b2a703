"""Waiting for a model or a tool, with a stop that takes effect at once."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

from fermata.turns.contract import Llm
from fermata.turns.model import ModelCall, ModelEvent

T = TypeVar("T")

#: Events held for a slow journal; then the model has to wait.
BUFFER_LIMIT = 512


class StoppedError(Exception):
    """Somebody asked the turn to stop. What was under way has ended."""


async def run_or_stop(work: Coroutine[Any, Any, T], stopping: asyncio.Event) -> T:
    """The result of `work`. When `stopping` is set first, or the caller is cancelled, `work` is cancelled and
    awaited to its end; a result that it still gives counts when the reason was a stop. After a stop it is not
    begun at all."""
    if stopping.is_set():
        work.close()
        raise StoppedError
    task = asyncio.create_task(work)
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if task.cancelled():
            raise StoppedError if stopping.is_set() else RuntimeError("the work cancelled itself")
        return task.result()
    finally:
        await end_tasks(task, stop)


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until all have ended, even when the waiting itself is cancelled."""
    for task in tasks:
        task.cancel()
    cancelled: asyncio.CancelledError | None = None
    while waiting := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(waiting)
        except asyncio.CancelledError as error:
            cancelled = error
    for task in tasks:
        if not task.cancelled():
            task.exception()
    if cancelled:
        raise cancelled


class EventReader:
    """Reads the events of one model call in a task of its own, so that the model goes on while chunks are
    written. Leaving the block ends the call."""

    def __init__(self, llm: Llm, call: ModelCall, stopping: asyncio.Event) -> None:
        self._llm, self._call, self._stopping = llm, call, stopping
        self._events: list[ModelEvent] = []
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()

    async def __aenter__(self) -> "EventReader":
        self._reading = asyncio.create_task(self._read())
        self._reading.add_done_callback(lambda _: self._arrived.set())
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await end_tasks(self._watching, self._reading)

    async def _read(self) -> None:
        async with self._llm.stream(self._call) as events:
            async for event in events:
                while len(self._events) >= BUFFER_LIMIT:
                    self._room.clear()
                    await self._room.wait()
                self._events.append(event)
                self._arrived.set()

    async def _watch(self) -> None:
        await self._stopping.wait()
        self._reading.cancel()

    async def batch(self) -> list[ModelEvent]:
        """Every event that has arrived, at least one; none once the call has ended.

        Raises what ended the call early: the model's error, or `StoppedError`."""
        while not self._events and not self._reading.done():
            self._arrived.clear()
            await self._arrived.wait()
        events, self._events = self._events, []
        self._room.set()
        if not events:
            if self._stopping.is_set() and (self._reading.cancelled() or self._reading.exception()):
                raise StoppedError
            if self._reading.cancelled():
                raise RuntimeError("the model call cancelled itself")
            self._reading.result()
        return events

    async def pause(self, seconds: float) -> None:
        """Let more events arrive, but not longer than the call lasts."""
        await asyncio.wait({self._reading}, timeout=seconds)
