"""Bring a database to the newest migration."""

from pathlib import Path

import sqlalchemy as sa

#: Any fixed number: PostgreSQL's advisory lock that lets one process migrate at a time.
_LOCK = 7_306_140_021


async def migrate(url: str) -> None:
    """Run what is missing, in one transaction. Two processes at once: the second waits, then finds nothing.

    `url` is `sqlite:///path` or `postgresql://...`. SQLite blocks the event loop: call this before serving.
    """
    if url.startswith("sqlite"):
        engine = sa.create_engine(url, connect_args={"timeout": 60})
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            _upgrade(connection)
            connection.commit()
        engine.dispose()
        return
    from sqlalchemy.ext.asyncio import create_async_engine

    remote = create_async_engine(sa.make_url(url).set(drivername="postgresql+asyncpg"))
    async with remote.begin() as session:
        await session.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        await session.run_sync(_upgrade)
    await remote.dispose()


def _upgrade(connection: sa.Connection) -> None:
    if _is_newest(connection):
        return
    from alembic import command  # as slow to import as to run, and nearly every start needs neither
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _is_newest(connection: sa.Connection) -> bool:
    """Whether the last migration has been run: files are named by their revision."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return False
    newest = max(path.name for path in (Path(__file__).parent / "versions").glob("[0-9]*.py"))
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return newest.startswith(f"{found}_")
