"""The journeys of the product, walked with the server killed on the way."""

import asyncio
import itertools
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

from fermata.turns.loop import OUTCOME_UNKNOWN
from tests.support.processes import Seen, ServerProcess, chat, shell, since_boot, stored_messages, watch
from tests.support.serving import Client

Act = Callable[[Client], Awaitable[Any]]

#: Walks a journey, once for each point.
Walk = Callable[["Journey", "Iterable[Point]"], Awaitable[None]]
#: (what is counted, the how manieth, before or after)
Point = tuple[str, int, str]


def commits(first: int, last: int, step: int = 1) -> list[Point]:
    """Before or after, in turns: what lies between two commits is visited from one side or the other."""
    return [("write", number, ("before", "after")[number % 2]) for number in range(first, last + 1, step)]


def every_side(journey: "Journey") -> Iterator[Point]:
    """Before and after each commit, until there are no more."""
    for number in itertools.count(1):
        yield "write", number, "before"
        if not journey.reached:
            return
        yield "write", number, "after"


def verbs(*names: str) -> list[Point]:
    return [(name, 1, when) for name in names for when in ("before", "after")]


class Journey:
    """One server and what was asked of it, over many of its lives."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        #: Whether the last point was reached, so that the server was killed there.
        self.reached = True
        self.kills = 0

    async def crash(self, point: Point, act: Act) -> Any:
        """Do something with the server killed at this point, and start it again. What `act` has returned, or
        None when the server died meanwhile."""
        server = self.server
        server.arm(*point)
        self.reached = True
        async with server.client() as client:
            task = asyncio.create_task(act(client))
            idle = 0
            while server.running():
                # An answer may come before what it set going is over, and a commit before the point after it.
                idle = idle + 1 if task.done() and task.exception() is None and not _busy(server) else 0
                if idle == 20:
                    self.reached = False
                    server.disarm()
                    return task.result()
                await asyncio.sleep(0.01)
            result = (await asyncio.gather(task, return_exceptions=True))[0]
        assert await server.ended() == -signal.SIGKILL
        self.kills += 1
        server.disarm()
        begun = since_boot()
        await server.start()
        server.check_nothing_is_left(begun)
        return None if isinstance(result, BaseException) else result

    async def settled(self, session_id: str) -> str:
        """The state of a session when nothing is under way any more."""
        deadline = time.monotonic() + 20
        async with self.server.client() as client:
            while _busy(self.server):
                assert time.monotonic() < deadline, f"stuck: {_busy(self.server)}\n{self.server.log[-3000:]}"
                await asyncio.sleep(0.02)
            found = (await client.get(f"/api/sessions/{session_id}")).json["session"]
        check_rows(self.server)
        state: str = found["lifecycleState"]
        assert state in ("active", "hibernated"), (state, found["lifecycleError"])
        return state


def rows(server: ServerProcess, sql: str, *values: Any) -> list[Any]:
    with closing(sqlite3.connect(f"file:{server.data}/fermata.db?mode=ro", uri=True)) as connection:
        return connection.execute(sql, values).fetchall()


def _busy(server: ServerProcess) -> list[Any]:
    """Live runs but for those that only wait for their time."""
    return rows(
        server,
        "SELECT kind, key, state FROM runs "
        "WHERE state IN ('queued', 'running') AND kind NOT IN ('timers', 'prune')",
    )


def check_rows(server: ServerProcess) -> None:
    """What holds whenever nothing is under way."""
    assert rows(server, "SELECT id FROM chats WHERE active_run_id IS NOT NULL") == []
    assert rows(server, "SELECT id FROM streams WHERE NOT closed") == []
    for sandbox_id, version, state in rows(server, "SELECT id, version, state FROM sandboxes"):
        moves = rows(
            server,
            "SELECT version, from_state, to_state FROM sandbox_moves WHERE sandbox_id = ? ORDER BY version",
            sandbox_id,
        )
        assert [move[0] for move in moves] == list(range(version + 1))
        assert moves[-1][2] == state
        assert [move[1] for move in moves[1:]] == [move[2] for move in moves[:-1]]
    unanswered = rows(
        server,
        "SELECT r.run_id FROM chat_runs r LEFT JOIN messages m "
        "ON m.chat_id = r.chat_id AND m.id = r.assistant_message_id WHERE m.id IS NULL",
    )
    assert unanswered == []


async def start_sandbox(client: Client, session: dict[str, Any]) -> None:
    answer = await client.post("/api/sandbox", {"sessionId": session["id"], "repoUrl": session["cloneUrl"]})
    assert answer.status == 200, answer.raw


async def pause(client: Client, session: dict[str, Any]) -> None:
    answer = await client.post("/api/sandbox/snapshot", {"sessionId": session["id"]})
    assert answer.status == 200, answer.raw


_numbers = iter(range(1_000_000))


async def say(client: Client, session: dict[str, Any], *commands: str) -> Seen:
    seen = await chat(client, session, shell(*commands), f"message-{next(_numbers)}")
    assert seen.done, (seen.status, seen.error)
    return seen


async def a_session(server: ServerProcess) -> dict[str, Any]:
    """An active session with a file in its workspace."""
    async with server.client() as client:
        session = await client.open()
        await start_sandbox(client, session)
        await say(client, session, "echo precious > kept")
        return session


async def create_sessions(journey: Journey, points: Iterable[Point]) -> None:
    """A session whose creation was cut exists once, and gets its sandbox."""
    for point in points:
        number = next(_numbers)
        once = {"idempotency-key": f"once-{number}"}
        wanted = {"title": f"Session {number}"}

        async def create(client: Client, wanted: Any = wanted, once: Any = once) -> Any:
            return (await client.post("/api/sessions", wanted, headers=once)).json["session"]["id"]

        answered = await journey.crash(point, create)
        async with journey.server.client() as client:
            session_id = await create(client)
            assert answered in (None, session_id)
            listed = (await client.get("/api/sessions?limit=100")).json["sessions"]
            assert [session["title"] for session in listed].count(wanted["title"]) == 1
            assert await journey.settled(session_id) in ("active", "hibernated")
            session = (await client.get(f"/api/sessions/{session_id}")).json["session"]
            await start_sandbox(client, session)


async def hibernate(journey: Journey, points: Iterable[Point]) -> None:
    """A hibernation that was cut keeps every file."""
    session = await a_session(journey.server)
    for point in points:
        await journey.crash(point, lambda client: pause(client, session))
        assert await journey.settled(session["id"]) == "hibernated"
        async with journey.server.client() as client:
            await start_sandbox(client, session)
            assert "precious" in (await say(client, session, "cat kept")).text


async def restore(journey: Journey, points: Iterable[Point]) -> None:
    """A restoration that was cut is finished, with every file."""
    session = await a_session(journey.server)
    for point in points:
        async with journey.server.client() as client:
            await pause(client, session)
        await journey.crash(point, lambda client: start_sandbox(client, session))
        await journey.settled(session["id"])
        async with journey.server.client() as client:
            assert "precious" in (await say(client, session, "cat kept")).text


async def take_turns(journey: Journey, points: Iterable[Point]) -> None:
    """A turn that was cut goes on and does nothing twice."""
    session = await a_session(journey.server)
    for number, point in enumerate(points):
        text = shell(f"echo line-{number} >> lines", "sleep 0.1", f"grep -c line-{number}$ lines")
        before = Seen()

        async def ask(client: Client, text: str = text, number: int = number, seen: Seen = before) -> Any:
            return await chat(client, session, text, f"asked-{number}", seen)

        await journey.crash(point, ask)
        async with journey.server.client() as client:
            after = await ask(client, seen=Seen())
            assert after.done, (point, after.status, after.error)
            await journey.settled(session["id"])
            check_stream(before, after)
            again = await watch(
                client, "GET", f"/api/chat/{after.run_id}/stream?startIndex={len(before.chunks)}"
            )
            assert again.chunks == after.chunks[len(before.chunks) :]
            stored = [
                one for one in await stored_messages(client, session) if one["id"] == after.message["id"]
            ]
            assert [one["parts"] for one in stored] == [after.message["parts"]]
            counted = await say(client, session, f"grep -c line-{number}$ lines")
        outputs = [part for part in after.message["parts"] if part.get("type") == "tool-bash"]
        told = [part.get("errorText") for part in outputs if part["state"] == "output-error"]
        times = int(counted.text.splitlines()[-2]) if "exited with status 0" in counted.text else 0
        assert times == 1 or (times == 0 and OUTCOME_UNKNOWN in told), (point, times, told)


async def wait_in_line(journey: Journey, points: Iterable[Point]) -> None:
    """Messages that came during a turn that was cut are answered once, in their order."""
    session = await a_session(journey.server)
    for number, point in enumerate(points):
        names = [f"{letter}-{number}" for letter in "abc"]

        async def ask(client: Client, names: list[str] = names) -> Any:
            first = asyncio.create_task(chat(client, session, shell("sleep 0.2; echo first"), names[0]))
            await asyncio.sleep(0.1)
            for name in names[1:]:
                await chat(client, session, shell(f"echo {name}"), name)
            return await first

        await journey.crash(point, ask)
        async with journey.server.client() as client:
            for name in names:  # what was accepted is rejoined, the rest is accepted now
                assert (await chat(client, session, shell(f"echo {name}"), name)).status in (200, 202)
            await journey.settled(session["id"])
            stored = await stored_messages(client, session)
        begin = next(index for index, one in enumerate(stored) if one["id"] in names)
        assert [one["role"] for one in stored[begin:]] == ["user", "assistant"] * 3
        assert sorted(one["id"] for one in stored[begin::2]) == names


def check_stream(before: Seen, after: Seen) -> None:
    """A viewer who rejoins has what it had, and the rest; one sequence without a hole."""
    assert after.chunks[: len(before.chunks)] == before.chunks
    assert after.ids == list(range(len(after.ids)))
    assert after.types[0] == "start"
    assert after.types[-1] == "finish"
    assert after.types.count("start") == after.types.count("finish") == 1
