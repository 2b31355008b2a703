"""/api/sessions/{sessionId}/chats over real HTTP."""

import asyncio
from datetime import UTC, datetime
from urllib.parse import quote

from tests.support.serving import Client, Served

from fermata.kit.database import Connection
from fermata.sessions import store

CHAT_KEYS = {
    "id", "sessionId", "title", "modelId", "activeStreamId", "lastAssistantMessageAt", "createdAt",
    "updatedAt",
}  # fmt: skip


async def open_path(client: Client) -> tuple[str, str]:
    """A new session: the path of its chats and the id of its first one."""
    session = await client.open()
    return f"/api/sessions/{session['id']}/chats", session["chat"]["id"]


async def test_a_session_lists_its_chats_oldest_first(served: Served) -> None:
    ada = await served.client()
    path, first = await open_path(ada)
    made = (await ada.post(path)).json["chat"]
    assert set(made) == CHAT_KEYS
    assert made["title"] == "New chat"
    answer = (await ada.get(path)).json
    assert [chat["id"] for chat in answer["chats"]] == [first, made["id"]]
    assert all(set(chat) == CHAT_KEYS | {"hasUnread", "isStreaming"} for chat in answer["chats"])
    assert answer["defaultModelId"] == made["modelId"]


async def test_a_client_may_bring_the_id_of_a_new_chat(served: Served) -> None:
    ada = await served.client()
    path, first = await open_path(ada)
    other_path, _ = await open_path(ada)
    long = "x" * 128
    assert (await ada.post(path, {"id": long})).json["chat"]["id"] == long
    assert (await ada.get(f"{path}/{long}")).status == 200
    assert (await ada.post(path, {"id": first})).json["chat"]["id"] == first
    stolen = await ada.post(other_path, {"id": first})
    assert (stolen.status, stolen.error) == (409, "Chat ID conflict")
    odd = "Ünï codé?#%2F&\n"
    assert (await ada.post(path, {"id": odd})).json["chat"]["id"] == odd
    assert (await ada.get(f"{path}/{quote(odd, safe='')}")).json["chat"]["id"] == odd
    for wrong in ("", 5, None, "x" * 129, "a/b", ".", ".."):
        refused = await ada.post(path, {"id": wrong})
        assert (refused.status, refused.error) == (400, "Invalid chat id")
    for body in (b"{", b"[]", b"null", b""):
        assert (await ada.post(path, body)).status == 200


async def test_two_who_create_the_same_chat_get_the_same_chat(served: Served) -> None:
    ada = await served.client()
    path, _ = await open_path(ada)
    answers = await asyncio.gather(*(ada.post(path, {"id": "same"}) for _ in range(6)))
    assert {answer.status for answer in answers} == {200}
    assert len((await ada.get(path)).json["chats"]) == 2


async def test_messages_come_in_their_order_as_they_were_stored(served: Served) -> None:
    ada = await served.client()
    path, chat = await open_path(ada)
    now = datetime.now(UTC)

    def write(connection: Connection) -> None:
        assert store.insert_user_message(connection, chat, "m1", '{"id":"m1","role":"user"}', None, now)
        assert store.put_assistant_message(connection, chat, "m2", '{"id":"m2","n":1}', None, now)
        assert not store.put_assistant_message(connection, chat, "m1", "{}", None, now), "not a user's"
        assert store.put_assistant_message(connection, chat, "m2", '{"id":"m2","n":2}', "[]", now)

    await served.fermata.database.write(write)
    answer = (await ada.get(f"{path}/{chat}")).json
    assert set(answer) == {"chat", "isStreaming", "messages"}
    assert answer["messages"] == [{"id": "m1", "role": "user"}, {"id": "m2", "n": 2}]


async def test_an_answer_is_unread_until_the_reader_marks_it(served: Served) -> None:
    ada = await served.client()
    path, chat = await open_path(ada)

    async def answer() -> None:
        await served.fermata.database.write(
            lambda connection: store.put_assistant_message(
                connection, chat, "m", "{}", None, datetime.now(UTC)
            )
        )

    async def unread() -> tuple[bool, bool]:
        (summary,) = (await ada.get(path)).json["chats"]
        (item,) = (await ada.get("/api/sessions")).json["sessions"]
        return summary["hasUnread"], item["hasUnread"]

    assert await unread() == (False, False)
    await answer()
    assert await unread() == (True, True)
    assert (await ada.post(f"{path}/{chat}/read")).json == {"success": True}
    assert await unread() == (False, False)
    await answer()
    assert await unread() == (True, True)


async def test_a_chat_with_a_run_is_streaming(served: Served) -> None:
    ada = await served.client()
    path, chat = await open_path(ada)
    claim = served.fermata.database.write
    assert await claim(lambda connection: store.claim_chat(connection, chat, "run-1"))
    assert not await claim(lambda connection: store.claim_chat(connection, chat, "run-2"))
    (summary,) = (await ada.get(path)).json["chats"]
    assert (summary["isStreaming"], summary["activeStreamId"]) == (True, "run-1")
    assert (await ada.get(f"{path}/{chat}")).json["isStreaming"] is True
    assert not await claim(lambda connection: store.release_chat(connection, chat, "run-2"))
    assert await claim(lambda connection: store.release_chat(connection, chat, "run-1"))
    assert (await ada.get(f"{path}/{chat}")).json["isStreaming"] is False


async def test_a_change_that_does_not_fit_is_refused(quick_served: Served) -> None:
    ada = await quick_served.client()
    path, chat = await open_path(ada)
    cases: list[tuple[object, str]] = [
        (b"{", "Invalid JSON body"),
        (b"", "Invalid JSON body"),
        ({}, "At least one field is required"),
        ({"title": "  "}, "title cannot be empty"),
        ({"modelId": ""}, "modelId cannot be empty"),
        ({"title": "a", "x": 1}, 'Unrecognized key: "x"'),
        ({"title": 1}, "Invalid input: expected string, received number"),
    ]
    for body, text in cases:
        answer = await ada.patch(f"{path}/{chat}", body)
        assert (answer.status, answer.error) == (400, text), body


async def test_title_and_model_of_a_chat_can_be_changed(served: Served) -> None:
    ada = await served.client()
    path, chat = await open_path(ada)
    changed = (await ada.patch(f"{path}/{chat}", {"title": " Song "})).json["chat"]
    assert changed["title"] == "Song"
    again = (await ada.patch(f"{path}/{chat}", {"modelId": "openai/any"})).json["chat"]
    assert (again["title"], again["modelId"]) == ("Song", "openai/any")


async def test_a_chat_of_another_session_is_not_found(served: Served) -> None:
    ada = await served.client()
    path, _ = await open_path(ada)
    _, other = await open_path(ada)
    for answer in (
        await ada.get(f"{path}/{other}"),
        await ada.patch(f"{path}/{other}", {"title": "x"}),
        await ada.delete(f"{path}/{other}"),
        await ada.post(f"{path}/{other}/read"),
    ):
        assert (answer.status, answer.error) == (404, "Chat not found")


async def test_of_two_who_delete_the_last_two_chats_one_is_refused(served: Served) -> None:
    ada = await served.client()
    for _ in range(4):
        path, first = await open_path(ada)
        second = (await ada.post(path)).json["chat"]["id"]
        answers = await asyncio.gather(ada.delete(f"{path}/{first}"), ada.delete(f"{path}/{second}"))
        assert sorted(answer.status for answer in answers) == [200, 400]
        refused = next(answer for answer in answers if answer.status == 400)
        assert refused.error == "Cannot delete the only chat in a session"
        assert len((await ada.get(path)).json["chats"]) == 1
