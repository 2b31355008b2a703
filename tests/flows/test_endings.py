"""How turns, starts and stops end when nobody can finish them."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.processes import chat, stored_messages
from tests.support.serving import Served
from tests.support.watched import until

from fermata.kit.database import Connection
from fermata.runs import store as runs
from fermata.runs.model import Run
from fermata.sandboxes import store as sandboxes
from fermata.sandboxes.model import LifecycleState


async def die_often(served: Served, kind: str, key: str, times: int) -> Run:
    """Workers that claim a run one after the other and are never heard of again."""
    at = datetime.now(UTC) + timedelta(hours=1)

    def claim(connection: Connection) -> Run:
        live = runs.find_live(connection, kind, key)
        assert live is not None
        for number in range(times):
            claimed = runs.claim_due(
                connection, kind=kind, owner=f"dead-{number}", now=at, lease=-timedelta(hours=2), count=9
            )
            assert live.id in [run.id for run in claimed]
        return live

    return await served.fermata.database.write(claim)


async def given_up(served: Served, run: Run) -> Run:
    await served.fermata.worker.open(alone=False)
    return await served.fermata.runs.wait(run.id, timedelta(seconds=10))


async def test_a_turn_whose_workers_keep_dying_ends_with_words_and_frees_its_chat(served: Served) -> None:
    client = await served.client()
    session = await client.open()
    await served.fermata.worker.close()  # nobody begins it
    chat_id = session["chat"]["id"]
    turn = asyncio.create_task(chat(client, session, "hello", "m1"))

    async def is_accepted() -> bool:
        live = await served.fermata.database.read(lambda found: runs.find_live(found, "turn", chat_id))
        return live is not None

    await until(is_accepted)
    before = datetime.now(UTC)
    ended = await given_up(served, await die_often(served, "turn", chat_id, 5))
    seen = await turn
    assert ended.state == "failed"
    assert seen.done
    assert (seen.types[0], seen.types[-2:]) == ("start", ["error", "finish"])
    assert "each time the server working on it died" in seen.chunks[-2]["errorText"]
    assert (await stored_messages(client, session))[-1] == seen.message
    [found] = (await client.get(f"/api/sessions/{session['id']}/chats")).json["chats"]
    assert found["isStreaming"] is False
    assert datetime.fromisoformat(found["updatedAt"]) >= before - timedelta(seconds=1)


async def test_a_start_whose_workers_keep_dying_fails_with_words_and_can_be_repeated(served: Served) -> None:
    client = await served.client()
    session = await client.open()
    sandbox_id = f"session-{session['id']}"
    await served.fermata.worker.close()
    await served.fermata.runs.submit("provision", sandbox_id, {})
    before = datetime.now(UTC)
    await given_up(served, await die_often(served, "provision", sandbox_id, 3))
    record = await served.fermata.database.read(lambda connection: sandboxes.get(connection, sandbox_id))
    assert record.state is LifecycleState.FAILED
    assert record.error == "This was begun several times, and each time the server working on it died."
    assert record.updated_at >= before
    body: dict[str, Any] = {"sessionId": session["id"], "repoUrl": session["cloneUrl"]}
    assert (await client.post("/api/sandbox", body)).status == 200


async def test_a_stop_whose_workers_keep_dying_fails_with_words_and_can_be_repeated(served: Served) -> None:
    client = await served.client()
    session = await client.open()
    sandbox_id = f"session-{session['id']}"
    body: dict[str, Any] = {"sessionId": session["id"], "repoUrl": session["cloneUrl"]}
    assert (await client.post("/api/sandbox", body)).status == 200
    await served.fermata.worker.close()
    await served.fermata.runs.submit("hibernate", sandbox_id, {"reason": "pause"})

    def begin(connection: Connection) -> None:
        record = sandboxes.get(connection, sandbox_id)
        sandboxes.move(
            connection, record, LifecycleState.HIBERNATING, reason="pause", actor="t", at=datetime.now(UTC)
        )

    await served.fermata.database.write(begin)
    await given_up(served, await die_often(served, "hibernate", sandbox_id, 5))
    record = await served.fermata.database.read(lambda connection: sandboxes.get(connection, sandbox_id))
    assert record.state is LifecycleState.FAILED
    paused = await client.post("/api/sandbox/snapshot", {"sessionId": session["id"]})
    assert paused.status == 200
    record = await served.fermata.database.read(lambda connection: sandboxes.get(connection, sandbox_id))
    assert (record.state, record.error) == (LifecycleState.HIBERNATED, None)
