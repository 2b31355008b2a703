"""A database that goes away is told as 503, and comes back without a restart."""

import asyncio

import asyncpg
import pytest
from tests.support.databases import Databases
from tests.support.serving import Served

from fermata.kit.database import ping
from fermata.kit.errors import UnavailableError
from fermata.kit.postgres import PostgresDatabase


@pytest.mark.parametrize("served", ["postgresql"], indirect=True)
async def test_broken_connections_cost_a_503_at_most(served: Served, databases: Databases) -> None:
    ada = await served.client()
    await asyncio.gather(*(ada.open() for _ in range(8)))
    url = served.fermata.settings.database_url
    outside = await asyncpg.connect(url)
    await outside.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    )
    await outside.close()
    answers = await asyncio.gather(*(ada.get("/api/sessions") for _ in range(12)))
    assert {answer.status for answer in answers} <= {200, 503}
    assert 503 in {answer.status for answer in answers}, "connections were broken"
    for answer in answers:
        if answer.status == 503:
            assert answer.error == "The database does not answer."
            assert int(answer.headers["retry-after"]) > 0
    assert (await ada.get("/api/sessions")).status == 200
    assert (await ada.post("/api/sessions")).status == 200
    assert (await served.nobody().get("/healthz")).status == 200


async def test_a_database_that_is_not_there_is_unavailable() -> None:
    database = PostgresDatabase("postgresql://nobody@127.0.0.1:1/none", pool_size=1)
    for verb in (database.read, database.write):
        with pytest.raises(UnavailableError):
            await verb(ping)
    await database.close()
