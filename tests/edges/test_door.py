"""What happens to every request: credentials, methods, limits, headers."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.serving import Client, Served

from fermata.edges.http.body import DEPTH_LIMIT, check_value, parse_body
from fermata.edges.http.sessions import _read_cursor, _write_cursor
from fermata.kit.errors import InvalidRequestError
from fermata.views.sessions import Position

EXACTLY_ONE = "Exactly one of x-api-key or Authorization must be provided"


async def test_a_request_brings_exactly_one_good_credential(served: Served) -> None:
    ada, nobody = await served.client(), served.nobody()
    key = ada.key
    bearer = {"Authorization": f"Bearer {key}"}
    assert (await nobody.get("/api/sessions", headers=bearer)).status == 200
    assert (await nobody.get("/api/sessions", headers={"authorization": f"bearer {key}"})).status == 200
    cases = {
        EXACTLY_ONE: [{}, {"x-api-key": ""}, {**bearer, "x-api-key": key}],
        "Authorization header with Bearer token required": [
            {"Authorization": "Basic abc"},
            {"Authorization": str(key)},
            {"Authorization": "BEARER x"},
        ],
        "Unauthorized": [
            {"x-api-key": "nonsense"},
            {"x-api-key": f"{key}x"},
            {"x-api-key": str(key)[:-1] + ("a" if str(key)[-1] != "a" else "b")},
            {"x-api-key": "fer_0123456789ab_" + "s" * 43},
            {"Authorization": "Bearer "},
            {"Authorization": "Bearer é"},
        ],
    }
    for text, headers_list in cases.items():
        for headers in headers_list:
            answer = await nobody.get("/api/sessions", headers=headers)
            assert (answer.status, answer.error) == (401, text), headers
            assert answer.json["message"] == text
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_credentials_are_looked_at_before_anything_else(quick_served: Served) -> None:
    nobody = quick_served.nobody()
    for method, path, body in (
        ("POST", "/api/sessions", b"{"),
        ("POST", "/api/sessions", b"x" * 2_000_000),
        ("GET", "/api/sessions?limit=x", None),
        ("PATCH", "/api/sessions/x", b"null"),
        ("GET", f"/api/sessions/{'x' * 500}", None),
    ):
        assert (await nobody.request(method, path, body)).status == 401


async def test_a_revoked_or_expired_key_is_refused_at_once(served: Served) -> None:
    ada = await served.client()
    assert (await ada.get("/api/sessions")).status == 200
    await served.fermata.accounts.revoke_key(str(ada.key).split("_")[1])
    assert (await ada.get("/api/sessions")).error == "Unauthorized"
    late = await served.fermata.accounts.create_key(
        ada.account.id, "late", expires_at=served.fermata.clock.now()
    )
    late_client = Client(ada.url, ada.http, str(late))
    assert (await late_client.get("/api/sessions")).error == "Unauthorized"


async def test_bodies_are_bounded_in_size(quick_served: Served) -> None:
    ada = await quick_served.client()
    announced = await ada.post("/api/sessions", b" " * (1024 * 1024 + 1))
    assert announced.status == 413
    assert announced.headers["connection"] == "close"

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(33):
            yield b" " * 32768

    async with ada.http.post(
        f"{ada.url}/api/sessions", data=pieces(), headers={"x-api-key": ada.key}
    ) as streamed:
        assert streamed.status == 413
    assert (await ada.post("/api/sessions", b" " * (1024 * 1024))).status == 200


async def test_a_client_that_goes_away_in_the_middle_of_a_body_leaves_nothing(quick_served: Served) -> None:
    ada = await quick_served.client()
    host, port = ada.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /api/sessions HTTP/1.1\r\nhost: x\r\nx-api-key: {ada.key}\r\ncontent-length: 100\r\n\r\n{{"
    writer.write(head.encode())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await ada.get("/api/sessions")).json["sessions"] == []


async def test_unknown_paths_and_methods_are_told_in_the_envelope(quick_served: Served) -> None:
    nobody = quick_served.nobody()
    missing = await nobody.get("/api/nothing")
    assert (missing.status, missing.error) == (404, "Not found")
    wrong = await nobody.request("PUT", "/api/sessions/x")
    assert (wrong.status, wrong.error) == (405, "Method not allowed")
    assert wrong.headers["allow"] == "DELETE, GET, OPTIONS, PATCH"


async def test_every_path_answers_options_for_browsers(quick_served: Served) -> None:
    nobody = quick_served.nobody()
    empty = {"/api/sandbox", "/api/sandbox/status", "/api/sandbox/reconnect"}
    for path in {route.path_format for route in quick_served.app.routes}:
        answer = await nobody.request("OPTIONS", path.replace("{tail}", "x"))
        assert answer.status == (204 if path in empty else 200), path
        assert answer.raw == b""
        allowed = answer.headers["access-control-allow-headers"].split(", ")
        assert {"x-api-key", "Authorization", "Content-Type", "Idempotency-Key", "If-Match"} <= set(allowed)
        assert "PATCH" in answer.headers["access-control-allow-methods"]
        exposed = answer.headers["access-control-expose-headers"]
        assert exposed == "x-workflow-run-id, x-workflow-stream-tail-index"


async def test_what_breaks_inside_is_told_in_one_sentence(quick_served: Served) -> None:
    ada = await quick_served.client()
    with sqlite3.connect(quick_served.fermata.settings.data_dir / "fermata.db") as outside:
        outside.execute("ALTER TABLE sessions RENAME TO elsewhere")
    outside.close()
    answer = await ada.get("/api/sessions/x")
    assert (answer.status, answer.error) == (500, "Internal server error")
    assert set(answer.json) == {"status", "error", "code"}


async def test_ids_in_paths_are_opaque_up_to_a_limit(quick_served: Served) -> None:
    ada = await quick_served.client()
    assert (await ada.get("/api/sessions/%F0%9F%8E%B5%27%22")).status == 404
    assert (await ada.get(f"/api/sessions/{'x' * 128}")).status == 404
    assert (await ada.get(f"/api/sessions/{'x' * 129}")).status == 400
    assert (await ada.get("/api/sessions/a%00b")).status == 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


def depth_of(value: object) -> int:
    if isinstance(value, list):
        return 1 + max((depth_of(item) for item in value), default=0)
    if isinstance(value, dict):
        return 1 + max((depth_of(item) for item in value.values()), default=0)
    return 0


def has_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, list):
        return any(has_nul(item) for item in value)
    if isinstance(value, dict):
        return any(has_nul(key) or has_nul(item) for key, item in value.items())
    return False


@given(json_values, st.integers(0, 70))
def test_the_guard_refuses_exactly_what_is_too_deep_or_holds_a_nul(value: object, wrapped: int) -> None:
    for _ in range(wrapped):
        value = [value]
    raw = orjson.dumps(value)
    if depth_of(value) > DEPTH_LIMIT or has_nul(value):
        with pytest.raises(InvalidRequestError):
            parse_body(raw)
    else:
        assert parse_body(raw) == value
        check_value(value)


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_refused(raw: bytes) -> None:
    with contextlib.suppress(InvalidRequestError):
        parse_body(raw)


@given(st.integers(0, 2**62 - 1), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_cursor_reads_as_it_was_written(active_at: int, session_id: str) -> None:
    assert _read_cursor(_write_cursor(Position(active_at, session_id))) == Position(active_at, session_id)


@given(st.text(max_size=60))
def test_any_other_text_is_no_cursor_but_an_error(text: str) -> None:
    with contextlib.suppress(InvalidRequestError):
        position = _read_cursor(text)
        assert _read_cursor(_write_cursor(position)) == position
