"""Nobody reaches what belongs to somebody else: every route, with the key of a stranger.

A new route must be declared here, in one of the four tables, or the first test fails.
"""

import base64
from typing import Any

import sqlalchemy as sa
from tests.support.serving import Client, Served

from fermata.edges.http.door import Door
from fermata.kit.database import Connection, Statement, metadata
from fermata.sessions import store

#: Routes that need no key, and say nothing about anybody.
PUBLIC = {
    ("GET", "/healthz"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/api/ai/models"),
}

#: Routes that answer a stranger, about the stranger only.
OWN = {
    ("GET", "/api/sessions"),
    ("GET", "/api/organizations"),
    ("GET", "/api/accounts/id"),
}

#: The same, as a stream without an end: what a stranger sees there is in `test_events.py`.
FEEDS = {("GET", "/api/events")}

CHAT = "/api/sessions/{session}/chats/{chat}"
MESSAGE = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "hello"}]}

#: What a stranger sends to each other route, aimed at what belongs to the victim, and what it is answered.
REFUSED: dict[tuple[str, str], list[tuple[str, Any, set[int]]]] = {
    ("GET", "/api/sessions/{sessionId}"): [("/api/sessions/{session}", None, {403})],
    ("PATCH", "/api/sessions/{sessionId}"): [("/api/sessions/{session}", {"title": "mine"}, {403})],
    ("DELETE", "/api/sessions/{sessionId}"): [("/api/sessions/{session}", None, {403})],
    ("POST", "/api/sessions"): [
        ("/api/sessions", {"organizationId": "{organization}"}, {403}),
        ("/api/sessions", {"artistId": "{artist}"}, {403}),
        ("/api/sessions", {"cloneUrl": "https://github.com/recoupable/{account}"}, {403}),
        ("/api/sessions", {"repoOwner": "recoupable", "repoName": "{organization}"}, {403}),
    ],
    ("GET", "/api/sessions/{sessionId}/chats"): [("/api/sessions/{session}/chats", None, {403})],
    ("POST", "/api/sessions/{sessionId}/chats"): [("/api/sessions/{session}/chats", {}, {403})],
    ("GET", "/api/sessions/{sessionId}/chats/{chatId}"): [(CHAT, None, {403})],
    ("PATCH", "/api/sessions/{sessionId}/chats/{chatId}"): [(CHAT, {"title": "mine"}, {403})],
    ("DELETE", "/api/sessions/{sessionId}/chats/{chatId}"): [(CHAT, None, {403})],
    ("POST", "/api/sessions/{sessionId}/chats/{chatId}/read"): [(f"{CHAT}/read", None, {403})],
    ("POST", "/api/chat"): [
        ("/api/chat", {"sessionId": "{session}", "chatId": "{chat}", "messages": [MESSAGE]}, {403}),
        ("/api/chat", {"sessionId": "{own}", "chatId": "{chat}", "messages": [MESSAGE]}, {404}),
    ],
    ("GET", "/api/chat/{chatId}/stream"): [
        ("/api/chat/{chat}/stream", None, {403}),
        ("/api/chat/{run}/stream", None, {404}),
    ],
    ("POST", "/api/chat/{chatId}/stop"): [("/api/chat/{chat}/stop", None, {403})],
    ("GET", "/api/chat/{chatId}/queue"): [("/api/chat/{chat}/queue", None, {403})],
    ("PATCH", "/api/chat/{chatId}/queue/{messageId}"): [
        ("/api/chat/{chat}/queue/m", {"position": 1}, {403}),
        ("/api/chat/{chat}/queue/m", {"parts": MESSAGE["parts"]}, {403}),
    ],
    ("DELETE", "/api/chat/{chatId}/queue/{messageId}"): [("/api/chat/{chat}/queue/m", None, {403})],
    ("DELETE", "/api/sessions/{sessionId}/chats/{chatId}/messages/{messageId}"): [
        (f"{CHAT}/messages/m", None, {403}),
        ("/api/sessions/{own}/chats/{chat}/messages/m", None, {404}),
    ],
    ("POST", "/api/chat/runs"): [
        ("/api/chat/runs", {"prompt": "hello", "accountId": "{account}"}, {403}),
        ("/api/chat/runs", {"prompt": "hello", "organizationId": "{organization}"}, {403}),
        ("/api/chat/runs", {"prompt": "hello", "artistId": "{artist}"}, {403}),
    ],
    ("GET", "/api/chat/runs/{runId}"): [("/api/chat/runs/{run}", None, {404})],
    ("POST", "/api/sandbox"): [
        ("/api/sandbox", {"repoUrl": "{clone}", "sessionId": "{session}"}, {403}),
        ("/api/sandbox", {"repoUrl": "{clone}"}, {403}),
        ("/api/sandbox", {"repoUrl": "{clone}", "sessionId": "{own}"}, {403, 409}),
    ],
    ("DELETE", "/api/sandbox"): [("/api/sandbox", {"sessionId": "{session}"}, {403})],
    ("GET", "/api/sandbox/status"): [("/api/sandbox/status?sessionId={session}", None, {403})],
    ("GET", "/api/sandbox/reconnect"): [("/api/sandbox/reconnect?sessionId={session}", None, {403})],
    ("POST", "/api/sandbox/snapshot"): [("/api/sandbox/snapshot", {"sessionId": "{session}"}, {403})],
    ("POST", "/api/organizations"): [
        ("/api/organizations", {"name": "mine", "accountId": "{account}"}, {403})
    ],
    ("POST", "/api/organizations/members"): [
        ("/api/organizations/members", {"organizationId": "{organization}", "accountId": "{eve}"}, {403})
    ],
    ("DELETE", "/api/organizations/members"): [
        ("/api/organizations/members?organization_id={organization}&account_id={account}", None, {403})
    ],
    ("POST", "/api/organizations/artists"): [
        ("/api/organizations/artists", {"organizationId": "{organization}", "artistId": "{artist}"}, {403}),
        ("/api/organizations/artists", {"organizationId": "{owned}", "artistId": "{artist}"}, {403}),
    ],
    ("POST", "/api/artists"): [("/api/artists", {"name": "mine", "organizationId": "{organization}"}, {403})],
    ("GET", "/git/{owner}/{name}/{tail:path}"): [
        ("/git/recoupable/{account}.git/info/refs?service=git-upload-pack", None, {404}),
        ("/git/recoupable/{organization}.git/info/refs?service=git-receive-pack", None, {404}),
    ],
    ("POST", "/git/{owner}/{name}/{tail:path}"): [
        ("/git/recoupable/{account}.git/git-upload-pack", None, {404}),
        ("/git/recoupable/{account}.git/git-receive-pack", None, {404}),
    ],
}

#: Nobody may have made these a stranger's; runs come and go by themselves.
WATCHED = [table for table in metadata.sorted_tables if table.name not in ("runs", "run_steps")]
DUMPS = {table.name: Statement(sa.select(table)) for table in WATCHED}


def routes(served: Served) -> list[tuple[str, str]]:
    return [
        (method, route.path)
        for route in served.app.routes
        if isinstance(route, Door)
        for method in sorted(route.methods)
    ]


async def dump(served: Served) -> dict[str, list[Any]]:
    def read(connection: Connection) -> dict[str, list[Any]]:
        return {name: sorted(map(repr, connection.rows(statement))) for name, statement in DUMPS.items()}

    return await served.fermata.database.read(read)


async def furnish(served: Served) -> tuple[Client, dict[str, str]]:
    """A victim who has one of everything, and a stranger; and the names that the tables use."""
    victim, eve = await served.client("Victim"), await served.client("Eve")
    organization = (await victim.post("/api/organizations", {"name": "Band"})).json["organization"]["id"]
    artist = (await victim.post("/api/artists", {"name": "Singer"})).json["artist"]["id"]
    session = await victim.open()
    chat = session["chat"]["id"]
    started = await victim.post(
        "/api/chat", {"sessionId": session["id"], "chatId": chat, "messages": [MESSAGE]}
    )
    run = started.headers["x-workflow-run-id"]
    owned = (await eve.post("/api/organizations", {"name": "Trap"})).json["organization"]["id"]
    # A stranger may put the victim into an organization of its own. That must give it nothing.
    await eve.post("/api/organizations/members", {"organizationId": owned, "accountId": victim.account.id})
    return eve, {
        "session": session["id"],
        "chat": chat,
        "clone": session["cloneUrl"],
        "account": victim.account.id,
        "organization": organization,
        "artist": artist,
        "run": run,
        "own": (await eve.open())["id"],
        "owned": owned,
        "eve": eve.account.id,
    }


def fill(template: Any, names: dict[str, str]) -> Any:
    if isinstance(template, str):
        return template.format(**names)
    if isinstance(template, dict):
        return {key: fill(value, names) for key, value in template.items()}
    return template


async def test_every_route_is_declared_here(quick_served: Served) -> None:
    declared = PUBLIC | OWN | FEEDS | set(REFUSED)
    assert sorted(routes(quick_served)) == sorted(declared)


async def test_a_stranger_is_refused_everywhere_and_changes_nothing(served: Served) -> None:
    eve, names = await furnish(served)
    before = await dump(served)
    for (method, _), cases in REFUSED.items():
        for path, body, statuses in cases:
            answer = await eve.request(method, fill(path, names), fill(body, names))
            assert answer.status in statuses, (method, path, body, answer.status, answer.raw)
            after = await dump(served)
            changed = [name for name in before if before[name] != after[name]]
            assert changed == [], (method, path, body)


async def test_what_a_stranger_is_told_holds_nothing_of_others(served: Served) -> None:
    eve, names = await furnish(served)
    secrets = [names[name] for name in ("session", "chat", "account", "organization", "artist", "run")]
    for method, path in OWN:
        answer = await eve.request(method, path)
        assert answer.status == 200
        assert not [secret for secret in secrets if secret.encode() in answer.raw]


async def test_without_a_key_every_route_but_the_public_ones_is_closed(served: Served) -> None:
    _, names = await furnish(served)
    nobody = served.nobody()
    before = await dump(served)
    for method, path in routes(served):
        if (method, path) in PUBLIC:
            assert (await nobody.request(method, path)).status == 200
            continue
        for filled, body, _ in REFUSED.get((method, path), [(path, None, set())]):
            answer = await nobody.request(method, fill(filled, names), fill(body, names))
            assert answer.status == 401, (method, path)
    assert await dump(served) == before


async def test_message_ids_of_one_chat_mean_nothing_in_another(served: Served) -> None:
    ada = await served.client()
    first, second = (await ada.open())["chat"]["id"], (await ada.open())["chat"]["id"]
    now = served.fermata.clock.now()

    def write(connection: Connection) -> None:
        assert store.insert_user_message(connection, first, "same", '{"in":1}', None, now)
        assert store.put_assistant_message(connection, second, "same", '{"in":2}', None, now)

    await served.fermata.database.write(write)
    kept = await served.fermata.database.read(lambda found: store.find_message(found, first, "same"))
    assert kept is not None
    assert kept.message == '{"in":1}'


async def test_git_asks_for_a_password_and_takes_only_a_key(quick_served: Served) -> None:
    ada = await quick_served.client()
    path = f"/git/recoupable/{ada.account.id}.git/info/refs?service=git-upload-pack"

    def basic(password: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(f"any:{password}".encode()).decode()}

    nobody = quick_served.nobody()
    asked = await nobody.get(path)
    assert asked.status == 401
    assert asked.headers["www-authenticate"].startswith("Basic ")
    for wrong in ("", "fer_wrong", "fer_0123456789ab_" + "s" * 43):
        assert (await nobody.get(path, headers=basic(wrong))).status == 401
    good = await nobody.get(path, headers=basic(str(ada.key)))
    assert good.status == 200
    assert b"refs/heads/main" in good.raw
