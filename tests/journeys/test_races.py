"""Many requests at once, and requests that come at the wrong moment, over real HTTP."""

import asyncio

import pytest
from tests.journeys.conftest import MakePlace
from tests.support.places import Place
from tests.support.processes import Seen, commands_running, stored_messages, watch
from tests.support.watched import until

from fermata.kit.errors import SandboxFailedError, SandboxUnsupportedError
from fermata.sandboxes import store as sandboxes

#: A command that nobody else runs, and how to find it.
LONG = "sleep 61.7"


# ---- one sandbox ----


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_ten_requests_beside_the_orchestrator_start_one_sandbox(
    make_place: MakePlace, kind: str
) -> None:
    place = await make_place(kind, orchestrator="true")
    await place.open()
    answers = await asyncio.gather(*(place.start() for _ in range(10)))
    assert [answer.status for answer in answers] == [200] * 10, answers[0].raw
    assert place.provider.count("create", place.sandbox_id) <= 2  # from a base snapshot, then without
    names = [info.name for info in await place.provider.inner.list_sandboxes()]
    assert [name for name in names if not name.startswith("build-")] == [place.sandbox_id]
    assert await place.state() == "active"


async def test_the_status_never_writes(place: Place) -> None:
    await place.open()
    await place.start()
    before = await place.served.fermata.database.read(lambda found: sandboxes.get(found, place.sandbox_id))
    for _ in range(3):
        await place.status()
    after = await place.served.fermata.database.read(lambda found: sandboxes.get(found, place.sandbox_id))
    assert before == after


async def test_a_sandbox_found_dead_is_expired_and_then_woken_with_its_files(place: Place) -> None:
    await place.open()
    await place.start()
    await place.say("echo precious > kept")
    await place.provider.inner.stop(place.sandbox_id)
    assert (await place.status())["status"] == "active"
    found = await place.reconnect()
    assert (found["status"], found["lifecycle"]["state"]) == ("expired", "hibernated")
    assert found["hasSnapshot"] is True
    assert found["lifecycle"]["sandboxExpiresAt"] is None
    assert (await place.status())["status"] == "no_sandbox"
    woken = await place.say("cat kept", message_id="m2")
    assert "precious" in woken.text
    assert (await place.reconnect())["status"] == "connected"


async def test_a_probe_is_no_activity(place: Place) -> None:
    await place.open()
    await place.start()
    before = (await place.status())["lifecycle"]
    await place.reconnect()
    assert (await place.status())["lifecycle"]["lastActivityAt"] == before["lastActivityAt"]


async def test_a_pause_during_the_start_stops_what_was_being_started(place: Place) -> None:
    await place.open()
    with place.provider.holding("create") as gate:
        starting = asyncio.create_task(place.start())
        await asyncio.wait_for(gate.reached.wait(), 10)
        pausing = asyncio.create_task(place.pause())
        gate.open()
        assert (await pausing).status == 200
        await starting
    assert await place.state() == "hibernated"
    assert not await running(place)


async def running(place: Place) -> list[str]:
    """Sandboxes that run, but for the one in which a base snapshot is being built."""
    known = await place.provider.inner.list_sandboxes()
    return [info.name for info in known if info.status == "running" and not info.name.startswith("build-")]


async def test_a_session_deleted_during_its_start_leaves_no_sandbox(place: Place) -> None:
    await place.open()
    with place.provider.holding("create") as gate:
        starting = asyncio.create_task(place.start())
        await asyncio.wait_for(gate.reached.wait(), 10)
        assert (await place.client.delete(f"/api/sessions/{place.session['id']}")).status == 200
        gate.open()
        assert (await starting).status in (200, 404)
    await until(lambda: _is_forgotten(place))


async def _is_forgotten(place: Place) -> bool:
    row = await place.served.fermata.database.read(lambda found: sandboxes.find(found, place.sandbox_id))
    names = [info.name for info in await place.provider.inner.list_sandboxes()]
    return row is None and place.sandbox_id not in names and await place.is_settled()


async def test_a_session_deleted_during_a_turn_leaves_no_sandbox_and_no_command(place: Place) -> None:
    await place.open()
    turn = asyncio.create_task(place.say(LONG))
    await until(lambda: commands_running(LONG))
    assert (await place.client.delete(f"/api/sessions/{place.session['id']}")).status == 200
    await turn
    await until(lambda: _is_forgotten(place))
    assert not commands_running(LONG)


async def test_a_failed_start_is_told_in_words_and_can_be_repeated(place: Place) -> None:
    await place.open()
    with place.provider.failing("create", SandboxFailedError("The moon is in the way.")):
        answer = await place.start()
    assert (answer.status, answer.error) == (502, "Failed to provision sandbox: The moon is in the way.")
    found = (await place.client.get(f"/api/sessions/{place.session['id']}")).json["session"]
    assert (found["lifecycleState"], found["lifecycleError"]) == ("failed", "The moon is in the way.")
    assert (await place.start()).status == 200
    found = (await place.client.get(f"/api/sessions/{place.session['id']}")).json["session"]
    assert (found["lifecycleState"], found["lifecycleError"]) == ("active", None)


async def test_what_this_machine_cannot_do_is_told_at_once(make_place: MakePlace) -> None:
    place = await make_place()
    await place.open()
    with place.provider.failing("create", SandboxUnsupportedError("There are no namespaces here.")):
        answer = await place.start()
    assert answer.status == 502
    assert "There are no namespaces here." in answer.error
    assert place.provider.count("create", place.sandbox_id) <= 2


async def test_a_branch_that_does_not_exist_fails_the_start_and_leaves_no_machine(place: Place) -> None:
    await place.open(branch="no-such-branch")
    answer = await place.start()
    assert answer.status == 404
    assert "has no branch no-such-branch" in answer.error
    assert await place.state() == "failed"
    assert place.sandbox_id not in [info.name for info in await place.provider.inner.list_sandboxes()]


async def test_a_missing_disk_is_an_error_with_choices_and_never_an_empty_workspace(place: Place) -> None:
    await place.open()
    await place.start()
    await place.pause()
    await place.provider.inner.destroy(place.sandbox_id)
    answer = await place.start()
    assert answer.status == 502
    assert "restore the provider's data and try again, or delete the session" in answer.error
    assert await place.state() == "failed"
    turn = await place.say("ls")
    assert "restore the provider's data" in turn.text
    assert place.provider.count("create", place.sandbox_id) <= 2
    assert await place.state() == "failed"


async def test_an_archived_session_sleeps_and_refuses_to_be_started(place: Place) -> None:
    await place.open()
    await place.start()
    turn = asyncio.create_task(place.say("echo before; " + LONG))
    await until(lambda: commands_running(LONG))
    path = f"/api/sessions/{place.session['id']}"
    assert (await place.client.patch(path, {"status": "archived"})).status == 200
    assert (await turn).done
    await until(place.is_settled)
    assert not await running(place)
    assert (await place.start()).status == 409
    assert (await place.say("pwd", message_id="m2")).status == 409
    assert (await place.client.patch(path, {"status": "running"})).status == 200
    assert await place.state() == "hibernated"
    assert (await place.start()).status == 200


@pytest.mark.parametrize("verb", ["create", "resume"])
async def test_a_session_archived_during_its_start_is_not_left_running(place: Place, verb: str) -> None:
    await place.open()
    if verb == "resume":
        await place.start()
        await place.pause()
    path = f"/api/sessions/{place.session['id']}"
    with place.provider.holding(verb) as gate:
        starting = asyncio.create_task(place.start())
        await asyncio.wait_for(gate.reached.wait(), 10)
        assert (await place.client.patch(path, {"status": "archived"})).status == 200
        if verb == "resume":  # the stop that comes with it finds a machine that is not up yet
            await until(lambda: place.provider.count("stop", place.sandbox_id) == 2)
        gate.open()
        answer = await starting
    assert (answer.status, answer.error) == (409, "This session is archived. Unarchive it first.")
    await until(place.is_settled)
    assert await place.state() == "archived"
    assert not await running(place)
    assert (await place.client.patch(path, {"status": "running"})).status == 200
    assert (await place.start()).status == 200


async def test_a_start_goes_on_when_the_session_is_archived_and_unarchived_meanwhile(place: Place) -> None:
    await place.open()
    path = f"/api/sessions/{place.session['id']}"
    with place.provider.holding("create") as gate:
        starting = asyncio.create_task(place.start())
        await asyncio.wait_for(gate.reached.wait(), 10)
        for status in ("archived", "running"):
            assert (await place.client.patch(path, {"status": status})).status == 200
        gate.open()
        assert (await starting).status == 200
    assert await place.state() == "active"
    assert await running(place) == [place.sandbox_id]
    assert "one" in (await place.say("echo one")).text


async def test_another_repository_is_refused(place: Place) -> None:
    await place.open()
    wrong = {"sessionId": place.session["id"], "repoUrl": "https://github.com/recoupable/somebody-else"}
    assert (await place.client.post("/api/sandbox", wrong)).status == 409
    stranger = await place.served.client("Mallory")
    other = Place(place.served, place.provider, stranger)
    other.session = place.session
    assert (await other.start()).status == 403
    alone = await stranger.post("/api/sandbox", {"repoUrl": place.session["cloneUrl"]})
    assert alone.status == 403


# ---- timers ----


async def test_a_sandbox_without_a_session_is_destroyed_at_its_timeout(make_place: MakePlace) -> None:
    place = await make_place(sandbox_lifetime="300ms")
    session = await place.open()
    answer = await place.client.post("/api/sandbox", {"repoUrl": session["cloneUrl"]})
    assert answer.status == 200
    assert answer.json["timeout"] <= 300

    async def is_gone() -> bool:
        names = [info.name for info in await place.provider.inner.list_sandboxes()]
        return not [name for name in names if name.startswith("sandbox-")]

    await until(is_gone)


async def test_a_failed_sandbox_without_a_session_is_forgotten(make_place: MakePlace) -> None:
    place = await make_place()
    session = await place.open()
    with place.provider.failing("create", SandboxFailedError("No.")):
        assert (await place.client.post("/api/sandbox", {"repoUrl": session["cloneUrl"]})).status == 502

    async def is_forgotten() -> bool:
        ids = await place.served.fermata.database.read(lambda found: sandboxes.list_ids(found, "memory"))
        return not [name for name in ids if name.startswith("sandbox-")]

    await until(is_forgotten)


async def test_an_idle_sandbox_hibernates_but_never_during_a_turn(make_place: MakePlace) -> None:
    place = await make_place(sandbox_idle="200ms", sandbox_lifetime="700ms")
    await place.open()
    turn = await place.say("echo one > kept; sleep 1.5; cat kept", "cat kept")
    assert turn.text.count("one") >= 2
    assert place.provider.count("resume", place.sandbox_id) == 0
    await until(lambda: _is(place, "hibernated"))
    assert not await running(place)


async def _is(place: Place, state: str) -> bool:
    return await place.state() == state


# ---- turns ----


async def test_of_two_messages_at_once_each_is_answered_waits_or_is_refused(place: Place) -> None:
    await place.open()
    both = await asyncio.gather(*(place.say("sleep 0.3", message_id=name) for name in ("a", "b")))
    by_status = {seen.status: seen for seen in both}
    assert 200 in by_status
    assert by_status.keys() <= {200, 202, 409}
    answered = 1 if 409 in by_status else 2

    async def is_over() -> bool:
        chats = (await place.client.get(f"/api/sessions/{place.session['id']}/chats")).json["chats"]
        stored = await stored_messages(place.client, place.session)
        return not chats[0]["isStreaming"] and len(stored) >= 2 * answered

    await until(is_over)
    stored = await stored_messages(place.client, place.session)
    assert [one["role"] for one in stored] == ["user", "assistant"] * answered


async def test_a_message_sent_twice_at_once_is_one_turn_with_two_viewers(place: Place) -> None:
    await place.open()
    seen = await asyncio.gather(*(place.say("echo once >> lines; cat lines") for _ in range(5)))
    assert len({one.run_id for one in seen}) == 1
    assert all(one.chunks == seen[0].chunks and one.done for one in seen)
    assert len(await stored_messages(place.client, place.session)) == 2


async def test_a_stop_ends_the_command_keeps_the_text_and_frees_the_chat(place: Place) -> None:
    await place.open()
    await place.start()
    seen = Seen()
    turn = asyncio.create_task(place.say("echo first", LONG, seen=seen))
    await until(lambda: commands_running(LONG))
    answer = await asyncio.wait_for(place.stop(), 3)
    assert answer.json == {"success": True, "stopped": True}
    assert not commands_running(LONG)
    await turn
    assert seen.done
    stored = (await stored_messages(place.client, place.session))[-1]
    assert stored["parts"] == seen.message["parts"]
    assert any(part.get("text") for part in stored["parts"])
    states = [part["state"] for part in stored["parts"] if part["type"] == "tool-bash"]
    assert states == ["output-available", "output-error"]
    path = f"/api/chat/{place.session['chat']['id']}/stream"
    assert (await place.client.get(path)).status == 204
    assert (await place.stop()).json == {"success": True, "stopped": False}
    assert (await place.say("pwd", message_id="m2")).done


async def test_a_stop_ends_a_turn_that_waits_for_a_place(make_place: MakePlace) -> None:
    place = await make_place(runs_at_once="1")
    await place.open()
    first = place.session
    running_turn = asyncio.create_task(place.say(LONG))
    await until(lambda: commands_running(LONG))
    await place.open()
    waiting = asyncio.create_task(place.say("pwd"))
    path = f"/api/chat/{place.session['chat']['id']}/stream"

    async def is_accepted() -> bool:
        chats = (await place.client.get(f"/api/sessions/{place.session['id']}/chats")).json["chats"]
        return bool(chats[0]["isStreaming"])

    await until(is_accepted)
    assert (await asyncio.wait_for(place.stop(), 3)).json["stopped"] is True
    seen = await waiting
    assert seen.done
    assert seen.types[0] == "start"
    assert seen.types[-1] == "finish"
    assert (await place.client.get(path)).status == 204
    place.session = first
    await place.stop()
    await running_turn


async def test_a_pause_is_refused_during_a_turn(place: Place) -> None:
    await place.open()
    turn = asyncio.create_task(place.say(LONG))
    await until(lambda: commands_running(LONG))
    assert (await place.pause()).status == 409
    assert await place.state() == "active"
    await place.stop()
    await turn
    assert (await place.pause()).status == 200


async def test_a_turn_goes_on_when_every_viewer_has_left(place: Place) -> None:
    await place.open()
    seen = Seen()
    turn = asyncio.create_task(place.say("sleep 0.5; echo done > kept", seen=seen))
    await until(lambda: "start" in seen.types)
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)
    rejoined = await watch(place.client, "GET", f"/api/chat/{seen.run_id}/stream")
    assert rejoined.done
    assert "exited with status 0" in rejoined.text


async def test_a_turn_wakes_a_hibernated_sandbox(place: Place) -> None:
    await place.open()
    await place.say("echo precious > kept")
    assert (await place.pause()).status == 200
    assert await place.state() == "hibernated"
    assert "precious" in (await place.say("cat kept", message_id="m2")).text
    assert await place.state() == "active"
