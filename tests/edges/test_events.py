"""The feed of events, over real HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import sqlalchemy as sa
from tests.support.databases import Databases
from tests.support.held_llm import follow, run_of, send
from tests.support.serving import Client, Served, serve

from fermata.events import store
from fermata.events.model import KEPT_FOR, PRUNED_AFTER, Cursor, Position, parse_cursor
from fermata.kit.database import Connection, Statement

ALL = Statement(sa.select(store.events.c.id, store.events.c.kind))


class Feed:
    """What one reader sees."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.cursor = ""

    async def next(self) -> dict[str, Any]:
        """The next event."""
        while True:
            async with asyncio.timeout(10):
                block = (await self._response.content.readuntil(b"\n\n")).decode().strip()
            fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
            self.cursor = fields["id"]
            if "data" in fields:
                event: dict[str, Any] = json.loads(fields["data"])
                assert event["type"] == fields["event"]
                return event

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """Events up to the first of this kind."""
        seen = [await self.next()]
        while seen[-1]["type"] != kind:
            seen.append(await self.next())
        return seen

    async def ended(self) -> None:
        async with asyncio.timeout(10):
            assert await self._response.content.read() == b""


@asynccontextmanager
async def feed_of(client: Client, cursor: str | None = None) -> AsyncIterator[Feed]:
    headers = {"x-api-key": client.key or ""} | ({"last-event-id": cursor} if cursor else {})
    async with client.http.get(f"{client.url}/api/events", headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        yield Feed(response)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


async def test_a_session_is_told_from_its_beginning_to_its_end(served: Served) -> None:
    ada = await served.client()
    async with feed_of(ada) as feed:
        assert await feed.next() == {"type": "ready"}
        session = await ada.open()
        chat = session["chat"]["id"]
        created = await feed.next()
        assert created["type"] == "session.created"
        assert (created["sessionId"], created["chatId"]) == (session["id"], chat)
        run = run_of(await send(ada, session, "hello"))
        await follow(ada, run)
        started, ended = await feed.next(), await feed.next()
        assert (started["type"], started["runId"], started["messageId"]) == ("run.started", run, "hello")
        assert (ended["type"], ended["runId"], ended["status"]) == ("run.ended", run, "completed")
        path = f"/api/sessions/{session['id']}"
        await ada.post(f"{path}/chats/{chat}/read")
        await ada.patch(path, {"title": "Song"})
        other = (await ada.post(f"{path}/chats")).json["chat"]["id"]
        await ada.patch(f"{path}/chats/{other}", {"title": "B"})
        await ada.delete(f"{path}/chats/{other}")
        await ada.delete(f"{path}/chats/{chat}/messages/hello")
        await ada.delete(path)
        assert kinds(await feed.until("session.deleted")) == [
            "chat.read", "session.updated", "chat.created", "chat.updated", "chat.deleted",
            "message.deleted", "session.deleted",
        ]  # fmt: skip


async def test_every_move_of_a_machine_is_told(served: Served) -> None:
    ada = await served.client()
    async with feed_of(ada) as feed:
        session = await ada.open()
        await ada.post("/api/sandbox", {"sessionId": session["id"], "repoUrl": session["cloneUrl"]})
        await ada.post("/api/sandbox/snapshot", {"sessionId": session["id"]})
        await feed.until("session.created")
        moves = [await feed.next() for _ in range(3)]
        assert kinds(moves) == ["sandbox.moved"] * 3
        assert [(move["state"], move["version"]) for move in moves] == [
            ("active", 1), ("hibernating", 2), ("hibernated", 3),
        ]  # fmt: skip


async def test_a_reader_who_comes_back_misses_nothing_and_sees_nothing_twice(served: Served) -> None:
    ada = await served.client()
    async with feed_of(ada) as feed:
        await feed.next()
        cursor = feed.cursor
    ids = [(await ada.open())["id"] for _ in range(6)]
    seen: list[str] = []
    while len(seen) < len(ids):
        async with feed_of(ada, cursor) as feed:
            assert (await feed.next())["type"] == "ready"
            for _ in range(2):
                seen.append((await feed.next())["sessionId"])
                cursor = feed.cursor
    assert seen == ids


async def test_events_that_are_written_at_once_all_reach_everybody_in_one_order(served: Served) -> None:
    ada = await served.client()
    async with feed_of(ada) as first, feed_of(ada) as second:
        for feed in (first, second):
            assert await feed.next() == {"type": "ready"}
        opened = await asyncio.gather(*(ada.open() for _ in range(20)))
        orders = []
        for feed in (first, second):
            orders.append([(await feed.next())["sessionId"] for _ in range(20)])
    assert orders[0] == orders[1]
    assert set(orders[0]) == {session["id"] for session in opened}


async def test_nobody_hears_of_what_they_may_not_use(served: Served) -> None:
    ada, eve = await served.client(), await served.client("Eve")
    async with feed_of(eve) as feed:
        session = await ada.open()
        await ada.post("/api/sandbox", {"sessionId": session["id"], "repoUrl": session["cloneUrl"]})
        await follow(ada, run_of(await send(ada, session, "hello")))
        own = await eve.open()
        seen = await feed.until("session.created")
        assert kinds(seen) == ["ready", "session.created"]
        assert seen[-1]["sessionId"] == own["id"]
    assert (await served.nobody().get("/api/events")).status == 401


async def test_members_hear_of_the_sessions_of_their_organization_while_they_are_members(
    served: Served,
) -> None:
    ada, bob = await served.client(), await served.client("Bob")
    organization = (await ada.post("/api/organizations", {"name": "Band"})).json["organization"]["id"]
    member = {"organizationId": organization, "accountId": bob.account.id}
    async with feed_of(bob) as late:
        await ada.post("/api/organizations/members", member)
        async with feed_of(bob) as feed:
            session = await ada.open(organizationId=organization)
            wake = {"sessionId": session["id"], "repoUrl": session["cloneUrl"]}
            await ada.post("/api/sandbox", wake)
            assert kinds(await feed.until("sandbox.moved")) == ["ready", "session.created", "sandbox.moved"]
            # One who has joined since the feed was opened hears of it too.
            assert kinds(await late.until("sandbox.moved"))[-1] == "sandbox.moved"
            await ada.post(f"/api/sessions/{session['id']}/chats/{session['chat']['id']}/read")
            await ada.delete(f"/api/sessions/{session['id']}")
            assert kinds(await feed.until("session.deleted")) == ["session.deleted"]
            await ada.delete(
                f"/api/organizations/members?organization_id={organization}&account_id={bob.account.id}"
            )
            await ada.open(organizationId=organization)
            own = await bob.open()
            assert (await feed.next())["sessionId"] == own["id"]


async def test_an_old_cursor_is_answered_by_a_reset(served: Served) -> None:
    ada = await served.client()
    async with feed_of(ada) as feed:
        await feed.next()
        good = parse_cursor(feed.cursor)
    old = Cursor(good.position, good.at - KEPT_FOR - timedelta(minutes=1))
    foreign = Cursor(Position(good.position.transaction_id + 10**9, 0), good.at)
    for cursor in (old, foreign):
        async with feed_of(ada, str(cursor)) as feed:
            assert await feed.next() == {"type": "reset"}
            session = await ada.open()
            assert (await feed.next())["sessionId"] == session["id"]


@pytest.mark.parametrize("cursor", ["x", "1.2", "1.2.3.4", f"1.2.{'9' * 19}"])
async def test_what_is_no_cursor_is_refused(quick_served: Served, cursor: str) -> None:
    ada = await quick_served.client()
    answer = await ada.get(f"/api/events?cursor={cursor}")
    assert (answer.status, answer.error) == (400, "Invalid cursor")


async def test_a_revoked_key_ends_its_feed(served: Served) -> None:
    ada = await served.client()
    async with feed_of(ada) as feed:
        await feed.next()
        await served.fermata.accounts.revoke_key(ada.key.split("_")[1])
        await feed.ended()


async def test_a_feed_ends_when_the_server_is_told_to(served: Served) -> None:
    ada = await served.client()
    async with feed_of(ada) as feed:
        await feed.next()
        served.fermata.feed.close()
        await feed.ended()


async def test_rows_are_pruned_once_no_good_cursor_needs_them(served: Served) -> None:
    now = served.fermata.clock.now()

    def write(connection: Connection) -> None:
        for at in (now - PRUNED_AFTER - timedelta(seconds=1), now - KEPT_FOR):
            store.append(connection, "old", at=at, account_id="somebody", data={})
        for _ in range(store.PRUNE_EVERY):
            store.append(connection, "new", at=now, account_id="somebody", data={})

    await served.fermata.database.write(write)
    left = await served.fermata.database.read(lambda found: found.rows(ALL))
    assert [row[1] for row in left].count("old") == 1
    assert len(left) == store.PRUNE_EVERY + 1


async def test_an_event_of_a_slow_transaction_is_not_stepped_over(
    databases: Databases, tmp_path: Path
) -> None:
    """PostgreSQL numbers transactions when they begin to write, and shows them when they are committed."""
    url = await databases.postgres_url()
    slow = await asyncpg.connect(url)
    async with serve(tmp_path, database_url=url) as served:
        ada = await served.client()
        async with feed_of(ada) as feed:
            await feed.next()
            transaction = slow.transaction()
            await transaction.start()
            await slow.execute(
                "INSERT INTO account_events (transaction_id, account_id, kind, data, at) "
                "VALUES (pg_current_xact_id()::text::bigint, $1, 'slow', '{}', 0)",
                ada.account.id,
            )
            session = await ada.open()
            early = asyncio.create_task(feed.next())
            done, _ = await asyncio.wait([early], timeout=0.2)
            assert not done
            await transaction.commit()
            assert (await early)["type"] == "slow"
            assert (await feed.next())["sessionId"] == session["id"]
    await slow.close()
