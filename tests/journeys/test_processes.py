"""Servers that are told to end, and several processes on one PostgreSQL."""

import asyncio
import signal
import time
from typing import Any

import asyncpg
import pytest
from tests.journeys.conftest import MakeServer
from tests.support.databases import Databases
from tests.support.processes import Seen, ServerProcess, chat, commands_running, shell, stored_messages, watch
from tests.support.serving import Client
from tests.support.watched import until

from fermata.turns.loop import OUTCOME_UNKNOWN


async def start_sandbox(client: Client, session: dict[str, Any]) -> None:
    answer = await client.post("/api/sandbox", {"sessionId": session["id"], "repoUrl": session["cloneUrl"]})
    assert answer.status == 200, answer.raw


async def test_a_server_told_to_end_in_a_turn_ends_soon_and_its_successor_goes_on(
    make_server: MakeServer,
) -> None:
    server = await make_server(orchestrator="false")
    before = Seen()
    async with server.client() as client:
        session = await client.open()
        await start_sandbox(client, session)
        text = shell("echo begun >> lines; sleep 60.11; echo ended >> lines", "cat lines")
        turn = asyncio.create_task(chat(client, session, text, "asked", before))
        await until(lambda: commands_running("sleep 60.11"))
        told = time.monotonic()
        assert await server.stop() == 0
        assert time.monotonic() - told < 5
        await turn
    assert not before.done
    assert "finish" not in before.types
    server.check_nothing_is_left()
    await server.start()
    async with server.client() as client:
        path = f"/api/chat/{before.run_id}/stream?startIndex={len(before.chunks)}"
        rest = await watch(client, "GET", path)
        assert rest.done
        assert rest.ids[0] == len(before.chunks)
        whole = Seen(chunks=before.chunks + rest.chunks)
        assert OUTCOME_UNKNOWN in [chunk.get("errorText") for chunk in rest.chunks]
        assert tools_of(whole)[1]["output"]["stdout"] == "begun\n"
        assert (await stored_messages(client, session))[-1]["parts"] == whole.message["parts"]


async def test_a_second_server_on_the_same_data_is_told_so(make_server: MakeServer) -> None:
    first = await make_server()
    with pytest.raises(AssertionError, match="Another Fermata server is running on this data directory"):
        await make_server()
    assert first.running()


async def owner_of(url: str, run_id: str) -> str:
    """The worker that holds a run's lease."""
    connection = await asyncpg.connect(url)
    try:
        return str(await connection.fetchval("SELECT lease_owner FROM runs WHERE id = $1", run_id))
    finally:
        await connection.close()


async def test_workers_share_the_turns_take_over_from_the_dead_and_hear_of_a_stop(
    make_server: MakeServer, databases: Databases
) -> None:
    settings = {"database_url": await databases.postgres_url(), "lease": "2s", "orchestrator": "false"}
    url = settings["database_url"]
    # The server has one place for turns, and it is taken: every other turn is a worker's.
    server: ServerProcess = await make_server(runs_at_once="1", **settings)
    workers = {}
    for _ in range(2):
        worker = await make_server(program="worker", **settings)
        workers[worker.sign] = worker
    async with server.client() as client:
        busy, session = await client.open(), await client.open()
        held = Seen()
        holding = asyncio.create_task(chat(client, busy, shell("sleep 60.22"), "held", held))
        await until(lambda: commands_running("sleep 60.22"))
        await start_sandbox(client, session)
        assert server.processes()

        seen = Seen()
        text = shell("echo begun >> lines; sleep 60.33", "cat lines")
        turn = asyncio.create_task(chat(client, session, text, "asked", seen))
        await until(lambda: commands_running("sleep 60.33"))
        owner = await owner_of(url, seen.run_id)
        workers[owner].signal(signal.SIGKILL)
        await workers[owner].ended()
        await turn
        assert seen.done
        assert OUTCOME_UNKNOWN in [chunk.get("errorText") for chunk in seen.chunks]
        assert not commands_running("sleep 60.33")
        assert tools_of(seen)[1]["output"]["stdout"] == "begun\n"
        assert seen.ids == list(range(len(seen.ids)))
        assert (await stored_messages(client, session))[-1]["parts"] == seen.message["parts"]
        await workers.pop(owner).start()

        stopped = Seen()
        turn = asyncio.create_task(chat(client, session, shell("sleep 60.44"), "stopped", stopped))
        await until(lambda: commands_running("sleep 60.44"))
        assert await owner_of(url, stopped.run_id) != await owner_of(url, held.run_id)
        answer = await asyncio.wait_for(client.post(f"/api/chat/{session['chat']['id']}/stop"), 5)
        assert answer.json == {"success": True, "stopped": True}
        await turn
        assert stopped.done
        assert not commands_running("sleep 60.44")
        assert "Cancelled" in [chunk.get("errorText") for chunk in stopped.chunks]
        assert (await client.post(f"/api/chat/{busy['chat']['id']}/stop")).json["stopped"] is True
        await holding
        for one in (busy, session):
            assert (await client.delete(f"/api/sessions/{one['id']}")).status == 200


async def test_two_servers_on_one_database_start_one_sandbox_and_answer_a_message_once(
    make_server: MakeServer, databases: Databases
) -> None:
    settings = {"database_url": await databases.postgres_url(), "lease": "2s", "orchestrator": "true"}
    servers = [await make_server(**settings) for _ in range(2)]
    async with servers[0].client() as one, servers[1].client() as other:
        session = await one.open()
        await asyncio.gather(*(start_sandbox(client, session) for client in (one, other) * 4))
        found = (await other.get(f"/api/sessions/{session['id']}")).json["session"]
        assert (found["lifecycleState"], found["lifecycleVersion"]) == ("active", 1)
        text = shell("echo once >> lines; sleep 0.3", "cat lines")
        seen = await asyncio.gather(*(chat(client, session, text, "asked") for client in (one, other) * 2))
        assert len({viewer.run_id for viewer in seen}) == 1
        assert all(viewer.done and viewer.chunks == seen[0].chunks for viewer in seen)
        assert [part["output"]["stdout"] for part in tools_of(seen[0])] == ["", "once\n"]
        assert (await other.delete(f"/api/sessions/{session['id']}")).status == 200
        await until(lambda: not servers[0].processes())


def tools_of(seen: Seen) -> list[dict[str, Any]]:
    return [part for part in seen.message["parts"] if part["type"] == "tool-bash"]
