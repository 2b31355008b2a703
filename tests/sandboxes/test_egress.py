"""What the proxy through which sandboxes go out allows, refuses and remembers."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from datetime import timedelta
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tests.support.egress_world import World, get, status

from fermata.sandboxes.addresses import IPAddress
from fermata.sandboxes.egress import EgressProxy


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
        yield World(stack)


async def test_a_request_is_passed_on_without_what_is_between_neighbours(world: World) -> None:
    await world.start()
    response = (
        b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nX-Kept: 1\r\nKeep-Alive: 5\r\n"
        b"Proxy-Authenticate: x\r\nX-Hop: 1\r\nConnection: X-Hop\r\n\r\nok"
    )
    port = await world.answering(response)
    answer = await world.ask(
        get(
            f"http://up.example:{port}/a%20b?q=1#part",
            "Accept: */*",
            "Proxy-Authorization: Basic secret",
            "Proxy-Connection: keep-alive",
            "Connection: X-Mine, close",
            "X-Mine: 1",
            "TE: trailers",
            "Upgrade: h2c",
            close=False,
        )
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert (status(answer), body) == (200, b"ok")
    assert b"200 Fine" in head
    assert b"x-kept: 1" in head.lower()
    for gone in (b"keep-alive: 5", b"proxy-authenticate", b"x-hop"):
        assert gone not in head.lower()
    lines = world.requests[0].decode().lower().split("\r\n")
    assert lines[0] == "get /a%20b?q=1 http/1.1"
    assert sorted(filter(None, lines[1:])) == ["accept: */*", "connection: close", f"host: up.example:{port}"]


@pytest.mark.parametrize(("url", "path"), [("", b"/"), ("?x", b"/?x"), ("/", b"/"), ("//a", b"//a")])
async def test_the_path_is_what_follows_the_host(world: World, url: str, path: bytes) -> None:
    await world.start()
    port = await world.answering()
    host = f"up.example:{port}"
    assert status(await world.ask(get(f"http://{host}{url}", host=host))) == 200
    assert world.requests[0].split(b" ")[1] == path


async def test_a_connection_carries_many_requests_each_judged_anew(world: World) -> None:
    proxy = await world.start()
    port = await world.answering()
    reader, writer = await world.connect()
    for host in ("up.example", "other.example", "up.example"):
        writer.write(get(f"http://{host}:{port}/", close=False))
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(2) == b"ok"
    world.names.table["up.example"] = ["10.0.0.1"]
    writer.write(get(f"http://up.example:{port}/", close=False))
    assert status(await reader.read()) == 403
    assert [decision.refused is None for decision in proxy.decisions("box")] == [True, True, True, False]
    assert len(world.requests) == 3


async def test_the_address_that_was_judged_is_the_one_connected_to(world: World) -> None:
    await world.start()
    port = await world.answering()
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    asked = []

    async def rebinding(host: str, port: int) -> list[IPAddress]:
        asked.append(host)
        return [ip_address(address) for address in next(answers)]

    await world.start(resolve=rebinding)
    assert status(await world.ask(get(f"http://up.example:{port}/"))) == 200
    assert asked == ["up.example"]
    assert status(await world.ask(get(f"http://up.example:{port}/"))) == 403


@pytest.mark.parametrize(
    "addresses", [["10.0.0.1"], ["127.0.0.1", "10.0.0.1"], ["::ffff:10.0.0.1"]], ids=",".join
)
@pytest.mark.parametrize("way", ["GET", "CONNECT"])
async def test_a_name_with_one_address_that_is_refused_is_refused(
    world: World, addresses: list[str], way: str
) -> None:
    proxy = await world.start()
    port = await world.answering()
    world.names.table["bad.example"] = addresses
    request = get(f"http://bad.example:{port}/")
    if way == "CONNECT":
        request = f"CONNECT bad.example:{port} HTTP/1.1\r\nHost: bad.example:{port}\r\n\r\n".encode()
    with capture_logs() as logs:
        answer = await world.ask(request)
    assert status(answer) == 403
    sentence = f"A sandbox may not connect to bad.example:{port}: it is a private address."
    assert sentence in answer.decode()
    assert world.requests == []
    (decision,) = proxy.decisions("box")
    assert (decision.host, decision.port, decision.refused) == (
        "bad.example",
        port,
        "it is a private address",
    )
    (entry,) = [entry for entry in logs if entry["event"] == "egress"]
    assert entry["sandbox"] == "box"
    assert (entry["host"], entry["port"], entry["refused"]) == (
        "bad.example",
        port,
        "it is a private address",
    )


async def test_by_default_only_public_addresses_and_usual_ports_are_reached(world: World) -> None:
    port = await world.answering()
    sock = socket.create_server(("127.0.0.1", 0))
    async with contextlib.AsyncExitStack() as stack:
        proxy = EgressProxy(resolve=world.names)
        stack.push_async_callback(proxy.close)
        await proxy.serve(sock, "box")
        for host in ("127.0.0.1:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "up.example:80", f"8.8.8.8:{port}"):
            answer = await world.ask(get(f"http://{host}/"), sock.getsockname()[1])
            assert status(answer) == 403, host
        answer = await world.ask(get("http://up.example:25/"), sock.getsockname()[1])
        assert b"up.example:25: port 25 is not open to sandboxes" in answer
    assert world.names.asked == ["up.example"]


async def test_a_name_of_a_local_network_is_refused_without_a_look_up(world: World) -> None:
    await world.start()
    for host in ("localhost", "metadata.google.internal", "printer"):
        assert status(await world.ask(get(f"http://{host}/"))) == 403
    assert world.names.asked == []


async def test_the_next_address_is_tried_when_one_does_not_answer(world: World) -> None:
    await world.start()
    port = await world.answering()
    world.names.table["two.example"] = ["127.0.0.2", "127.0.0.1"]
    assert status(await world.ask(get(f"http://two.example:{port}/"))) == 200


async def test_hosts_that_cannot_be_reached_are_told_apart(world: World) -> None:
    await world.start(connect_within=timedelta(seconds=0.3))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        answer = await world.ask(get(f"http://up.example:{port}/"))
        assert (status(answer), b"could not be reached." in answer) == (502, True)
    answer = await world.ask(get("http://nowhere.example/"))
    assert (status(answer), b"nowhere.example is not known" in answer) == (502, True)
    answer = await world.ask(get("http://slow.example/"))
    assert (status(answer), b"in time" in answer) == (504, True)


async def test_slow_look_ups_of_one_sandbox_hold_up_no_other(world: World) -> None:
    await world.start(connect_within=timedelta(seconds=0.2))
    port = await world.answering()
    other = await world.listen("other")
    answers = await asyncio.gather(*(world.ask(get(f"http://slow{n}.example/")) for n in range(12)))
    assert {status(answer) for answer in answers} == {504}
    # Its four turns are taken by look-ups that nobody waits for any more.
    assert len(world.names.asked) == 4
    assert status(await world.ask(get(f"http://up.example:{port}/"))) == 504
    assert status(await world.ask(get(f"http://up.example:{port}/"), other)) == 200


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (get("http://up.example/", host="other.example"), 400),
        (get("http://up.example/", host="up.example:81"), 400),
        (get("http://up.example/", "Host: up.example"), 400),
        (b"GET http://up.example/ HTTP/1.1\r\n\r\n", 400),
        (get("http://user:word@up.example/"), 400),
        (get("http://127.1/"), 400),
        (get("http://2130706433/"), 400),
        (get("http:///"), 400),
        (get("https://up.example/"), 400),
        (get("ftp://up.example/"), 400),
        (get("/path", host="up.example"), 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: up.example\r\n\r\n", 400),
        (b"CONNECT up.example HTTP/1.1\r\nHost: up.example\r\n\r\n", 400),
        (b"CONNECT up.example:80 HTTP/1.1\r\nHost: other.example:80\r\n\r\n", 400),
        (b"CONNECT http://up.example:80 HTTP/1.1\r\nHost: up.example:80\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET http://up.example/ HTTP/2.0\r\nHost: up.example\r\n\r\n", 400),
        (get("http://up.example/", "X : y"), 400),
        (get("http://up.example/", "Content-Length: 1", "Content-Length: 2"), 400),
        (get("http://up.example/", "Transfer-Encoding: gzip"), 501),
        (get("http://up.example/", "X-Long: " + "x" * 40_000), 431),
    ],
    ids=lambda value: ascii(value[:60]) if isinstance(value, bytes) else None,
)
async def test_a_request_that_is_not_clear_is_refused_before_anything_is_looked_up(
    world: World, request_: bytes, expected: int
) -> None:
    await world.start()
    assert status(await world.ask(request_)) == expected
    assert world.names.asked == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.binary(max_size=40)
        | st.sampled_from(
            [
                b"\r\n",
                b"\r\n\r\n",
                b"GET ",
                b"CONNECT ",
                b"http://",
                b"up.example",
                b":80",
                b" HTTP/1.1",
                b"Host: ",
            ]
        ),
        max_size=20,
    )
)
def test_no_bytes_bring_the_proxy_down_or_reach_what_is_refused(pieces: list[bytes]) -> None:
    async def run() -> None:
        async with asyncio.timeout(30), contextlib.AsyncExitStack() as stack:
            world = World(stack)
            await world.start(permit=lambda address: "a private address")
            reader, writer = await world.connect()
            writer.write(b"".join(pieces))
            writer.write_eof()
            answer = await reader.read()
            assert not answer or 400 <= status(answer) < 600
            assert status(await world.ask(get("http://up.example/"))) == 403

    asyncio.run(run())
