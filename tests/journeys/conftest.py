"""Servers as processes of their own, for journeys that end in a kill."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.support.databases import Databases
from tests.support.forking import ForkServer
from tests.support.places import Place
from tests.support.processes import ServerProcess
from tests.support.serving import serve
from tests.support.watched import WatchedProvider

from fermata.sandboxes.contract import SandboxProvider

MakeServer = Callable[..., Awaitable[ServerProcess]]
MakePlace = Callable[..., Awaitable[Place]]


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


@pytest.fixture
async def make_place(databases: Databases, tmp_path: Path) -> AsyncIterator[MakePlace]:
    """Makes one `Place`, on SQLite unless `kind` says otherwise."""
    async with AsyncExitStack() as stack:

        async def make(kind: str = "sqlite", **settings: str) -> Place:
            url = await databases.postgres_url() if kind == "postgresql" else None
            if url is None:
                await databases.sqlite_file(tmp_path)
            providers: list[WatchedProvider] = []

            def around(inner: SandboxProvider) -> SandboxProvider:
                providers.append(WatchedProvider(inner))
                return providers[0]

            served = await stack.enter_async_context(
                serve(tmp_path, database_url=url, around_provider=around, **settings)
            )
            return Place(served, providers[0], await served.client())

        yield make


@pytest.fixture(params=["sqlite", "postgresql"])
async def place(request: pytest.FixtureRequest, make_place: MakePlace) -> Place:
    return await make_place(request.param)
