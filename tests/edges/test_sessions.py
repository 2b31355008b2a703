"""/api/sessions over real HTTP."""

import asyncio
import re
from datetime import timedelta
from typing import Any

from tests.support.serving import Client, Served

from fermata.sandboxes import store as sandboxes

SESSION_KEYS = {
    "id", "userId", "artistId", "title", "status", "repoOwner", "repoName", "branch", "cloneUrl",
    "isNewBranch", "globalSkillRefs", "sandboxState", "lifecycleState", "lifecycleVersion", "lastActivityAt",
    "sandboxExpiresAt", "hibernateAfter", "lifecycleRunId", "lifecycleError", "linesAdded", "linesRemoved",
    "snapshotUrl", "snapshotCreatedAt", "snapshotSizeBytes", "cachedDiff", "cachedDiffUpdatedAt", "createdAt",
    "updatedAt",
}  # fmt: skip
CHAT_KEYS = {
    "id", "sessionId", "title", "modelId", "activeStreamId", "lastAssistantMessageAt", "createdAt",
    "updatedAt",
}  # fmt: skip
UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

OLD_BODY = {
    "title": "Old form",
    "branch": "feature/x",
    "isNewBranch": False,
    "sandboxType": "vercel",
}


FORMS: list[object] = [None, b"", b"  \n", {}, {"title": "New form"}, OLD_BODY, {"unknown": [1]}]


async def test_every_form_of_the_body_opens_a_session(served: Served) -> None:
    ada = await served.client()
    for body in FORMS:
        await check_opened(ada, body)


async def check_opened(ada: Client, body: object) -> None:
    answer = await ada.post("/api/sessions", body)
    assert answer.status == 200
    session, chat = answer.json["session"], answer.json["chat"]
    assert set(answer.json) == {"session", "chat"}
    assert set(session) == SESSION_KEYS
    assert set(chat) == CHAT_KEYS
    assert UUID4.fullmatch(session["id"])
    assert UUID4.fullmatch(chat["id"])
    assert session["userId"] == ada.account.id
    assert session["status"] == "running"
    assert session["lifecycleState"] == "provisioning"
    assert session["lifecycleVersion"] == 0
    assert session["sandboxState"] == {"type": "memory"}
    assert session["globalSkillRefs"] == []
    assert (session["linesAdded"], session["linesRemoved"]) == (0, 0)
    assert session["lastActivityAt"] is session["sandboxExpiresAt"] is session["hibernateAfter"] is None
    assert session["cloneUrl"] == f"https://github.com/recoupable/{ada.account.id}"
    assert (session["repoOwner"], session["repoName"]) == ("recoupable", ada.account.id)
    assert INSTANT.fullmatch(session["createdAt"])
    assert chat["sessionId"] == session["id"]
    assert chat["title"] == "New chat"
    assert isinstance(chat["modelId"], str)
    again = await ada.get(f"/api/sessions/{session['id']}")
    assert again.json == {"session": session}


REFUSED: list[tuple[object, str, list[str]]] = [
    (b"{", "Invalid JSON body", []),
    (b"\xff\xfe", "Invalid JSON body", []),
    (b'{"title": NaN}', "Invalid JSON body", []),
    (b"null", "Invalid input: expected object, received null", []),
    (b"[]", "Invalid input: expected object, received array", []),
    (b'"text"', "Invalid input: expected object, received string", []),
    (b"7", "Invalid input: expected object, received number", []),
    ({"title": None}, "Invalid input: expected string, received null", ["title"]),
    ({"title": 4}, "Invalid input: expected string, received number", ["title"]),
    ({"title": True}, "Invalid input: expected string, received boolean", ["title"]),
    ({"title": []}, "Invalid input: expected string, received array", ["title"]),
    ({"title": {}}, "Invalid input: expected string, received object", ["title"]),
    ({"title": "a\0b"}, "A text in the body holds a NUL character", []),
    ({"organizationId": "x"}, "organizationId must be a valid UUID", ["organizationId"]),
    ({"organizationId": 3}, "organizationId must be a valid UUID", ["organizationId"]),
    (
        {"artistId": "00000000-0000-9000-0000-000000000001"},
        "artistId must be a valid UUID",
        ["artistId"],
    ),
    ({"repoOwner": "a--b", "repoName": "x"}, "Invalid repository owner", []),
    ({"repoOwner": "a", "repoName": ".."}, "Invalid repository name", []),
    ({"repoOwner": "a"}, "repoOwner and repoName must be given together", ["repoName"]),
    ({"repoName": "a"}, "repoOwner and repoName must be given together", ["repoOwner"]),
    (
        {"cloneUrl": "https://example.com/a/b"},
        "cloneUrl must be a valid GitHub repository URL",
        ["cloneUrl"],
    ),
    ({"branch": "a..b"}, "Invalid branch", ["branch"]),
    ({"isNewBranch": "yes"}, "Invalid input: expected boolean, received string", ["isNewBranch"]),
    ({"sandboxType": "docker"}, "Invalid sandbox type", ["sandboxType"]),
    ({"sandboxType": 5}, "Invalid sandbox type", ["sandboxType"]),
]


async def test_a_body_that_does_not_fit_is_refused_in_the_known_words(quick_served: Served) -> None:
    ada = await quick_served.client()
    for body, text, field in REFUSED:
        answer = await ada.post("/api/sessions", body)
        assert (answer.status, answer.error) == (400, text), body
        assert answer.json["missing_fields"] == field, body
    assert (await ada.get("/api/sessions")).json["sessions"] == []


async def test_titles_are_trimmed_and_blank_ones_made_up(quick_served: Served) -> None:
    ada = await quick_served.client()
    assert (await ada.open(title="  Tour plan "))["title"] == "Tour plan"
    assert (await ada.open(title="  "))["title"].strip()


async def test_a_new_branch_is_named_after_the_account(quick_served: Served) -> None:
    ada = await quick_served.client("Ada Lovelace")
    session = await ada.open(isNewBranch=True, branch="not..valid")
    assert re.fullmatch(r"al/[0-9a-f]{8}", session["branch"])
    assert session["isNewBranch"] is True
    given = await ada.open(branch="feature/x")
    assert (given["branch"], given["isNewBranch"]) == ("feature/x", False)


async def test_repositories_of_others_are_refused(served: Served) -> None:
    ada, bob = await served.client(), await served.client("Bob")
    for body in (
        {"cloneUrl": f"https://github.com/recoupable/{bob.account.id}"},
        {"repoOwner": "recoupable", "repoName": bob.account.id},
        {"repoOwner": "torvalds", "repoName": "linux"},
    ):
        answer = await ada.post("/api/sessions", body)
        assert answer.status == 403
        assert answer.error == "Access denied to specified repository"
    await served.fermata.accounts.link_repository(ada.account.id, "Torvalds", "Linux")
    linked = await ada.open(repoOwner="torvalds", repoName="linux")
    assert linked["cloneUrl"] == "https://github.com/torvalds/linux"
    both = {"repoOwner": "recoupable", "repoName": ada.account.id, "cloneUrl": linked["cloneUrl"]}
    mixed = await ada.post("/api/sessions", both)
    assert (mixed.status, mixed.error) == (400, "cloneUrl does not match repoOwner and repoName")
    own = await ada.open(cloneUrl=f"https://github.com/Recoupable/{ada.account.id.upper()}.git")
    assert own["cloneUrl"] == f"https://github.com/recoupable/{ada.account.id}"
    assert (await bob.post("/api/sessions", {"repoOwner": "torvalds", "repoName": "linux"})).status == 403


async def test_an_organization_shares_its_sessions_with_its_members_only(served: Served) -> None:
    ada, bob, eve = [await served.client(name) for name in ("Ada", "Bob", "Eve")]
    made = await ada.post("/api/organizations", {"name": "Band"})
    organization = made.json["organization"]["id"]
    assert (await eve.post("/api/sessions", {"organizationId": organization})).status == 403
    session = await ada.open(organizationId=organization.upper())
    assert session["cloneUrl"] == f"https://github.com/recoupable/{organization}"
    path = f"/api/sessions/{session['id']}"
    assert (await bob.get(path)).status == 403
    added = await ada.post(
        "/api/organizations/members", {"organizationId": organization, "accountId": bob.account.id}
    )
    assert added.status == 200
    assert (await bob.get(path)).status == 200
    assert [item["id"] for item in (await bob.get("/api/sessions")).json["sessions"]] == [session["id"]]
    assert (await bob.delete(path)).status == 403, "only the owner deletes"
    assert (await eve.get(path)).error == "Forbidden"
    private = await bob.open()
    assert (await ada.get(f"/api/sessions/{private['id']}")).status == 403, (
        "membership is no power of attorney"
    )
    ambiguous = await ada.post(
        "/api/sessions", {"organizationId": organization, "repoOwner": "a", "repoName": "b"}
    )
    assert ambiguous.status == 400


async def test_artists_are_used_by_their_owners_only(served: Served) -> None:
    ada, eve = await served.client("Ada"), await served.client("Eve")
    artist = (await ada.post("/api/artists", {"name": "Singer"})).json["artist"]["id"]
    assert (await ada.open(artistId=artist))["artistId"] == artist
    refused = await eve.post("/api/sessions", {"artistId": artist})
    assert (refused.status, refused.error) == (403, "Access denied to specified artistId")
    organization = (await eve.post("/api/organizations", {"name": "Label"})).json["organization"]["id"]
    stolen = await eve.post(
        "/api/organizations/artists", {"artistId": artist, "organizationId": organization}
    )
    assert stolen.status == 403


async def test_the_same_idempotency_key_gives_the_same_bytes(served: Served) -> None:
    ada, bob = await served.client(), await served.client("Bob")
    key = {"Idempotency-Key": "one"}
    first = await ada.post("/api/sessions", {"title": "x", "branch": "b"}, headers=key)
    again = await ada.post("/api/sessions", {"branch": "b", "title": "x"}, headers=key)
    assert again.raw == first.raw
    other = await ada.post("/api/sessions", {"title": "y"}, headers=key)
    assert other.status == 409
    assert (await bob.post("/api/sessions", {"title": "y"}, headers=key)).status == 200
    assert len((await ada.get("/api/sessions")).json["sessions"]) == 1
    for wrong in ("", "a b", "ü", "x" * 256):
        refused = await ada.post("/api/sessions", headers={"Idempotency-Key": wrong})
        assert refused.status == 400


async def test_eight_at_once_with_one_idempotency_key_open_one_session(served: Served) -> None:
    ada = await served.client()
    key = {"Idempotency-Key": "race"}
    answers = await asyncio.gather(*(ada.post("/api/sessions", headers=key) for _ in range(8)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.raw for answer in answers}) == 1
    assert len((await ada.get("/api/sessions")).json["sessions"]) == 1


async def test_sixteen_sessions_opened_at_once_have_sixteen_titles(served: Served) -> None:
    ada = await served.client()
    opened = await asyncio.gather(*(ada.open() for _ in range(16)))
    assert len({session["title"] for session in opened}) == 16


async def test_lists_are_paged_without_gaps_or_repeats(served: Served) -> None:
    ada, bob = await served.client("Ada"), await served.client("Bob")
    organization = (await bob.post("/api/organizations", {"name": "Band"})).json["organization"]["id"]
    member = {"organizationId": organization, "accountId": ada.account.id}
    await bob.post("/api/organizations/members", member)
    opened = []
    for number in range(7):
        opened.append(await ada.open(title=f"mine {number}"))
        opened.append(await bob.open(title=f"shared {number}", organizationId=organization))
    await bob.open(title="private")
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await ada.get(f"/api/sessions?limit=3&cursor={cursor}")).json
        assert len(page["sessions"]) <= 3
        seen += [item["id"] for item in page["sessions"]]
        if page["nextCursor"] is None:
            break
        cursor = page["nextCursor"]
    assert seen == [session["id"] for session in reversed(opened)]


async def test_lists_can_be_searched_and_filtered(served: Served) -> None:
    ada = await served.client()
    for title in ("100% Äpfel", "1000 apples", "under_score", "underXscore"):
        await ada.open(title=title)
    done = await ada.open(title="done")
    await ada.patch(f"/api/sessions/{done['id']}", {"status": "completed"})

    async def titles(query: str) -> set[str]:
        return {item["title"] for item in (await ada.get(f"/api/sessions?{query}")).json["sessions"]}

    assert await titles("q=%C3%A4PFEL") == {"100% Äpfel"}
    assert await titles("q=100%25") == {"100% Äpfel"}
    assert await titles("q=r_s") == {"under_score"}
    assert await titles("status=completed") == {"done"}
    assert "done" in await titles("status=active")
    assert await titles("status=archived") == set()
    assert len(await titles("status=all")) == 5


async def test_a_list_says_what_a_screen_needs_of_the_chats(quick_served: Served) -> None:
    ada = await quick_served.client()
    session = await ada.open()
    (item,) = (await ada.get("/api/sessions")).json["sessions"]
    assert set(item) == SESSION_KEYS | {"hasUnread", "hasStreaming", "latestChatId"}
    assert item["latestChatId"] == session["chat"]["id"]
    assert (item["hasUnread"], item["hasStreaming"]) == (False, False)


async def test_a_query_that_does_not_fit_is_refused(quick_served: Served) -> None:
    ada = await quick_served.client()
    cases = [
        ("status=nope", "Invalid status filter"),
        ("limit=0", "Invalid limit"),
        ("limit=101", "Invalid limit"),
        ("limit=x", "Invalid limit"),
        ("cursor=!!!", "Invalid cursor"),
        ("cursor=WzEsMl0", "Invalid cursor"),
        ("cursor=bnVsbA", "Invalid cursor"),
        ("q=%00", "q holds a NUL character"),
    ]
    for query, text in cases:
        answer = await ada.get(f"/api/sessions?{query}")
        assert (answer.status, answer.error) == (400, text), query


async def test_changes_touch_only_what_is_given(served: Served) -> None:
    ada = await served.client()
    session = await ada.open(title="before")
    session.pop("chat")
    path = f"/api/sessions/{session['id']}"
    assert (await ada.patch(path)).json["session"] == session, "an empty body changes nothing"
    assert (await ada.patch(path, {"other": 1})).json["session"] == session
    changed = (await ada.patch(path, {"title": "", "linesAdded": 7})).json["session"]
    assert (changed["title"], changed["linesAdded"], changed["linesRemoved"]) == ("", 7, 0)
    assert changed["updatedAt"] >= session["updatedAt"]
    for body, text in (
        (b"{", "Invalid JSON body"),
        ({"linesAdded": -1}, "Too small: expected number to be >=0"),
        ({"linesAdded": 1.5}, "Invalid input: expected int, received number"),
        ({"linesAdded": "1"}, "Invalid input: expected number, received string"),
        (
            {"status": "paused"},
            'Invalid option: expected one of "running"|"completed"|"failed"|"archived"',
        ),
    ):
        answer = await ada.patch(path, body)
        assert (answer.status, answer.error) == (400, text)


async def test_a_change_can_be_bound_to_a_lifecycle_version(served: Served) -> None:
    ada = await served.client()
    session = await ada.open()
    path = f"/api/sessions/{session['id']}"
    assert (await ada.patch(path, {"title": "x"}, headers={"If-Match": '"0"'})).status == 200
    stale = await ada.patch(path, {"title": "y"}, headers={"If-Match": "5"})
    assert stale.status == 412
    assert (await ada.patch(path, {"title": "y"}, headers={"If-Match": "abc"})).status == 400
    assert (await ada.get(path)).json["session"]["title"] == "x"


async def test_a_session_goes_into_the_archive_and_out_again(served: Served) -> None:
    ada = await served.client()
    session = await ada.open()
    path = f"/api/sessions/{session['id']}"
    archived = (await ada.patch(path, {"status": "archived"})).json["session"]
    assert (archived["status"], archived["lifecycleState"]) == ("archived", "archived")
    assert archived["lifecycleVersion"] == 1
    again = (await ada.patch(path, {"status": "archived"})).json["session"]
    assert again["lifecycleVersion"] == 1, "twice is once"
    back = (await ada.patch(path, {"status": "running"})).json["session"]
    assert (back["status"], back["lifecycleState"]) == ("running", "provisioning")


async def test_a_deleted_session_is_gone_with_its_chats_and_its_sandbox(served: Served) -> None:
    ada = await served.client()
    session = await ada.open()
    path = f"/api/sessions/{session['id']}"
    started = await ada.post("/api/sandbox", {"repoUrl": session["cloneUrl"], "sessionId": session["id"]})
    assert started.status == 200, started.raw
    answer = await ada.delete(path)
    assert (answer.status, answer.json) == (200, {"success": True})
    assert (await ada.get(path)).error == "Session not found"
    assert (await ada.get(f"{path}/chats")).status == 404
    assert (await ada.delete(path)).status == 404
    async with asyncio.timeout(10):
        while await served.fermata.database.read(
            lambda connection: sandboxes.find(connection, f"session-{session['id']}")
        ):
            await asyncio.sleep(0.02)


async def test_an_archived_machine_sleeps_and_comes_back_with_its_files(served: Served) -> None:
    ada = await served.client()
    session = await ada.open()
    path = f"/api/sessions/{session['id']}"
    wake = {"repoUrl": session["cloneUrl"], "sessionId": session["id"]}
    assert (await ada.post("/api/sandbox", wake)).status == 200
    running = (await ada.get(path)).json["session"]
    assert running["lifecycleState"] == "active"
    assert set(running["sandboxState"]) == {"type", "sandboxName", "expiresAt"}
    archived = (await ada.patch(path, {"status": "archived"})).json["session"]
    assert archived["lifecycleState"] == "archived"
    assert archived["sandboxState"] == {"type": "memory", "sandboxName": f"session-{session['id']}"}
    assert (await ada.post("/api/sandbox", wake)).status == 409
    async with asyncio.timeout(10):
        while (back := await ada.patch(path, {"status": "running"})).status == 409:
            assert back.error == "Sandbox is still being paused, try again in a few seconds."
            await asyncio.sleep(0.02)
    assert back.json["session"]["lifecycleState"] == "hibernated"
    assert (await ada.post("/api/sandbox", wake)).status == 200
    assert (await ada.get(path)).json["session"]["lifecycleState"] == "active"


async def start_turn(client: Client, session: dict[str, Any], script: str) -> str:
    """A turn of the demo model that runs `script`; returns its run's id and lets it go on."""
    text = f"```bash\n{script}\n```"
    message = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": text}]}
    body = {"sessionId": session["id"], "chatId": session["chat"]["id"], "messages": [message]}
    async with client.http.post(
        f"{client.url}/api/chat", json=body, headers={"x-api-key": str(client.key)}
    ) as response:
        assert response.status == 200, await response.text()
        return response.headers["x-workflow-run-id"]


async def test_deleting_a_session_ends_its_running_turn(served: Served) -> None:
    ada = await served.client()
    session = await ada.open()
    run_id = await start_turn(ada, session, "sleep 30")
    assert (await ada.get(f"/api/chat/runs/{run_id}")).json["status"] in ("queued", "running")
    assert (await ada.delete(f"/api/sessions/{session['id']}")).status == 200
    run = await served.fermata.runs.wait(run_id, timedelta(seconds=15))
    assert run.state == "cancelled"


async def test_deleting_a_chat_ends_its_running_turn_and_no_other(served: Served) -> None:
    ada = await served.client()
    session = await ada.open()
    path = f"/api/sessions/{session['id']}/chats"
    other = (await ada.post(path)).json["chat"]
    run_id = await start_turn(ada, session, "sleep 30")
    kept = await start_turn(ada, {"id": session["id"], "chat": other}, "sleep 1; echo done")
    assert (await ada.delete(f"{path}/{session['chat']['id']}")).status == 200
    assert (await served.fermata.runs.wait(run_id, timedelta(seconds=15))).state == "cancelled"
    assert (await served.fermata.runs.wait(kept, timedelta(seconds=15))).state == "completed"
    left = (await ada.get(f"{path}/{other['id']}")).json
    assert [message["role"] for message in left["messages"]] == ["user", "assistant"]
    assert left["isStreaming"] is False


async def test_archiving_ends_a_running_turn_and_keeps_what_it_said(served: Served) -> None:
    ada = await served.client()
    session = await ada.open()
    run_id = await start_turn(ada, session, "echo one; sleep 30")
    path = f"/api/sessions/{session['id']}"
    assert (await ada.patch(path, {"status": "archived"})).status == 200
    assert (await served.fermata.runs.wait(run_id, timedelta(seconds=15))).state == "cancelled"
    chat = (await ada.get(f"{path}/chats/{session['chat']['id']}")).json
    assert [message["role"] for message in chat["messages"]] == ["user", "assistant"]
    assert (await ada.get(path)).json["session"]["lifecycleState"] == "archived"
