"""`fermata serve`, which kills itself at an exact point: before or after the n-th commit or provider call.

Run as a program with the settings in the environment. It counts from the moment at which the file
`crash.json` appears in the data directory: `{"counted": "write" or a name of a provider's verb,
"at": 1, 2, ..., "when": "before" or "after"}`. What it has done since is written to `crash.log`, a line each.
"""

import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from fermata.edges.http.server import serve
from fermata.kit.database import Connection, Database
from fermata.kit.log import configure_logging
from fermata.kit.settings import load_settings
from fermata.sandboxes.contract import ProviderReport, SandboxProvider

T = TypeVar("T")

CRASH = "crash.json"
LOG = "crash.log"


class Bomb:
    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / CRASH
        self._log = data_dir / LOG
        self._armed: dict[str, Any] | None = None
        self._counts: dict[str, int] = {}

    async def around(self, counted: str, work: Awaitable[T]) -> T:
        if not self._path.exists():
            self._armed = None
            return await work
        if self._armed is None:
            self._armed = json.loads(self._path.read_text())
            self._counts = {}
        number = self._counts[counted] = self._counts.get(counted, 0) + 1
        self._maybe(counted, number, "before")
        result = await work
        self._maybe(counted, number, "after")
        return result

    def _maybe(self, counted: str, number: int, when: str) -> None:
        with self._log.open("a") as log:
            log.write(f"{when} {counted} {number}\n")
        armed = self._armed
        if armed is not None and (armed["counted"], armed["at"], armed["when"]) == (counted, number, when):
            os.kill(os.getpid(), signal.SIGKILL)


class CrashingDatabase:
    def __init__(self, inner: Database, bomb: Bomb) -> None:
        self._inner = inner
        self._bomb = bomb
        self.hints = inner.hints
        self.dialect_name = inner.dialect_name

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self._inner.read(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        return await self._bomb.around("write", self._inner.write(work))

    async def close(self) -> None:
        await self._inner.close()


class CrashingProvider:
    """Passes everything on; verbs that change a sandbox are counted."""

    def __init__(self, inner: SandboxProvider, bomb: Bomb) -> None:
        self._inner = inner
        self._bomb = bomb

    async def open(self) -> ProviderReport:
        return await self._inner.open()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in ("create", "resume", "stop", "destroy"):
            return found
        return lambda *args: self._bomb.around(name, found(*args))


def main() -> None:
    settings = load_settings(os.environ)
    configure_logging(level=settings.log_level)
    bomb = Bomb(settings.data_dir)
    serve(
        settings,
        around_database=lambda inner: CrashingDatabase(inner, bomb),
        around_provider=lambda inner: CrashingProvider(inner, bomb),
    )


if __name__ == "__main__":
    sys.exit(main())
