"""A provider that passes everything on, remembers what was asked, and can be told to wait or to fail."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fermata.sandboxes.contract import SandboxProvider
from fermata.testing.scripted_llm import Gate


class WatchedProvider:
    def __init__(self, inner: SandboxProvider) -> None:
        self.inner = inner
        #: (verb, name of the sandbox), in the order of their beginning.
        self.calls: list[tuple[str, str]] = []
        self._gates: dict[str, Gate] = {}
        self._errors: dict[str, Exception] = {}

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self.inner, verb)
        if verb not in ("create", "resume", "stop", "destroy", "connect"):
            return found

        async def call(target: Any) -> Any:
            self.calls.append((verb, target if isinstance(target, str) else target.name))
            if verb in self._errors:
                raise self._errors[verb]
            if verb in self._gates:
                await self._gates[verb].wait()
            return await found(target)

        return call

    def count(self, verb: str, name: str) -> int:
        return self.calls.count((verb, name))

    @contextmanager
    def holding(self, verb: str) -> Iterator[Gate]:
        """Calls of this verb wait at the gate until the block ends, or it is opened."""
        gate = self._gates[verb] = Gate()
        try:
            yield gate
        finally:
            del self._gates[verb]
            gate.open()

    @contextmanager
    def failing(self, verb: str, error: Exception) -> Iterator[None]:
        self._errors[verb] = error
        try:
            yield
        finally:
            del self._errors[verb]


async def until(condition: Any, within: float = 10) -> None:
    """Wait until an (async) condition holds."""
    async with asyncio.timeout(within):
        while True:
            found = condition()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.01)
