"""Kill the server at every commit of every journey, before and after it, and look: `python -m bench.crash`.

Takes some minutes. Ends with the first point after which something was lost, doubled or stuck. The names of
journeys may be given: create_sessions, hibernate, restore, take_turns, wait_in_line.
"""

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.forking import ForkServer
from tests.support.journeys import (
    Journey,
    Point,
    Walk,
    create_sessions,
    every_side,
    hibernate,
    restore,
    take_turns,
    verbs,
    wait_in_line,
)
from tests.support.processes import ServerProcess

WALKS: dict[str, tuple[Walk, list[Point]]] = {
    "create_sessions": (create_sessions, verbs("create")),
    "hibernate": (hibernate, verbs("stop")),
    "restore": (restore, verbs("resume")),
    "take_turns": (take_turns, []),
    "wait_in_line": (wait_in_line, []),
}


def told(journey: Journey, name: str, points: Iterator[Point]) -> Iterator[Point]:
    for counted, number, when in points:
        sys.stdout.write(f"\r{name}: {when} {counted} {number}   ")
        sys.stdout.flush()
        yield counted, number, when


async def walk_all(forks: ForkServer, names: list[str]) -> None:
    for name in names:
        home = Path(tempfile.mkdtemp(prefix="fermata-crash-"))
        walk, further = WALKS[name]
        server = ServerProcess(forks, home, orchestrator="true")
        begun = time.monotonic()
        await server.start()
        journey = Journey(server)
        try:
            await walk(journey, told(journey, name, iter(further)))
            await walk(journey, told(journey, name, every_side(journey)))
            assert await server.stop() == 0
            server.check_nothing_is_left()
        finally:
            await server.stop()
        shutil.rmtree(home, onerror=_make_writable)
        sys.stdout.write(f"\n{name}: {journey.kills} kills in {time.monotonic() - begun:.0f} s\n")


def _make_writable(_: object, path: str, __: object) -> None:
    Path(path).chmod(0o700)
    shutil.rmtree(path)


def main() -> None:
    forks = ForkServer()
    try:
        asyncio.run(walk_all(forks, sys.argv[1:] or list(WALKS)))
    finally:
        forks.close()


if __name__ == "__main__":
    main()
