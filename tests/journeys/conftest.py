"""Servers as processes of their own, for journeys that end in a kill."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.support.forking import ForkServer
from tests.support.processes import ServerProcess

MakeServer = Callable[..., Awaitable[ServerProcess]]


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
async def make_server(forks: ForkServer) -> AsyncIterator[MakeServer]:
    """Starts servers, each on data of its own unless `home` is given, and ends them after the test.

    What a server leaves behind when it has ended by itself is an error of the test that started it.
    """
    # A short path, on the disk: overlays do not lie on every file system, and sockets need short names.
    directory = Path(tempfile.mkdtemp(prefix="fermata-journey-"))
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, directory, onerror=_make_writable)
        servers: list[ServerProcess] = []
        stack.callback(_check, servers)

        async def make(home: str = "home", **settings: str) -> ServerProcess:
            (directory / home).mkdir(exist_ok=True)
            server = ServerProcess(forks, directory / home, **settings)
            await server.start()
            stack.push_async_callback(_end, server)
            servers.append(server)
            return server

        yield make


async def _end(server: ServerProcess) -> None:
    status = await server.stop()
    assert status == 0, server.log[-4000:]


def _check(servers: list[ServerProcess]) -> None:
    for server in servers:  # only now: those on the same data share a control group
        server.check_nothing_is_left()


def _make_writable(_: object, path: str, __: object) -> None:
    """An overlay's work directory has mode 0000."""
    Path(path).chmod(0o700)
    shutil.rmtree(path)
