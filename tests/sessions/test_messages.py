"""Messages, slots and names of chats, as a turn writes them."""

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta

import pytest

from fermata.accounts.model import Account, AccountKind
from fermata.accounts.store import insert_account
from fermata.kit.database import Connection, Database
from fermata.kit.ids import new_id
from fermata.sessions import store
from fermata.sessions.model import Chat, ChatRun, Session, SessionStatus

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)


def make_chat(connection: Connection) -> Chat:
    account = Account(new_id(), AccountKind.PERSON, "Ada", NOW)
    insert_account(connection, account)
    session = Session(
        id=new_id(), account_id=account.id, organization_id=None, artist_id=None, title="t",
        status=SessionStatus.RUNNING, repo_owner=None, repo_name=None, branch=None, clone_url=None,
        is_new_branch=False, global_skill_refs=[], lines_added=0, lines_removed=0, cached_diff=None,
        cached_diff_updated_at=None, active_at=NOW, created_at=NOW, updated_at=NOW,
    )  # fmt: skip
    store.insert_session(connection, session)
    chat = Chat(new_id(), session.id, "New chat", "demo", None, None, NOW, NOW)
    assert store.insert_chat(connection, chat)
    return chat


@pytest.fixture
async def chat(database: Database) -> Chat:
    return await database.write(make_chat)


async def test_messages_written_at_once_all_get_a_place_of_their_own(database: Database, chat: Chat) -> None:
    def add(number: int) -> Coroutine[object, object, bool]:
        return database.write(
            lambda found: store.insert_user_message(found, chat.id, f"m{number}", "{}", f"[{number}]", NOW)
        )

    assert all(await asyncio.gather(*(add(number) for number in range(20))))
    stored = await database.read(lambda found: store.list_messages(found, chat.id))
    assert {message.id for message in stored} == {f"m{number}" for number in range(20)}
    assert len(await database.read(lambda found: store.list_history(found, chat.id))) == 20


async def test_a_message_id_is_taken_once(database: Database, chat: Chat) -> None:
    def add(text: str) -> Coroutine[object, object, bool]:
        return database.write(
            lambda found: store.insert_user_message(found, chat.id, "same", text, None, NOW)
        )

    taken = await asyncio.gather(add("1"), add("2"), add("3"))
    assert sorted(taken) == [False, False, True]


async def test_nothing_is_written_into_a_chat_that_is_gone(database: Database, chat: Chat) -> None:
    await database.write(lambda found: store.delete_chat(found, chat.id))
    write = database.write
    assert not await write(lambda found: store.insert_user_message(found, chat.id, "m", "{}", None, NOW))
    assert not await write(lambda found: store.put_assistant_message(found, chat.id, "m", "{}", None, NOW))
    assert not await write(lambda found: store.claim_chat(found, chat.id, "run"))


async def test_history_skips_what_a_model_does_not_see(database: Database, chat: Chat) -> None:
    def write(connection: Connection) -> None:
        store.insert_user_message(connection, chat.id, "a", "{}", "[1]", NOW)
        store.put_assistant_message(connection, chat.id, "b", "{}", None, NOW)
        store.put_assistant_message(connection, chat.id, "c", "{}", "[2]", LATER)

    await database.write(write)
    assert list(await database.read(lambda found: store.list_history(found, chat.id))) == ["[1]", "[2]"]
    found = await database.read(lambda connection: store.find_chat(connection, chat.id))
    assert found is not None
    assert found.last_assistant_message_at == LATER


async def test_what_followed_a_message_can_be_taken_back(database: Database, chat: Chat) -> None:
    def write(connection: Connection) -> int:
        for name in ("a", "b", "c"):
            store.insert_user_message(connection, chat.id, name, "{}", None, NOW)
        assert store.delete_after(connection, chat.id, "nobody") == 0
        return store.delete_after(connection, chat.id, "a")

    assert await database.write(write) == 2
    left = await database.read(lambda found: store.list_messages(found, chat.id))
    assert [message.id for message in left] == ["a"]


async def test_only_one_of_many_runs_gets_the_chat(database: Database, chat: Chat) -> None:
    def claim(number: int) -> Coroutine[object, object, bool]:
        return database.write(lambda found: store.claim_chat(found, chat.id, f"run-{number}"))

    won = await asyncio.gather(*(claim(number) for number in range(8)))
    assert sum(won) == 1


async def test_a_chat_is_named_by_its_first_message_only(database: Database, chat: Chat) -> None:
    def name(connection: Connection, title: str) -> bool:
        return store.set_title_if_first(connection, chat.id, title, LATER)

    def first(connection: Connection) -> None:
        store.insert_user_message(connection, chat.id, "a", "{}", None, NOW)
        assert name(connection, "From the first")
        assert not name(connection, "Twice")

    await database.write(first)

    def second(connection: Connection) -> Chat:
        other = make_chat(connection)
        for message in ("a", "b"):
            store.insert_user_message(connection, other.id, message, "{}", None, NOW)
        assert not store.set_title_if_first(connection, other.id, "Too late", LATER)
        return other

    await database.write(second)
    named = await database.read(lambda found: store.find_chat(found, chat.id))
    assert named is not None
    assert named.title == "From the first"


async def test_the_newest_run_of_a_message_is_found(database: Database, chat: Chat) -> None:
    def write(connection: Connection) -> None:
        for run, at in (("r1", NOW), ("r2", LATER)):
            store.insert_chat_run(connection, ChatRun(run, chat.id, "m", f"answer of {run}", at))

    await database.write(write)
    found = await database.read(lambda item: store.find_chat_run_for_message(item, chat.id, "m"))
    assert found is not None
    assert found.run_id == "r2"
    assert await database.read(lambda item: store.find_chat_run(item, "r1")) is not None
    assert await database.read(lambda item: store.find_chat_run_for_message(item, chat.id, "x")) is None


async def test_the_time_of_a_session_never_goes_back(database: Database, chat: Chat) -> None:
    await database.write(lambda found: store.touch_session(found, chat.session_id, LATER))
    await database.write(lambda found: store.touch_session(found, chat.session_id, NOW))
    session = await database.read(lambda found: store.find_session(found, chat.session_id))
    assert session is not None
    assert session.active_at == LATER
