"""The published transports, unmodified, over real HTTP whose connections are cut again and again.

However a chat is cut, it ends with the message that the server has stored.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.support.cutting_proxy import CuttingProxy, cutting_proxy, random_cuts
from tests.support.databases import Databases
from tests.support.node_clients import NodeClients, Packages, lay_out, node_clients
from tests.support.serving import Client, Served, serve

from fermata.testing.scripted_llm import Gate, Script, ScriptedLlm, asks, ends, says
from fermata.turns.llms.catalogue import Catalogue
from fermata.turns.model import (
    FinishReason,
    ModelCall,
    ModelEvent,
    ReasoningAdded,
    ReasoningEnded,
    ReasoningStarted,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
WORKFLOWS = ("workflow-ai-4", "workflow-ai-5", "@workflow/ai")
VERSIONS = [Packages(ai, "@workflow/ai") for ai in ("ai", "ai7")]
COMBINATIONS = [Packages(ai, workflow) for ai in ("ai", "ai7") for workflow in WORKFLOWS]

every_version = pytest.mark.parametrize("packages", VERSIONS, ids=str)
every_combination = pytest.mark.parametrize("packages", COMBINATIONS, ids=str)


class Pause(Gate):
    """The model thinks for a moment, so that a viewer is there while the turn runs."""

    async def wait(self) -> None:
        await asyncio.sleep(0.01)


def slowly(script: Script, every: int = 12) -> Script:
    paused = [(Pause(), item) if number % every == 0 else (item,) for number, item in enumerate(script)]
    return list(itertools.chain.from_iterable(paused))


POEM = [f"Vers {number}: Ä ö ü, “quoted” \\ / \n\u2028 🐍{'.' * (number % 40)} " for number in range(240)]
FILE = "eins\nzwei\ndrei\n"
TOOLS = ends(FinishReason.TOOL_CALLS)

#: Reasoning, long text, two tools in one answer, broken arguments, a tool that fails, and text after them.
WORK: list[Script] = [
    slowly(
        [
            ReasoningStarted("0"),
            *(ReasoningAdded("0", f"thought {number}, ") for number in range(40)),
            ReasoningEnded("0"),
            *says("I ", "write ", "a file."),
            *asks(
                "c1",
                "write",
                {"filePath": "a.txt", "content": FILE},
                '{"filePath": "a.',
                'txt", "con',
                "tent",
            ),
            *asks("c2", "bash", {"command": "cat a.txt; seq 1 300; echo wrong >&2; exit 3"}, '{"comm'),
            TOOLS,
        ]
    ),
    slowly(
        [
            *says("Now ", "the rest.", part="t"),
            *asks("c3", "edit", {"filePath": "a.txt", "oldString": "zwei", "newString": "2 $& 🐍"}, "{", "}"),
            *asks("c4", "edit", {"filePath": "missing.txt", "oldString": "a", "newString": "b"}),
            *asks("c5", "no_such_tool", {"a": [1, None, {"b": "c"}]}, '{"a": [1, nul'),
            *asks("c6", "todo_write", {"todos": [{"id": "1", "content": "rest", "status": "pending"}]}),
            TOOLS,
        ]
    ),
    slowly([*says(*POEM), ends()]),
]


class ScriptedCatalogue(Catalogue):
    """Models named `scripted/...`, each with its own script."""

    def __init__(self) -> None:
        super().__init__(default_model="scripted/work")
        self.models = {"scripted/work": ScriptedLlm(*WORK)}

    @asynccontextmanager
    async def stream(self, call: ModelCall) -> AsyncIterator[AsyncIterator[ModelEvent]]:
        async with self.models[call.model_id].stream(call) as events:
            yield events


@dataclass
class House:
    """A server, a proxy before it, and an account."""

    served: Served
    proxy: CuttingProxy
    ada: Client
    catalogue: ScriptedCatalogue

    async def open_chat(self, *scripts: Script) -> "Chat":
        """A new chat in a new session, whose model follows the scripts."""
        session = await self.ada.open()
        chat = Chat(self, session["id"], session["chat"]["id"])
        if scripts:
            name = f"scripted/{chat.id}"
            self.catalogue.models[name] = ScriptedLlm(*scripts)
            changed = await self.ada.patch(chat.path, {"modelId": name})
            assert changed.status == 200, changed.raw
        return chat


@dataclass
class Chat:
    house: House
    session_id: str
    id: str

    @property
    def path(self) -> str:
        return f"/api/sessions/{self.session_id}/chats/{self.id}"

    async def view(self, node: NodeClients, transport: str, name: str = "", **options: Any) -> "Viewer":
        """A chat of the published package on this chat, behind the proxy."""
        viewer = Viewer(node, f"{self.id}{name}", {"url": self.house.proxy.url, "key": self.house.ada.key})
        await viewer.ask(
            "open", chatId=self.id, sessionId=self.session_id, transport=transport, **viewer.door, **options
        )
        return viewer

    async def stored(self) -> list[dict[str, Any]]:
        """The stored messages, once the turn has ended."""
        while True:
            answer = (await self.house.ada.get(self.path)).json
            if not answer["isStreaming"]:
                messages: list[dict[str, Any]] = answer["messages"]
                return messages
            await asyncio.sleep(0.01)


@dataclass
class Viewer:
    node: NodeClients
    name: str
    door: dict[str, Any]

    async def ask(self, verb: str, **options: Any) -> dict[str, Any]:
        return await self.node.ask(verb, chat=self.name, **options)

    async def when(self, ready: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Look until the chat is so."""
        while not ready(seen := await self.ask("look")):
            await asyncio.sleep(0.01)
        return seen


def has_text(text: str) -> Callable[[dict[str, Any]], bool]:
    return lambda seen: any(
        text in part.get("text", "") for message in seen["messages"][1:] for part in message["parts"]
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    directory = tmp_path_factory.mktemp("house")
    await databases.sqlite_file(directory)
    catalogue = ScriptedCatalogue()
    async with (
        serve(directory, catalogue=catalogue) as served,
        cutting_proxy(served.url) as proxy,
    ):
        yield House(served, proxy, await served.client(), catalogue)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node_of(
    node_scripts: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Callable[[Packages], Awaitable[NodeClients]]]:
    """The node process of each set of packages, started with the first test that needs it."""
    started: dict[Packages, NodeClients] = {}
    async with AsyncExitStack() as stack:

        async def start(packages: Packages) -> NodeClients:
            if packages not in started:
                tree = tmp_path_factory.mktemp("page")
                lay_out(tree, node_scripts, PAGE, packages)
                started[packages] = await stack.enter_async_context(node_clients(tree))
            return started[packages]

        yield start


@pytest_asyncio.fixture(loop_scope="module")
async def node(node_of: Callable[[Packages], Awaitable[NodeClients]], packages: Packages) -> NodeClients:
    return await node_of(packages)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def whole_again(house: House) -> AsyncIterator[None]:
    """No test leaves cuts to the next."""
    yield
    house.proxy.plan([])


@every_combination
@pytest.mark.parametrize("transport", ["documented", "documented-workflow"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_turn_that_is_cut_while_it_runs_ends_with_the_stored_message(
    house: House, node: NodeClients, transport: str, seed: int
) -> None:
    chat = await house.open_chat()
    viewer = await chat.view(node, transport)
    house.proxy.plan(random_cuts(seed, number=7, longest=30_000))
    await viewer.ask("send", text="Work", messageId="m1")
    seen = await viewer.ask("resumeWhileCut")
    assert (seen["status"], seen.get("error")) == ("ready", None)
    assert seen["messages"] == await chat.stored()
    assert [message["role"] for message in seen["messages"]] == ["user", "assistant"]
