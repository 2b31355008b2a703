"""The tables that rooms describe are the tables that migrations make."""

import importlib
import pkgutil
from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import create_async_engine
from tests.support.databases import Databases

import fermata
from fermata.kit.database import metadata


def import_every_store() -> None:
    for found in pkgutil.walk_packages(fermata.__path__, "fermata."):
        if found.name.rsplit(".", 1)[-1] in ("store", "tables", "idempotency"):
            importlib.import_module(found.name)


def differences(connection: sa.Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    found = compare_metadata(context, metadata)
    # The table of the migrations themselves is nobody's.
    return [difference for difference in found if "alembic_version" not in str(difference)]


async def test_migrations_and_rooms_agree(databases: Databases, tmp_path: Path) -> None:
    import_every_store()
    assert len(metadata.tables) > 10
    sqlite = sa.create_engine(f"sqlite:///{await databases.sqlite_file(tmp_path)}")
    with sqlite.connect() as connection:
        assert differences(connection) == []
    sqlite.dispose()
    url = sa.make_url(await databases.postgres_url()).set(drivername="postgresql+asyncpg")
    postgres = create_async_engine(url)
    async with postgres.connect() as remote:
        assert await remote.run_sync(differences) == []
    await postgres.dispose()


def test_every_reference_to_another_row_is_indexed_for_its_deletion() -> None:
    import_every_store()
    missing = []
    for table in metadata.sorted_tables:
        starts = {next(iter(index.columns)).name for index in table.indexes}
        starts.add(next(iter(table.primary_key.columns)).name)
        starts |= {
            next(iter(constraint.columns)).name
            for constraint in table.constraints
            if isinstance(constraint, sa.UniqueConstraint)
        }
        missing += [
            f"{table.name}.{column.name}"
            for column in table.columns
            if column.foreign_keys and column.name not in starts
        ]
    assert missing == []
