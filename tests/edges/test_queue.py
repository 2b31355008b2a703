"""Messages that come while a turn runs, over real HTTP."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.databases import Databases
from tests.support.held_llm import HeldCatalogue, follow, run_of, send
from tests.support.serving import Client, Served, serve

from fermata.client import Client as PythonClient
from fermata.testing.scripted_llm import asks, ends, says
from fermata.turns.model import FinishReason

TOOLS = ends(FinishReason.TOOL_CALLS)
TODO = {"todos": [{"id": "1", "content": "rest", "status": "pending"}]}


@pytest.fixture
def llm() -> HeldCatalogue:
    return HeldCatalogue()


@pytest.fixture(params=["sqlite", "postgresql"])
async def held(
    request: pytest.FixtureRequest, databases: Databases, tmp_path: Path, llm: HeldCatalogue
) -> AsyncIterator[Served]:
    """A server whose model waits for the test."""
    url = await databases.postgres_url() if request.param == "postgresql" else None
    if url is None:
        await databases.sqlite_file(tmp_path)
    async with serve(tmp_path, database_url=url, catalogue=llm) as server:
        yield server
        llm.let_go()


@pytest.fixture
async def ada(held: Served) -> Client:
    return await held.client()


async def queue_of(client: Client, session: dict[str, Any]) -> tuple[list[str], dict[str, int]]:
    answer = await client.get(f"/api/chat/{session['chat']['id']}/queue")
    assert answer.status == 200, answer.raw
    assert [item["position"] for item in answer.json["messages"]] == list(
        range(1, len(answer.json["messages"]) + 1)
    )
    counts = answer.json["counts"]
    assert counts["received"] == counts["answered"] + counts["queued"] + counts["cancelled"]
    return [item["id"] for item in answer.json["messages"]], counts


async def stored(client: Client, session: dict[str, Any]) -> list[str]:
    """The chat's messages: the texts of users, and of answers."""
    found = await client.get(f"/api/sessions/{session['id']}/chats/{session['chat']['id']}")
    return [
        "".join(part.get("text", "") for part in message["parts"] if part["type"] == "text")
        for message in found.json["messages"]
    ]


def item_path(session: dict[str, Any], name: str) -> str:
    return f"/api/chat/{session['chat']['id']}/queue/{name}"


async def test_messages_that_come_during_a_turn_are_answered_in_order(
    ada: Client, llm: HeldCatalogue
) -> None:
    session = await ada.open()
    assert (await send(ada, session, "one")).status == 200
    first = await llm.next()
    two, three = await send(ada, session, "two"), await send(ada, session, "three")
    assert (two.status, three.status) == (202, 202)
    assert two.json == {
        "status": "queued", "messageId": "two", "runId": run_of(two), "position": 1, "busy": "queue",
    }  # fmt: skip
    assert three.json["position"] == 2
    assert (await queue_of(ada, session))[0] == ["two", "three"]
    watching = asyncio.create_task(follow(ada, run_of(three)))
    assert (await ada.get(f"/api/chat/runs/{run_of(two)}")).json["status"] == "queued"
    first.answer()
    second = await llm.next()
    assert second.heard == ["one", "two"]
    second.answer()
    (await llm.next()).answer()
    seen = await watching
    assert seen.text == "You said three."
    assert seen.types[-1] == "finish"
    assert await stored(ada, session) == [
        "one", "You said one.", "two", "You said two.", "three", "You said three.",
    ]  # fmt: skip
    assert await queue_of(ada, session) == ([], {"received": 3, "answered": 3, "queued": 0, "cancelled": 0})


async def test_the_same_message_again_rejoins_its_place_or_its_turn(ada: Client, llm: HeldCatalogue) -> None:
    session = await ada.open()
    one = await send(ada, session, "one")
    call = await llm.next()
    two, again = await send(ada, session, "two"), await send(ada, session, "two", "interrupt")
    assert again.json == two.json
    once_more = await send(ada, session, "one", "reject")
    assert (once_more.status, run_of(once_more)) == (200, run_of(one))
    call.answer()
    (await llm.next()).answer()
    await follow(ada, run_of(two))
    answered = await send(ada, session, "two")
    assert (answered.status, run_of(answered)) == (200, run_of(two))
    assert (await queue_of(ada, session))[1]["received"] == 2


async def test_messages_posted_at_once_are_all_received_once(ada: Client, llm: HeldCatalogue) -> None:
    session = await ada.open()
    names = [f"m{number}" for number in range(4)]
    answers = await asyncio.gather(*(send(ada, session, name) for name in names * 3))
    assert sorted({answer.status for answer in answers}) == [200, 202]
    runs = {name: {run_of(answers[at + 4 * again]) for again in range(3)} for at, name in enumerate(names)}
    assert all(len(found) == 1 for found in runs.values())
    llm.let_go()
    for found in runs.values():
        assert (await follow(ada, found.pop())).types[-1] == "finish"
    assert (await queue_of(ada, session))[1] == {
        "received": 4, "answered": 4, "queued": 0, "cancelled": 0,
    }  # fmt: skip


async def test_a_rejected_message_is_not_received(ada: Client, llm: HeldCatalogue) -> None:
    session = await ada.open()
    await send(ada, session, "one", "reject")
    await llm.next()
    refused = await send(ada, session, "two", "reject")
    assert (refused.status, refused.error) == (409, "Another workflow is already running for this chat")
    assert (await queue_of(ada, session))[1]["received"] == 1
    wrong = await send(ada, session, "two", "sometimes")
    assert wrong.status == 400


async def test_a_steering_message_is_seen_by_the_next_model_call_of_the_same_turn(
    ada: Client, llm: HeldCatalogue
) -> None:
    session = await ada.open()
    one = await send(ada, session, "one")
    call = await llm.next()
    steer = await send(ada, session, "two", "steer")
    assert (steer.status, run_of(steer), steer.json["busy"]) == (202, run_of(one), "steer")
    call.answer(*says("Working."), *asks("c", "todo_write", TODO), TOOLS)
    second = await llm.next()
    assert second.heard == ["one", "two"]
    assert type(second.call.messages[-1]).__name__ == "UserMessage"
    second.answer()
    seen = await follow(ada, run_of(one))
    told = [chunk for chunk in seen.chunks if chunk["type"] == "data-steer"]
    assert told == [{"type": "data-steer", "id": "two", "data": {"messageId": "two", "text": "two"}}]
    assert await stored(ada, session) == ["one", "two", "Working.You said two."]
    assert (await queue_of(ada, session))[1]["answered"] == 2
    # What later turns see has it in the same place, once.
    await send(ada, session, "three")
    third = await llm.next()
    assert third.heard == ["one", "two", "three"]
    kinds = [type(message).__name__ for message in third.call.messages]
    assert kinds == [
        "UserMessage", "AssistantMessage", "ToolMessage", "UserMessage", "AssistantMessage", "UserMessage",
    ]  # fmt: skip
    again = await send(ada, session, "two")
    assert (again.status, run_of(again)) == (200, run_of(one))


async def test_a_steering_message_that_the_turn_did_not_take_is_next(ada: Client, llm: HeldCatalogue) -> None:
    session = await ada.open()
    await send(ada, session, "one")
    call = await llm.next()
    await send(ada, session, "later")
    await send(ada, session, "steer", "steer")
    assert (await queue_of(ada, session))[0] == ["steer", "later"]
    call.answer()
    second = await llm.next()
    assert second.heard == ["one", "steer"]
    again = await send(ada, session, "steer")
    assert again.status == 200
    second.answer()
    assert (await llm.next()).heard == ["one", "steer", "later"]


async def test_an_interrupting_message_ends_the_turn_and_is_next(ada: Client, llm: HeldCatalogue) -> None:
    session = await ada.open()
    one = await send(ada, session, "one")
    await llm.next()
    await send(ada, session, "later")
    now = await send(ada, session, "now", "interrupt")
    assert (now.status, now.json["position"]) == (202, 1)
    second = await llm.next()
    assert second.heard[-1] == "now"
    assert (await ada.get(f"/api/chat/runs/{run_of(one)}")).json["status"] == "cancelled"
    # Sent again, it does not interrupt itself.
    again = await send(ada, session, "now", "interrupt")
    assert (again.status, run_of(again)) == (200, run_of(now))
    second.answer()
    assert (await follow(ada, run_of(now))).text == "You said now."
    assert (await llm.next()).heard[-1] == "later"


async def test_a_turn_that_waits_for_a_place_is_interrupted_at_once(
    databases: Databases, tmp_path: Path, llm: HeldCatalogue
) -> None:
    await databases.sqlite_file(tmp_path)
    async with serve(tmp_path, catalogue=llm, runs_at_once="1") as served:
        ada = await served.client()
        other, session = await ada.open(), await ada.open()
        await send(ada, other, "busy")
        call = await llm.next()
        one = await send(ada, session, "one")
        assert (await send(ada, session, "now", "interrupt")).status == 202
        assert (await ada.get(f"/api/chat/runs/{run_of(one)}")).json["status"] == "cancelled"
        assert (await queue_of(ada, session))[1]["answered"] == 2
        call.answer()
        assert (await llm.next()).heard == ["one", "now"]
        llm.let_go()


async def test_a_stop_ends_one_turn_and_the_queue_goes_on(ada: Client, llm: HeldCatalogue) -> None:
    session = await ada.open()
    await send(ada, session, "one")
    await llm.next()
    await send(ada, session, "two")
    stopped = await ada.post(f"/api/chat/{session['chat']['id']}/stop")
    assert stopped.json == {"success": True, "stopped": True}
    assert (await llm.next()).heard == ["one", "two"]


async def test_a_waiting_message_can_be_edited_and_moved(ada: Client, llm: HeldCatalogue) -> None:
    session = await ada.open()
    await send(ada, session, "one")
    call = await llm.next()
    for name in ("two", "three", "four"):
        await send(ada, session, name)
    moved = await ada.patch(item_path(session, "four"), {"position": 1})
    assert (moved.status, moved.json["message"]["position"]) == (200, 1)
    assert (await queue_of(ada, session))[0] == ["four", "two", "three"]
    await ada.patch(item_path(session, "four"), {"position": 99})
    parts = [{"type": "text", "text": "zwei"}]
    edited = await ada.patch(item_path(session, "two"), {"parts": parts, "position": 2})
    assert edited.json["message"]["message"]["parts"] == parts
    assert (await queue_of(ada, session))[0] == ["three", "two", "four"]
    call.answer()
    (await llm.next()).answer()
    assert (await llm.next()).heard == ["one", "three", "zwei"]
    late = await ada.patch(item_path(session, "two"), {"parts": parts})
    assert (late.status, late.error) == (409, "This message is being answered already")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "At least one field is required"),
        ({"parts": []}, "The message has neither text nor a file"),
        ({"position": 0}, "Too small: expected number to be >=1"),
    ],
)
async def test_a_change_that_makes_no_sense_is_refused(
    ada: Client, llm: HeldCatalogue, body: dict[str, Any], text: str
) -> None:
    session = await ada.open()
    await send(ada, session, "one")
    await llm.next()
    await send(ada, session, "two")
    answer = await ada.patch(item_path(session, "two"), body)
    assert (answer.status, answer.error) == (400, text)
    for method in ("PATCH", "DELETE"):
        unknown = await ada.request(method, item_path(session, "unknown"), {"position": 1})
        assert (unknown.status, unknown.error) == (404, "Message not found")


async def test_a_cancelled_message_is_never_answered(ada: Client, llm: HeldCatalogue) -> None:
    session = await ada.open()
    await send(ada, session, "one")
    call = await llm.next()
    two = await send(ada, session, "two")
    await send(ada, session, "three")
    watching = asyncio.create_task(follow(ada, run_of(two)))
    for _ in range(2):
        assert (await ada.delete(item_path(session, "two"))).json == {"success": True}
    seen = await watching
    assert (seen.types, seen.done) == (["finish"], True)
    assert (await ada.get(f"/api/chat/runs/{run_of(two)}")).json["status"] == "cancelled"
    again = await send(ada, session, "two")
    assert (again.status, again.error) == (409, "This message was cancelled")
    assert (await ada.patch(item_path(session, "two"), {"position": 1})).status == 409
    call.answer()
    assert (await llm.next()).heard == ["one", "three"]
    late = await ada.delete(item_path(session, "three"))
    assert (late.status, late.error) == (409, "This message is being answered already")
    assert (await queue_of(ada, session))[1] == {
        "received": 3, "answered": 2, "queued": 0, "cancelled": 1,
    }  # fmt: skip


async def test_of_a_cancellation_and_a_beginning_one_wins(ada: Client, llm: HeldCatalogue) -> None:
    llm_calls = 0
    for _ in range(5):
        session = await ada.open()
        await send(ada, session, "one")
        call = await llm.next()
        two = await send(ada, session, "two")
        call.answer()
        cancelled = await ada.delete(item_path(session, "two"))
        if cancelled.status == 409:
            llm_calls += 1
            (await llm.next()).answer()
        seen = await follow(ada, run_of(two))
        assert seen.text == ("You said two." if cancelled.status == 409 else "")
        counts = (await queue_of(ada, session))[1]
        assert (counts["answered"], counts["cancelled"]) == ((2, 0) if cancelled.status == 409 else (1, 1))


async def test_a_chat_holds_so_many_waiting_messages_and_refuses_more(
    ada: Client, llm: HeldCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fermata.flows.run_turn.QUEUE_LIMIT", 2)
    session = await ada.open()
    await send(ada, session, "one")
    await llm.next()
    answers = [await send(ada, session, name) for name in ("two", "three", "four")]
    assert [answer.status for answer in answers] == [202, 202, 429]
    assert (await queue_of(ada, session))[1]["received"] == 3


async def test_nobody_can_send_a_message_under_the_id_of_an_answer(ada: Client, llm: HeldCatalogue) -> None:
    session = await ada.open()
    one = await send(ada, session, "one")
    call = await llm.next()
    stream = await ada.http.get(
        f"{ada.url}/api/chat/{run_of(one)}/stream", headers={"x-api-key": ada.key or ""}
    )
    head = (await stream.content.readuntil(b"\n\n")).decode()
    stream.close()
    answer_id = head.split('"messageId":"')[1].split('"')[0]
    for busy in ("queue", "steer"):
        refused = await send(ada, session, answer_id, busy)
        assert (refused.status, refused.error) == (409, "A message with this id exists in the chat already")
    call.answer()
    await follow(ada, run_of(one))
    assert await stored(ada, session) == ["one", "You said one."]


async def test_an_archived_session_keeps_its_queue_and_goes_on_when_it_is_unarchived(
    ada: Client, llm: HeldCatalogue
) -> None:
    session = await ada.open()
    one = await send(ada, session, "one")
    await llm.next()
    await send(ada, session, "two")
    path = f"/api/sessions/{session['id']}"
    assert (await ada.patch(path, {"status": "archived"})).status == 200
    await follow(ada, run_of(one))
    assert (await queue_of(ada, session))[0] == ["two"]
    assert (await send(ada, session, "three")).status == 409
    assert (await ada.patch(path, {"status": "running"})).status == 200
    assert (await llm.next()).heard == ["one", "two"]


async def test_deleting_a_chat_lets_go_who_waits_for_its_queue(ada: Client, llm: HeldCatalogue) -> None:
    session = await ada.open()
    await ada.post(f"/api/sessions/{session['id']}/chats")
    await send(ada, session, "one")
    await llm.next()
    two = await send(ada, session, "two")
    watching = asyncio.create_task(follow(ada, run_of(two)))
    await asyncio.sleep(0)
    path = f"/api/sessions/{session['id']}/chats/{session['chat']['id']}"
    assert (await ada.delete(path)).status == 200
    assert (await watching).types in (["finish"], [])
    assert (await ada.get(f"/api/chat/{run_of(two)}/stream")).status == 404


async def test_deleting_a_message_removes_it_and_what_follows(ada: Client, llm: HeldCatalogue) -> None:
    session = await ada.open()
    llm.let_go()
    for name in ("one", "two", "three"):
        await follow(ada, run_of(await send(ada, session, name)))
    path = f"/api/sessions/{session['id']}/chats/{session['chat']['id']}"
    messages = (await ada.get(path)).json["messages"]
    ids = [message["id"] for message in messages]
    wrong = await ada.delete(f"{path}/messages/{ids[1]}")
    assert (wrong.status, wrong.error) == (400, "Only user messages can be deleted")
    missing = await ada.delete(f"{path}/messages/missing")
    assert (missing.status, missing.error) == (404, "Message not found")
    deleted = await ada.delete(f"{path}/messages/two")
    assert deleted.json == {"success": True, "deletedMessageIds": ids[2:]}
    assert await stored(ada, session) == ["one", "You said one."]
    assert (await queue_of(ada, session))[1]["received"] == 1
    llm.free = False
    # Its id is free again, and what was deleted is not seen any more.
    again = await send(ada, session, "two")
    call = await llm.next()
    assert call.heard == ["one", "two"]
    busy = await ada.delete(f"{path}/messages/one")
    assert (busy.status, busy.error) == (409, "Cannot delete messages while a response is streaming")
    call.answer()
    await follow(ada, run_of(again))


async def test_a_steering_message_can_be_answered_anew(ada: Client, llm: HeldCatalogue) -> None:
    session = await ada.open()
    one = await send(ada, session, "one")
    call = await llm.next()
    await send(ada, session, "two", "steer")
    call.answer(*asks("c", "todo_write", TODO), TOOLS)
    (await llm.next()).answer()
    await follow(ada, run_of(one))
    again = await send(ada, session, "two", trigger="regenerate-message")
    call = await llm.next()
    assert call.heard == ["one", "two"]
    assert run_of(again) != run_of(one)
    busy = await send(ada, session, "one", trigger="regenerate-message")
    assert busy.status == 409
    call.answer()
    await follow(ada, run_of(again))
    assert await stored(ada, session) == ["one", "two", "You said two."]


async def test_the_python_client_waits_for_the_answer_of_a_queued_message(
    held: Served, ada: Client, llm: HeldCatalogue
) -> None:
    session = await ada.open()
    await send(ada, session, "one")
    call = await llm.next()

    async def ask() -> str:
        async with PythonClient(held.url, ada.key or "") as client:
            chunks = [chunk async for chunk in client.chat(session["id"], session["chat"]["id"], "two")]
        return "".join(chunk.get("delta", "") for chunk in chunks)

    asking = asyncio.create_task(ask())
    while not (await queue_of(ada, session))[0]:
        await asyncio.sleep(0.01)
    call.answer()
    (await llm.next()).answer()
    assert await asking == "You said two."
