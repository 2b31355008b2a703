"""A new session's sandbox starts without being asked for."""

import asyncio
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from tests.support.databases import Databases
from tests.support.serving import Client, serve

from fermata.kit.database import Statement, is_any
from fermata.runs.store import runs
from fermata.sandboxes.store import sandboxes

LIVE = Statement(
    sa.select(runs.c.id).where(runs.c.ended_at.is_(None), is_any(runs.c.kind, ("provision", "destroy")))
)
ROWS = Statement(sa.select(sandboxes.c.id))


async def until_active(client: Client, session_id: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            session: dict[str, Any] = (await client.get(f"/api/sessions/{session_id}")).json["session"]
            if session["lifecycleState"] == "active":
                return session
            await asyncio.sleep(0.02)


async def test_a_session_becomes_active_by_itself_and_once(databases: Databases, tmp_path: Path) -> None:
    await databases.sqlite_file(tmp_path)
    async with serve(tmp_path, orchestrator="true") as served:
        ada = await served.client()
        key = {"Idempotency-Key": "k"}
        answers = await asyncio.gather(*(ada.post("/api/sessions", headers=key) for _ in range(5)))
        assert len({answer.raw for answer in answers}) == 1
        opened = answers[0].json["session"]
        assert opened["lifecycleState"] == "provisioning"
        session = await until_active(ada, opened["id"])
        assert session["sandboxState"]["sandboxName"] == f"session-{opened['id']}"
        assert session["lifecycleVersion"] == 1
        asked = await ada.post("/api/sandbox", {"repoUrl": opened["cloneUrl"], "sessionId": opened["id"]})
        assert asked.status == 200, "asking again finds the same machine"
        assert (await until_active(ada, opened["id"]))["lifecycleVersion"] == 1


async def test_a_session_deleted_while_its_machine_is_made_leaves_no_machine(
    databases: Databases, tmp_path: Path
) -> None:
    await databases.sqlite_file(tmp_path)
    async with serve(tmp_path, orchestrator="true") as served:
        ada = await served.client()
        for pause in (0, 0.01, 0.05, 0.2):
            session = await ada.open()
            await asyncio.sleep(pause)
            assert (await ada.delete(f"/api/sessions/{session['id']}")).status == 200
        async with asyncio.timeout(20):
            while await served.fermata.database.read(lambda connection: connection.row(LIVE)):
                await asyncio.sleep(0.05)
        machines = tmp_path / "sandboxes" / "sandboxes"
        assert list(machines.iterdir()) == []
        assert await served.fermata.database.read(lambda connection: connection.rows(ROWS)) == []
