"""PostgreSQL through SQLAlchemy's asyncpg engine, for many processes on one database.

A transaction runs at READ COMMITTED; every decision is a guarded UPDATE or holds a row lock, so that is
enough. Deadlocks and serialization failures are run again a few times. Hints travel by NOTIFY inside the
transaction, so they arrive only if it was committed.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import asyncpg
import sqlalchemy as sa
import structlog
from sqlalchemy.dialects.postgresql import asyncpg as asyncpg_dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine

from fermata.kit.database import Row, Statement
from fermata.kit.errors import UnavailableError
from fermata.kit.hints import Hints

T = TypeVar("T")

CHANNEL = "fermata_hints"
ATTEMPTS = 5
#: https://www.postgresql.org/docs/current/errcodes-appendix.html
_RETRIED = {"40001", "40P01"}

_DIALECT: sa.Dialect = asyncpg_dialect.dialect()  # type: ignore[no-untyped-call]
_NOTIFY = Statement(sa.select(sa.func.pg_notify(CHANNEL, sa.bindparam("topic", type_=sa.Text))))

log = structlog.get_logger()


class PostgresConnection:
    dialect_name = "postgresql"

    def __init__(self, inner: sa.Connection) -> None:
        self._inner = inner

    def _execute(self, statement: Statement, params: dict[str, Any]) -> sa.CursorResult[Any]:
        sql, values = statement.for_dialect(_DIALECT, params)
        return self._inner.exec_driver_sql(sql, values)

    def row(self, statement: Statement, /, **params: Any) -> Row | None:
        return self._execute(statement, params).first()

    def rows(self, statement: Statement, /, **params: Any) -> Sequence[Row]:
        return self._execute(statement, params).all()

    def run(self, statement: Statement, /, **params: Any) -> int:
        return self._execute(statement, params).rowcount

    def hint(self, topic: str) -> None:
        self.row(_NOTIFY, topic=topic)


_UNREACHABLE = (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError, PoolTimeoutError)


@contextmanager
def _reachable() -> Iterator[None]:
    """A server that is down, or a connection that broke, as `UnavailableError`. Whether a write that was
    being committed took place is then not known."""
    try:
        yield
    except _UNREACHABLE as error:
        raise UnavailableError("The database does not answer.") from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise UnavailableError("The database does not answer.") from error


class PostgresDatabase:
    dialect_name = "postgresql"

    def __init__(self, url: str, *, pool_size: int) -> None:
        """`url` as libpq writes it: `postgresql://user:password@host:port/name`."""
        self.hints = Hints()
        self._url = url
        self._engine = create_async_engine(
            sa.make_url(url).set(drivername="postgresql+asyncpg"), pool_size=pool_size, max_overflow=0
        )
        self._listener: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._listener = asyncio.create_task(self._listen(), name="postgres-hints")

    async def read(self, work: Callable[[Any], T]) -> T:
        with _reachable():
            async with self._engine.connect() as connection:
                return await connection.run_sync(lambda inner: work(PostgresConnection(inner)))

    async def write(self, work: Callable[[Any], T]) -> T:
        for attempt in range(ATTEMPTS):
            try:
                with _reachable():
                    async with self._engine.begin() as connection:
                        return await connection.run_sync(lambda inner: work(PostgresConnection(inner)))
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in _RETRIED or attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.01 * 2**attempt)
        raise AssertionError("unreachable")

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
            self._listener = None
        await self._engine.dispose()

    async def _listen(self) -> None:
        """Hold one connection that listens, and make it anew when it breaks."""
        while True:
            try:
                connection = await asyncpg.connect(self._url)
                try:
                    ended = asyncio.Event()
                    connection.add_termination_listener(lambda _connection, ended=ended: ended.set())
                    await connection.add_listener(CHANNEL, self._heard)
                    await ended.wait()
                finally:
                    await connection.close(timeout=2)
            except (OSError, asyncpg.PostgresError, TimeoutError) as error:
                log.warning("database hints interrupted", error=str(error))
            await asyncio.sleep(1)

    def _heard(self, _connection: Any, _pid: int, _channel: str, topic: Any) -> None:
        self.hints.publish(str(topic))
