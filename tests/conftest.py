"""Fixtures for every test: a database of each kind, new for each test."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fermata.kit.database import Database
from tests.support.databases import Databases
from tests.support.serving import Served, serve


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """The servers behind `database`; PostgreSQL starts with the first test that needs it."""
    made = Databases(tmp_path_factory.mktemp("databases"))
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(
    request: pytest.FixtureRequest, databases: Databases, tmp_path: Path
) -> AsyncIterator[Database]:
    """An empty database with the newest schema. The test runs once on SQLite and once on PostgreSQL."""
    async with databases.open(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgresql"])
async def served(
    request: pytest.FixtureRequest, databases: Databases, tmp_path: Path
) -> AsyncIterator[Served]:
    """A whole server on a real port. The test runs once on SQLite and once on PostgreSQL."""
    url = await databases.postgres_url() if request.param == "postgresql" else None
    if url is None:
        await databases.sqlite_file(tmp_path)
    async with serve(tmp_path, database_url=url) as server:
        yield server


@pytest.fixture
async def quick_served(databases: Databases, tmp_path: Path) -> AsyncIterator[Served]:
    """A whole server on SQLite, for what does not depend on the database."""
    await databases.sqlite_file(tmp_path)
    async with serve(tmp_path) as server:
        yield server
