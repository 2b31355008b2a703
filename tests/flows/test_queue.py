"""Received = answered + queued + cancelled, whatever is done, in whatever order, and at once."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.databases import Databases
from tests.support.held_llm import HeldCall, HeldCatalogue
from tests.support.serving import Client, Served, serve

from fermata.accounts.model import Caller
from fermata.flows.queue import CANCELLED
from fermata.kit.database import Connection, Database, Statement
from fermata.kit.errors import ConflictError
from fermata.runs.store import runs
from fermata.sessions import queue, store
from fermata.sessions.model import Busy
from fermata.sessions.tables import chat_runs, messages, received_messages
from fermata.stream.store import streams
from fermata.testing.scripted_llm import asks, ends
from fermata.turns.model import FinishReason

TOOLS = ends(FinishReason.TOOL_CALLS)
TODO = {"todos": [{"id": "1", "content": "rest", "status": "pending"}]}


def of_chat(table: sa.Table, *columns: sa.Column[Any]) -> Statement:
    return Statement(sa.select(*columns).where(table.c.chat_id == sa.bindparam("chat")))


RECEIVED = of_chat(received_messages, received_messages.c.id, received_messages.c.state)
STEERED = Statement(
    sa.select(received_messages.c.id).where(
        received_messages.c.chat_id == sa.bindparam("chat"), received_messages.c.step.is_not(None)
    )
)
BEGUN = of_chat(chat_runs, chat_runs.c.user_message_id, chat_runs.c.run_id, chat_runs.c.assistant_message_id)
STORED = Statement(
    sa.select(messages.c.id, messages.c.role, messages.c.message)
    .where(messages.c.chat_id == sa.bindparam("chat"))
    .order_by(messages.c.position)
)
OPEN_STREAMS = Statement(sa.select(streams.c.id).where(streams.c.closed == sa.false()))
RUNS = Statement(sa.select(runs.c.id, runs.c.state).where(runs.c.key == sa.bindparam("chat")))


async def check(database: Database, chat_id: str, received: set[str], cancelled: set[str]) -> list[str]:
    """Everything that must hold in a chat at rest. Its users' messages in their order."""

    def read(connection: Connection) -> list[Any]:
        counts = queue.count(connection, chat_id)
        states = dict(tuple(row) for row in connection.rows(RECEIVED, chat=chat_id))
        assert states.keys() == received
        assert {name for name, state in states.items() if state == "cancelled"} == cancelled
        assert {name for name, state in states.items() if state == "queued"} == set()
        assert (counts.received, counts.cancelled) == (len(received), len(cancelled))
        begun = connection.rows(BEGUN, chat=chat_id)
        steered = [row[0] for row in connection.rows(STEERED, chat=chat_id)]
        # Each was taken once: by a run of its own, or by another's on its way.
        assert sorted([row[0] for row in begun] + steered) == sorted(received - cancelled)
        assert {row[0]: row[1] for row in connection.rows(RUNS, chat=chat_id)}.keys() == {
            row[1] for row in begun
        }
        stored = connection.rows(STORED, chat=chat_id)
        assert {row[0] for row in stored if row[1] == "assistant"} == {row[2] for row in begun}
        assert connection.rows(OPEN_STREAMS) == []
        return [row[0] for row in stored if row[1] == "user"]

    return await database.read(read)


class Chat:
    """One chat, what was done in it, and what is to be true of it."""

    def __init__(self, served: Served, llm: HeldCatalogue, client: Client, session: dict[str, Any]) -> None:
        self.served = served
        self.llm = llm
        self.caller = Caller(client.account.id, client.key.split("_")[1])
        self.session_id, self.id = session["id"], session["chat"]["id"]
        self.received: list[str] = []
        self.cancelled: set[str] = set()
        #: The newest words of each message that were confirmed.
        self.words: dict[str, str] = {}
        self.current: HeldCall | None = None
        self.plain = True

    async def settle(self) -> None:
        """Until a model call waits for us, or nothing runs."""
        async with asyncio.timeout(10):
            while self.current is None:
                if not self.llm.waiting.empty():
                    self.current = self.llm.waiting.get_nowait()
                elif await self._is_idle():
                    return
                else:
                    await asyncio.sleep(0.001)

    async def _is_idle(self) -> bool:
        def read(connection: Connection) -> bool:
            chat = store.find_chat(connection, self.id)
            return chat is not None and chat.active_run_id is None

        return await self.served.fermata.database.read(read)

    async def post(self, busy: Busy, again: bool) -> None:
        name = self.received[0] if again and self.received else f"m{len(self.received)}-{id(self)}"
        message = {"id": name, "role": "user", "parts": [{"type": "text", "text": name}]}
        try:
            accepted = await self.served.fermata.turns.accept(
                self.caller, session_id=self.session_id, chat_id=self.id, message=message, busy=busy
            )
        except ConflictError:
            assert busy is Busy.REJECT or name in self.cancelled
            return
        if name not in self.received:
            self.received.append(name)
            self.words[name] = name
            self.plain = self.plain and (accepted.new or busy is Busy.QUEUE)
            if accepted.waiting is not None and busy is Busy.INTERRUPT:
                self.current = None

    async def edit(self, number: int) -> None:
        await self._change(number, parts=[{"type": "text", "text": f"edited {number}"}], place=None)

    async def move(self, number: int) -> None:
        self.plain = False
        await self._change(number, parts=None, place=1 + number % 3)

    async def _change(self, number: int, *, parts: list[dict[str, Any]] | None, place: int | None) -> None:
        if not self.received:
            return
        name = self.received[number % len(self.received)]
        try:
            await self.served.fermata.queue.change(self.caller, self.id, name, parts=parts, place=place)
        except ConflictError:
            return
        if parts is not None:
            self.words[name] = parts[0]["text"]

    async def cancel(self, number: int) -> None:
        if not self.received:
            return
        name = self.received[number % len(self.received)]
        try:
            await self.served.fermata.queue.cancel(self.caller, self.id, name)
        except ConflictError:
            return
        self.cancelled.add(name)

    async def stop(self) -> None:
        if await self.served.fermata.turns.stop(self.caller, self.id):
            self.current = None

    def answer(self, *script: Any) -> None:
        if self.current is not None:
            self.current.answer(*script)
            self.current = None

    async def do(self, action: str, number: int) -> None:
        match action:
            case "post":
                await self.post(list(Busy)[number % 4], again=number >= 8)
            case "edit":
                await self.edit(number)
            case "move":
                await self.move(number)
            case "cancel":
                await self.cancel(number)
            case "stop":
                await self.stop()
            case "answer":
                self.answer()
            case "tool":
                self.answer(*asks(f"c{number}", "todo_write", TODO), TOOLS)
        await self.settle()


ACTIONS = st.tuples(
    st.sampled_from(["post", "post", "post", "edit", "move", "cancel", "stop", "answer", "tool"]),
    st.integers(0, 11),
)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def llm() -> HeldCatalogue:
    return HeldCatalogue()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(
    request: pytest.FixtureRequest,
    loop: asyncio.AbstractEventLoop,
    databases: Databases,
    tmp_path_factory: pytest.TempPathFactory,
    llm: HeldCatalogue,
) -> Iterator[Served]:
    stack = AsyncExitStack()
    directory = tmp_path_factory.mktemp(request.param)

    async def start() -> Served:
        url = await databases.postgres_url() if request.param == "postgresql" else None
        if url is None:
            await databases.sqlite_file(directory)
        return await stack.enter_async_context(serve(directory, database_url=url, catalogue=llm))

    yield loop.run_until_complete(start())
    loop.run_until_complete(stack.aclose())


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(actions=st.lists(ACTIONS, min_size=3, max_size=14))
def test_every_received_message_is_answered_or_cancelled_in_the_end(
    server: Served,
    loop: asyncio.AbstractEventLoop,
    llm: HeldCatalogue,
    actions: list[tuple[str, int]],
) -> None:
    async def play() -> None:
        llm.free = False
        client = await server.client()
        chat = Chat(server, llm, client, await client.open())
        for action, number in actions:
            await chat.do(action, number)
        while chat.current is not None:
            chat.answer()
            await chat.settle()
        order = await check(server.fermata.database, chat.id, set(chat.received), chat.cancelled)
        if chat.plain:
            assert order == [name for name in chat.received if name not in chat.cancelled]
        # What was confirmed last is what the chat has, and what models were shown.
        client_view = await client.get(f"/api/sessions/{chat.session_id}/chats/{chat.id}")
        said = {
            message["id"]: message["parts"][0]["text"]
            for message in client_view.json["messages"]
            if message["role"] == "user"
        }
        assert said == {name: chat.words[name] for name in chat.received if name not in chat.cancelled}

    loop.run_until_complete(play())


def test_posts_cancellations_edits_and_stops_at_once_lose_nothing(
    server: Served, loop: asyncio.AbstractEventLoop, llm: HeldCatalogue
) -> None:
    """All at the same time, on both databases, while turns end as fast as they can."""

    async def play() -> None:
        llm.let_go()
        client = await server.client()
        chat = Chat(server, llm, client, await client.open())
        names = [f"n{number}" for number in range(12)]
        received: set[str] = set()
        cancelled: set[str] = set()

        async def one(number: int, name: str) -> None:
            message = {"id": name, "role": "user", "parts": [{"type": "text", "text": name}]}
            busy = [Busy.QUEUE, Busy.STEER, Busy.INTERRUPT][number % 3]
            received.add(name)
            try:
                await server.fermata.turns.accept(
                    chat.caller, session_id=chat.session_id, chat_id=chat.id, message=message, busy=busy
                )
            except ConflictError as error:
                if error.message != CANCELLED:
                    raise
                return
            if number % 4 == 3:
                await server.fermata.turns.stop(chat.caller, chat.id)
            if number % 2 == 1:
                try:
                    await server.fermata.queue.cancel(chat.caller, chat.id, name)
                    cancelled.add(name)
                except ConflictError:
                    return

        await asyncio.gather(*(one(number, name) for number, name in enumerate(names * 2)))
        async with asyncio.timeout(20):
            while not await chat._is_idle():
                await asyncio.sleep(0.005)
        await check(server.fermata.database, chat.id, received, cancelled)

    loop.run_until_complete(play())
