"""Transactions on both databases: whole or not at all, one after the other, hints only after the commit."""

import asyncio
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import bindparam
from tests.support.databases import Databases

from fermata.accounts.store import accounts
from fermata.kit.database import Connection, Database, Statement, insert_or_ignore, upsert
from fermata.kit.errors import UnavailableError
from fermata.kit.sqlite import GROUP, SqliteDatabase

INSERT = insert_or_ignore(accounts)
UPSERT = upsert(accounts, key=["id"], values=["name"])
NAME = Statement(sa.select(accounts.c.name).where(accounts.c.id == bindparam("id")))
COUNT = Statement(sa.select(sa.func.count()).select_from(accounts))
LONGER = Statement(
    sa.update(accounts)
    .values(name=accounts.c.name + bindparam("more"))
    .where(accounts.c.id == bindparam("key"))
)


class BrokenError(Exception):
    pass


def insert(connection: Connection, account_id: str, name: str = "") -> int:
    return connection.run(INSERT, id=account_id, kind="person", name=name, created_at=0)


async def count(database: Database) -> int:
    row = await database.read(lambda connection: connection.row(COUNT))
    assert row is not None
    return int(row[0])


async def test_nothing_of_a_failed_transaction_remains(database: Database) -> None:
    def work(connection: Connection) -> None:
        insert(connection, "a")
        connection.hint("topic")
        raise BrokenError

    with database.hints.watch("topic") as watch:
        with pytest.raises(BrokenError):
            await database.write(work)
        assert not await watch.wait(timedelta(milliseconds=20))
    assert await count(database) == 0


async def test_a_failure_takes_nothing_with_it_that_was_written_at_the_same_time(database: Database) -> None:
    def work(connection: Connection, number: int) -> int:
        insert(connection, f"account-{number}")
        if number % 3 == 0:
            raise BrokenError
        return number

    tasks = [
        database.write(lambda connection, number=number: work(connection, number)) for number in range(30)
    ]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [BrokenError if n % 3 == 0 else int for n in range(30)]
    assert await count(database) == 20


async def test_writers_of_one_row_do_not_lose_each_others_change(database: Database) -> None:
    await database.write(lambda connection: insert(connection, "a"))
    write = [database.write(lambda found: found.run(LONGER, key="a", more="x")) for _ in range(50)]
    assert await asyncio.gather(*write) == [1] * 50
    row = await database.read(lambda connection: connection.row(NAME, id="a"))
    assert row is not None
    assert row[0] == "x" * 50


async def test_a_hint_comes_after_the_commit_that_it_tells_of(database: Database) -> None:
    def work(connection: Connection) -> None:
        connection.hint("topic")
        insert(connection, "a")

    with database.hints.watch("topic") as watch:
        await asyncio.sleep(0.05)  # PostgreSQL's listener connects in the background
        await database.write(work)
        assert await watch.wait(timedelta(seconds=5))
    assert await count(database) == 1


async def test_the_first_of_two_inserts_of_one_key_wins_and_an_upsert_replaces(database: Database) -> None:
    def work(connection: Connection) -> tuple[int, int]:
        return insert(connection, "a", "first"), insert(connection, "a", "second")

    assert await database.write(work) == (1, 0)
    await database.write(lambda found: found.run(UPSERT, id="a", kind="x", name="third", created_at=1))
    row = await database.read(lambda connection: connection.row(NAME, id="a"))
    assert row is not None
    assert row[0] == "third"


async def test_a_cancelled_caller_does_not_undo_the_commit(databases: Databases, tmp_path: Path) -> None:
    database = SqliteDatabase(await databases.sqlite_file(tmp_path))
    begun, go_on = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        begun.set()
        go_on.wait(5)
        insert(connection, "a")

    task = asyncio.create_task(database.write(slow))
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await database.write(lambda connection: None)
    assert await count(database) == 1
    await database.close()


async def test_writes_are_made_in_the_order_in_which_they_were_asked_for(
    databases: Databases, tmp_path: Path
) -> None:
    database = SqliteDatabase(await databases.sqlite_file(tmp_path))
    held = threading.Event()
    order: list[int] = []
    first = asyncio.create_task(database.write(lambda connection: held.wait(5)))
    await asyncio.sleep(0)
    many = [
        asyncio.create_task(database.write(lambda connection, number=number: order.append(number)))
        for number in range(GROUP * 2)
    ]
    await asyncio.sleep(0)
    held.set()
    await asyncio.gather(first, *many)
    assert order == sorted(order)
    await database.close()


async def test_a_closed_database_finishes_what_was_asked_and_refuses_the_rest(
    databases: Databases, tmp_path: Path
) -> None:
    path = await databases.sqlite_file(tmp_path)
    database = SqliteDatabase(path)
    asked = [
        asyncio.create_task(database.write(lambda connection, n=n: insert(connection, str(n))))
        for n in range(10)
    ]
    await asyncio.sleep(0)
    await database.close()
    await database.close()
    assert await asyncio.gather(*asked) == [1] * 10
    with pytest.raises(UnavailableError):
        await database.write(lambda connection: None)
    again = SqliteDatabase(path)
    assert await count(again) == 10
    await again.close()
