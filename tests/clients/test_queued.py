"""Messages that wait, as the published transports see them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.support.databases import Databases
from tests.support.held_llm import HeldCatalogue, run_of, send
from tests.support.node_clients import NodeClients, Packages, node_processes
from tests.support.serving import Client, serve

every_version = pytest.mark.parametrize(
    "packages",
    [Packages("ai", "workflow-ai-4"), Packages("ai", "@workflow/ai"), Packages("ai7", "@workflow/ai")],
    ids=str,
)


@pytest_asyncio.fixture
async def node(node_scripts: Path, tmp_path: Path, packages: Packages) -> AsyncIterator[NodeClients]:
    async with node_processes(node_scripts, tmp_path / "pages") as start:
        yield await start(packages)


@pytest.fixture
def llm() -> HeldCatalogue:
    return HeldCatalogue()


@pytest_asyncio.fixture
async def ada(databases: Databases, tmp_path: Path, llm: HeldCatalogue) -> AsyncIterator[Client]:
    await databases.sqlite_file(tmp_path)
    async with serve(tmp_path, catalogue=llm) as served:
        yield await served.client()
        llm.let_go()


@every_version
@pytest.mark.parametrize("transport", ["documented", "documented-workflow"])
async def test_a_page_that_sends_while_another_turn_runs_gets_its_own_answer(
    ada: Client, llm: HeldCatalogue, node: NodeClients, transport: str, packages: Packages
) -> None:
    session = await ada.open()
    door = {"url": ada.url, "key": ada.key, "sessionId": session["id"], "chatId": session["chat"]["id"]}
    first = await send(ada, session, "one")
    call = await llm.next()
    page = await node.open("page", door, transport=transport)
    asking = asyncio.create_task(page.ask("send", text="two", messageId="two"))
    path = f"/api/chat/{session['chat']['id']}/queue"
    while not (waiting := (await ada.get(path)).json["messages"]):
        await asyncio.sleep(0.01)
    assert waiting[0]["id"] == "two"
    assert waiting[0]["runId"] != run_of(first)
    call.answer()
    (await llm.next()).answer()
    seen = await asking
    assert (seen["status"], seen.get("error")) == ("ready", None)
    stored = (await ada.get(f"/api/sessions/{session['id']}/chats/{session['chat']['id']}")).json["messages"]
    assert [one["role"] for one in stored] == ["user", "assistant"] * 2
    assert seen["messages"] == stored[2:]
    assert stored[3]["parts"][-1]["text"] == "You said two."


@every_version
async def test_a_page_whose_queued_message_is_cancelled_waits_no_longer(
    ada: Client, llm: HeldCatalogue, node: NodeClients, packages: Packages
) -> None:
    session = await ada.open()
    door = {"url": ada.url, "key": ada.key, "sessionId": session["id"], "chatId": session["chat"]["id"]}
    await send(ada, session, "one")
    await llm.next()
    page = await node.open("page", door, transport="documented-workflow")
    asking = asyncio.create_task(page.ask("send", text="two", messageId="two"))
    path = f"/api/chat/{session['chat']['id']}/queue"
    while not (await ada.get(path)).json["messages"]:
        await asyncio.sleep(0.01)
    assert (await ada.delete(f"{path}/two")).status == 200
    seen = await asking
    assert (seen["status"], seen.get("error")) == ("ready", None)
    assert [one["role"] for one in seen["messages"]] == ["user"]
