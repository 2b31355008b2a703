"""The published transports, unmodified, over real HTTP whose connections are cut again and again.

However a chat is cut, it ends with the message that the server has stored.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from tests.support.cutting_proxy import Cut, CuttingProxy, End, cutting_proxy, random_cuts
from tests.support.databases import Databases
from tests.support.node_clients import (
    PAGE,
    NodeClients,
    NodeOf,
    Packages,
    Viewer,
    documented_blocks,
    has_text,
    node_processes,
)
from tests.support.serving import Client, Served, serve

from fermata.kit.errors import ModelError
from fermata.testing.scripted_llm import Gate, Script, ScriptedLlm, asks, ends, says
from fermata.turns.llms.catalogue import Catalogue
from fermata.turns.model import (
    FinishReason,
    ModelCall,
    ModelEvent,
    ReasoningAdded,
    ReasoningEnded,
    ReasoningStarted,
    ToolCall,
    ToolInputAdded,
    ToolInputEnded,
    ToolInputStarted,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORKFLOWS = ("workflow-ai-4", "workflow-ai-5", "@workflow/ai")
VERSIONS = [Packages(ai, "@workflow/ai") for ai in ("ai", "ai7")]
COMBINATIONS = [Packages(ai, workflow) for ai in ("ai", "ai7") for workflow in WORKFLOWS]

every_version = pytest.mark.parametrize("packages", VERSIONS, ids=str)
every_combination = pytest.mark.parametrize("packages", COMBINATIONS, ids=str)


def user_message(text: str) -> dict[str, Any]:
    return {"id": "m1", "role": "user", "parts": [{"type": "text", "text": text}]}


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

BROKEN_INPUT = '{"command": "echo '

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
            ToolInputStarted("c7", "bash"),
            ToolInputAdded("c7", BROKEN_INPUT),
            ToolInputEnded(ToolCall("c7", "bash", BROKEN_INPUT, broken="The arguments are no JSON.")),
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
    _ended: "Ended | None" = None

    async def ended_turn(self) -> "Ended":
        """One that has done all of `WORK`; every test that asks gets the same."""
        if self._ended is None:
            chat = await self.open_chat()
            body = {"sessionId": chat.session_id, "chatId": chat.id, "messages": [user_message("Work")]}
            answer = await self.ada.post("/api/chat", body)
            data = [line[6:] for line in answer.raw.decode().split("\n") if line.startswith("data: {")]
            run_id = answer.headers["x-workflow-run-id"]
            self._ended = Ended(chat, run_id, [orjson.loads(line) for line in data], len(answer.raw))
        return self._ended

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


@dataclass(frozen=True)
class Ended:
    """A turn that has ended, and its stream."""

    chat: "Chat"
    run_id: str
    chunks: list[dict[str, Any]]
    #: Bytes of its stream over HTTP, about.
    size: int


@dataclass
class Chat:
    house: House
    session_id: str
    id: str

    @property
    def path(self) -> str:
        return f"/api/sessions/{self.session_id}/chats/{self.id}"

    async def view(self, node: NodeClients, transport: str, name: str = "", **options: Any) -> Viewer:
        """A chat of the published package on this chat, behind the proxy."""
        door = {"url": self.house.proxy.url, "key": self.house.ada.key}
        place = {"chatId": self.id, "sessionId": self.session_id}
        return await node.open(f"{self.id}{name}", door, transport=transport, **place, **options)

    async def stored(self) -> list[dict[str, Any]]:
        """The stored messages, once the turn has ended."""
        while True:
            answer = (await self.house.ada.get(self.path)).json
            if not answer["isStreaming"]:
                messages: list[dict[str, Any]] = answer["messages"]
                return messages
            await asyncio.sleep(0.01)


def as_stored(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Version 7 keeps arguments that are no JSON as `input`, version 6 and the server as `rawInput`."""
    for message in messages:
        for part in message["parts"]:
            if part.get("input") == BROKEN_INPUT:
                part["rawInput"] = part.pop("input")
    return messages


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
async def node_of(node_scripts: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NodeOf]:
    async with node_processes(node_scripts, tmp_path_factory.mktemp("pages")) as start:
        yield start


@pytest_asyncio.fixture(loop_scope="module")
async def node(node_of: NodeOf, packages: Packages) -> NodeClients:
    return await node_of(packages)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def whole_again(house: House) -> AsyncIterator[None]:
    """No test leaves cuts to the next."""
    yield
    house.proxy.plan([])


@every_combination
@pytest.mark.parametrize("transport", ["documented", "documented-workflow"])
async def test_a_turn_that_is_cut_while_it_runs_ends_with_the_stored_message(
    house: House, node: NodeClients, transport: str, packages: Packages
) -> None:
    seed = COMBINATIONS.index(packages)
    chat = await house.open_chat()
    viewer = await chat.view(node, transport)
    house.proxy.plan(random_cuts(seed, number=7, longest=30_000))
    await viewer.ask("send", text="Work", messageId="m1")
    seen = await viewer.ask("resumeWhileCut")
    assert (seen["status"], seen.get("error")) == ("ready", None)
    assert as_stored(seen["messages"]) == await chat.stored()
    assert [message["role"] for message in seen["messages"]] == ["user", "assistant"]
    assert house.proxy.made > 0


@every_combination
async def test_a_turn_that_has_ended_is_whole_wherever_its_stream_is_cut(
    house: House, node: NodeClients, packages: Packages
) -> None:
    ended = await house.ended_turn()
    question, answer = await ended.chat.stored()
    # Each combination cuts at other bytes, and together they reach every region of the answer.
    first = 97 * COMBINATIONS.index(packages)
    for number, after in enumerate(range(first, ended.size, ended.size // 24)):
        transport = ("documented-workflow", "bare-workflow")[number % 2]
        end = (End.CLOSE, End.RESET)[number // 2 % 2]
        viewer = await ended.chat.view(
            node, transport, f"{packages}{number}", messages=[question], runId=ended.run_id
        )
        house.proxy.plan([Cut(after, end)] if number % 3 else [Cut(after, end), Cut(after // 2, end)])
        await viewer.ask("resume")
        seen = await viewer.ask("resumeWhileCut")
        assert as_stored(seen["messages"]) == [question, answer], (transport, after, end, seen["error"])
        assert seen["status"] == "ready"


@every_combination
async def test_a_negative_start_counts_from_the_end_also_after_a_cut(
    house: House, node: NodeClients, packages: Packages
) -> None:
    ended = await house.ended_turn()
    question, answer = await ended.chat.stored()
    chunks = ended.chunks
    steps = [index for index, chunk in enumerate(chunks) if chunk["type"] == "start-step"]
    starts = [index for index, part in enumerate(answer["parts"]) if part["type"] == "step-start"]

    async def last(number: int, *cuts: Cut) -> dict[str, Any]:
        viewer = await ended.chat.view(
            node,
            "bare-workflow",
            f"{packages}-{number}{cuts}",
            messages=[question],
            runId=ended.run_id,
            initialStartIndex=-number,
        )
        house.proxy.plan(cuts)
        return await viewer.ask("resume")

    for number in (len(chunks), len(chunks) + 1000):
        assert as_stored((await last(number))["messages"]) == [question, answer]
        assert as_stored((await last(number, Cut(9_000)))["messages"]) == [question, answer]
    for cuts in ([], [Cut(2_000)], [Cut(2_500), Cut(700)]):
        window = await last(len(chunks) - steps[-1], *cuts)
        assert window["status"] == "ready"
        assert window["messages"][1]["parts"] == answer["parts"][starts[-1] :]
    newest_delta = max(index for index, chunk in enumerate(chunks) if chunk["type"] == "text-delta")
    within_a_part = await last(len(chunks) - newest_delta)
    if packages.workflow == "workflow-ai-4":
        assert within_a_part["status"] == "ready"
    else:  # as the page says
        assert "missing text part" in within_a_part["error"]


async def test_the_tail_index_tells_where_a_negative_start_begins_while_the_turn_grows(house: House) -> None:
    chat = await house.open_chat()
    key = {"x-api-key": str(house.ada.key)}
    body = {"sessionId": chat.session_id, "chatId": chat.id, "messages": [user_message("Work")]}
    asked = asyncio.create_task(house.ada.post("/api/chat", body))
    windows = 0
    while not asked.done():
        url = f"{house.served.url}/api/chat/{chat.id}/stream?startIndex=-2"
        async with house.served.http.get(url, headers=key) as response:
            if response.status != 200:
                await asyncio.sleep(0)
                continue
            tail = int(response.headers["x-workflow-stream-tail-index"])
            first = await response.content.readline()
            assert first == f"id: {max(0, tail - 1)}\n".encode()
            windows += 1
    assert windows > 5


@every_version
@pytest.mark.parametrize("transport", ["bare", "documented"])
async def test_a_dropped_connection_is_resumed_by_the_id_of_its_chat(
    house: House, node: NodeClients, transport: str
) -> None:
    gate = Gate()
    chat = await house.open_chat([*says("Half of ", "it"), gate, *says(" and the rest.", part="1"), ends()])
    viewer = await chat.view(node, transport)
    sending = asyncio.create_task(viewer.ask("send", text="Go on", messageId="m1"))
    await viewer.when(has_text("it"))
    house.proxy.cut_now()
    cut = await sending
    assert cut["status"] == "error"
    assert cut["error"].startswith("TypeError")
    resuming = asyncio.create_task(viewer.ask("resume"))
    await viewer.when(lambda seen: seen["status"] == "streaming")
    gate.open()
    seen = await resuming
    assert (seen["status"], seen["messages"]) == ("ready", await chat.stored())


@every_version
async def test_a_chat_where_nothing_runs_has_nothing_to_resume(house: House, node: NodeClients) -> None:
    chat = await house.open_chat([*says("Hello."), ends()])
    viewer = await chat.view(node, "bare")
    empty = await viewer.ask("resume")
    assert (empty["status"], empty.get("error"), empty["messages"]) == ("ready", None, [])
    sent = await viewer.ask("send", text="Hi", messageId="m1")
    after = await viewer.ask("resume")
    assert (after["status"], after.get("error")) == ("ready", None)
    assert after["messages"] == sent["messages"] == await chat.stored()


@every_combination
@pytest.mark.parametrize("transport", ["documented", "documented-workflow"])
async def test_a_stopped_turn_keeps_what_it_said_and_the_next_message_is_answered(
    house: House, node: NodeClients, transport: str
) -> None:
    chat = await house.open_chat([*says("Half of ", "it")[:-1], Gate()])
    viewer = await chat.view(node, transport)
    sending = asyncio.create_task(viewer.ask("send", text="Go on", messageId="m1"))
    await viewer.when(has_text("it"))
    await viewer.ask("stop", **viewer.door)
    stopped = await sending
    assert (stopped["status"], stopped["messages"]) == ("ready", await chat.stored())
    house.catalogue.models[f"scripted/{chat.id}"] = ScriptedLlm([*says("Second."), ends()])
    second = await viewer.ask("send", text="And now?", messageId="m2")
    assert (second["status"], second["messages"]) == ("ready", await chat.stored())
    assert [message["role"] for message in second["messages"]] == ["user", "assistant"] * 2
    again = await viewer.ask("regenerate")
    assert (again["status"], again["messages"]) == ("ready", await chat.stored())
    assert again["messages"][3]["id"] != second["messages"][3]["id"]


@every_version
async def test_a_second_viewer_sees_the_same_turn_and_leaves_without_ending_it(
    house: House, node: NodeClients
) -> None:
    gate = Gate()
    chat = await house.open_chat([*says("Half of ", "it")[:-1], gate, *says("the rest.", part="1"), ends()])
    first = await chat.view(node, "documented")
    sending = asyncio.create_task(first.ask("send", text="Go on", messageId="m1"))
    await first.when(has_text("it"))
    loaded = (await house.ada.get(chat.path)).json
    active = loaded["chat"]["activeStreamId"]
    others = [
        await chat.view(node, transport, transport, messages=loaded["messages"], runId=run_id)
        for transport, run_id in [("bare", None), ("bare-workflow", None), ("documented-workflow", active)]
    ]
    resuming = [asyncio.create_task(viewer.ask("resume")) for viewer in others]
    leaving = await chat.view(node, "bare", "leaving", messages=loaded["messages"])
    left = asyncio.create_task(leaving.ask("resume"))
    for viewer in (*others, leaving):
        await viewer.when(has_text("it"))
    await leaving.ask("detach")
    assert (await left)["status"] == "ready"
    gate.open()
    stored = await chat.stored()
    for seen in [await sending, *[await task for task in resuming]]:
        assert (seen["status"], seen["messages"]) == ("ready", stored)


@every_combination
@pytest.mark.parametrize("transport", ["documented", "documented-workflow"])
async def test_a_message_that_is_sent_while_a_turn_runs_is_answered_after_it(
    house: House, node: NodeClients, transport: str
) -> None:
    gate = Gate()
    chat = await house.open_chat([*says("Half of ", "it")[:-1], gate, *says("the rest.", part="1"), ends()])
    first = await chat.view(node, transport)
    answering = asyncio.create_task(first.ask("send", text="Go on", messageId="m1"))
    await first.when(has_text("it"))
    question = (await house.ada.get(chat.path)).json["messages"]
    second = await chat.view(node, transport, "second", messages=question)
    before = house.proxy.requests
    waiting = asyncio.create_task(second.ask("send", text="And this?", messageId="m2"))
    while house.proxy.requests < before + 2:  # the message, and the stream of its turn
        await asyncio.sleep(0.01)
    gate.open()
    answered, waited = await answering, await waiting
    stored = await chat.stored()
    assert [message["id"] for message in stored if message["role"] == "user"] == ["m1", "m2"]
    assert (answered["status"], answered["messages"]) == ("ready", stored[:2])
    assert (waited["status"], waited["messages"]) == ("ready", [stored[0], *stored[2:]])


@every_combination
@pytest.mark.parametrize("transport", ["documented", "documented-workflow"])
async def test_a_turn_that_fails_tells_why_and_ends_with_the_stored_message(
    house: House, node: NodeClients, transport: str
) -> None:
    chat = await house.open_chat([*says("Half of ", "it")[:-1], ModelError("The vendor is away.")])
    viewer = await chat.view(node, transport)
    house.proxy.plan([Cut(1_100), Cut(500)])
    await viewer.ask("send", text="Go on", messageId="m1")
    seen = await viewer.ask("resumeWhileCut")
    assert (seen["status"], seen["error"]) == ("error", "Error: The vendor is away.")
    assert seen["messages"] == await chat.stored()


@every_version
async def test_the_hook_goes_on_by_itself_after_cuts_and_when_the_page_is_loaded_again(
    house: House, node: NodeClients
) -> None:
    gate = Gate()
    chat = await house.open_chat(WORK[0], [*says("Half of ", "it")[:-1], gate, *says("!", part="1"), ends()])
    page = await chat.view(node, "documented", verb="openPage")
    house.proxy.plan([Cut(0), Cut(400), Cut(3_000), Cut(5_000, End.RESET), Cut(8_000)])
    sending = asyncio.create_task(page.ask("send", text="Work", messageId="m1"))
    await page.when(has_text("it"))
    loaded = (await house.ada.get(chat.path)).json
    active = loaded["chat"]["activeStreamId"]
    again = await chat.view(
        node, "documented", "again", verb="openPage", messages=loaded["messages"], activeStreamId=active
    )
    await again.when(has_text("it"))
    house.proxy.cut_now()
    gate.open()
    await sending
    stored = await chat.stored()
    late = await chat.view(
        node, "documented", "late", verb="openPage", messages=loaded["messages"], activeStreamId=active
    )
    for viewer in (page, again, late):
        seen = await viewer.when(lambda seen: seen["status"] == "ready" and bool(seen["messages"][1:]))
        assert seen["messages"] == stored


@every_version
async def test_the_hook_does_not_resume_a_turn_that_has_failed(house: House, node: NodeClients) -> None:
    chat = await house.open_chat([*says("Half of ", "it")[:-1], ModelError("The vendor is away.")])
    page = await chat.view(node, "documented", verb="openPage")
    await page.ask("send", text="Go on", messageId="m1")
    seen = await page.when(lambda seen: seen["status"] == "error")
    assert seen["error"] == "Error: The vendor is away."
    requests = house.proxy.requests
    await asyncio.sleep(0.2)
    later = await page.ask("look")
    assert (later["status"], later["messages"]) == ("error", await chat.stored())
    assert house.proxy.requests == requests


async def test_a_server_that_ends_begins_no_stream_that_it_cannot_finish(
    databases: Databases, tmp_path: Path
) -> None:
    await databases.sqlite_file(tmp_path)
    async with serve(tmp_path) as served:
        ada = await served.client()
        session = await ada.open()
        place = {"chatId": session["chat"]["id"], "sessionId": session["id"]}
        body = {**place, "messages": [user_message("Hello")]}
        answer = await ada.post("/api/chat", body)
        assert answer.raw.endswith(b"data: [DONE]\n\n")
        served.fermata.stream.close()
        run = f"/api/chat/{answer.headers['x-workflow-run-id']}/stream"
        for refused in (await ada.get(run), await ada.post("/api/chat", body)):
            assert (refused.status, refused.error) == (503, "The server is ending. Ask again.")
            assert "retry-after" in refused.headers


async def test_every_block_of_the_page_is_run() -> None:
    assert sorted(documented_blocks(PAGE)) == [
        "fermata-transport.js",
        "fermata-workflow-transport.js",
        "patient-fetch.js",
        "stop-turn.js",
        "use-fermata-chat.js",
    ]
