"""The proxy through which sandboxes go out, with real sockets on the loopback on both of its sides."""

import asyncio
import contextlib
import io
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fermata.sandboxes.addresses import IPAddress
from fermata.sandboxes.egress import EgressProxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def refuse_all_but_loopback(address: IPAddress) -> str | None:
    """Stands for the rule that only public addresses are allowed: here 127.0.0.0/28 plays the public."""
    return None if int(address) >> 4 == int(ip_address("127.0.0.0")) >> 4 else "a private address"


class Names:
    """A resolver with a table, which notes what it was asked."""

    def __init__(self) -> None:
        self.table: dict[str, list[str]] = {"up.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[IPAddress]:
        self.asked.append(host)
        if host.startswith("slow"):
            await asyncio.sleep(300)
        if host not in self.table:
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return [ip_address(address) for address in self.table[host]]


class World:
    """A proxy with one sandbox, and servers for it to reach."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self.names = Names()
        self._stack = stack
        self.requests: list[bytes] = []

    async def start(self, **options: object) -> EgressProxy:
        keywords = {"permit": refuse_all_but_loopback, "resolve": self.names, "ports": None} | options
        self.proxy = EgressProxy(**keywords)  # type: ignore[arg-type]
        self._stack.push_async_callback(self.proxy.close)
        self.port = await self.listen("box")
        return self.proxy

    async def listen(self, sandbox: str) -> int:
        sock = socket.create_server(("127.0.0.1", 0))
        await self.proxy.serve(sock, sandbox)
        return int(sock.getsockname()[1])

    async def connect(self, port: int | None = None) -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.port)

        async def close() -> None:
            writer.transport.abort()

        self._stack.push_async_callback(close)
        return reader, writer

    async def ask(self, request: bytes, port: int | None = None) -> bytes:
        """Everything that comes back for a request on a connection of its own."""
        reader, writer = await self.connect(port)
        writer.write(request)
        return await reader.read()

    async def upstream(self, handle: Handler) -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await handle(reader, writer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._stack.callback(server.close)
        return int(server.sockets[0].getsockname()[1])

    async def answering(self, response: bytes = OK) -> int:
        """A server that notes the head of each request and gives a fixed answer."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(response)

        return await self.upstream(answer)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
        yield World(stack)


def get(url: str, *headers: str, host: str | None = None, close: bool = True) -> bytes:
    host = host or url.removeprefix("http://").partition("/")[0]
    lines = [f"GET {url} HTTP/1.1", f"Host: {host}", *headers, *(["Connection: close"] if close else [])]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


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


@pytest.mark.parametrize("way", ["length", "chunks", "continue"])
async def test_bodies_go_both_ways_whole(world: World, way: str) -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=201)
        if way == "length":
            response.content_length = request.content_length
        await response.prepare(request)
        async for piece in request.content.iter_any():
            await response.write(piece)
        return response

    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    await world.start()
    body = bytes(range(256)) * 20_000

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    try:
        async with aiohttp.ClientSession() as client:
            for _ in range(2):
                async with client.post(
                    f"http://up.example:{port}/",
                    data=pieces() if way == "chunks" else io.BytesIO(body),
                    proxy=f"http://127.0.0.1:{world.port}",
                    expect100=way == "continue",
                ) as response:
                    assert response.status == 201
                    assert await response.read() == body
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("response", "body"),
    [
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            b"2\r\nok\r\n0\r\n\r\n",
        ),
        (b"HTTP/1.0 200 OK\r\n\r\nok", b"2\r\nok\r\n0\r\n\r\n"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b""),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, b"ok"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            b"2\r\nok\r\n0\r\n\r\n",
        ),
    ],
)
async def test_every_way_to_end_a_response_is_understood(world: World, response: bytes, body: bytes) -> None:
    await world.start()
    port = await world.answering(response)
    answer = await world.ask(get(f"http://up.example:{port}/"))
    assert 200 <= status(answer) < 400
    assert answer.partition(b"\r\n\r\n")[2] == body


async def test_a_head_request_gets_a_head(world: World) -> None:
    await world.start()
    port = await world.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
    answer = await world.ask(get(f"http://up.example:{port}/").replace(b"GET", b"HEAD"))
    assert b"content-length: 5000" in answer.lower()
    assert answer.endswith(b"\r\n\r\n")


async def test_a_server_may_answer_before_it_has_read_the_body(world: World) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await writer.drain()
        await reader.read(1)

    await world.start()
    port = await world.upstream(refuse)
    reader, writer = await world.connect()
    head = get(f"http://up.example:{port}/", "Content-Length: 100000000", close=False)
    writer.write(head.replace(b"GET", b"PUT") + b"x" * 10)
    answer = await reader.readuntil(b"big")
    assert status(answer) == 413


@pytest.mark.parametrize(
    "response", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000, b"\0" * 100]
)
async def test_what_is_no_http_response_is_a_502(world: World, response: bytes) -> None:
    await world.start()
    port = await world.answering(response)
    answer = await world.ask(get(f"http://up.example:{port}/"))
    assert (status(answer), b"no proper answer" in answer) == (502, True)


@pytest.mark.parametrize("framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
async def test_a_response_that_breaks_off_is_not_made_to_look_whole(world: World, framing: bytes) -> None:
    await world.start()
    part = b"5\r\nhello\r\n" if b"chunked" in framing else b"hello"
    port = await world.answering(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + part)
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientError):
            async with client.get(
                f"http://up.example:{port}/", proxy=f"http://127.0.0.1:{world.port}"
            ) as response:
                await response.read()


async def open_tunnel(world: World, port: int, early: bytes = b"") -> Streams:
    reader, writer = await world.connect()
    writer.write(f"CONNECT up.example:{port} HTTP/1.1\r\nHost: up.example:{port}\r\n\r\n".encode() + early)
    assert status(await reader.readuntil(b"\r\n\r\n")) == 200
    return reader, writer


async def test_a_tunnel_passes_bytes_both_ways_and_each_end_on_its_own(world: World) -> None:
    async def reverse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello ")
        writer.write((await reader.read())[::-1])

    await world.start()
    reader, writer = await open_tunnel(world, await world.upstream(reverse), early=b"abc")
    assert await reader.readexactly(6) == b"hello "
    writer.write(b"def")
    writer.write_eof()
    assert await reader.read() == b"fedcba"


async def test_tls_goes_through_a_tunnel_untouched(world: World) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("up.example").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text=f"{request.scheme} {request.headers['Host']}")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    port = runner.addresses[0][1]
    await world.start()
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as client,
            client.get(f"https://up.example:{port}/", proxy=f"http://127.0.0.1:{world.port}") as response,
        ):
            assert await response.text() == f"https up.example:{port}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("way", ["tunnel", "http"])
async def test_a_reader_that_does_not_read_holds_the_sender_back(world: World, way: str) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        if way == "http":
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()
            sent += 65_536

    await world.start()
    port = await world.upstream(flood)
    if way == "tunnel":
        reader, _ = await open_tunnel(world, port)
    else:
        reader, writer = await world.connect()
        writer.write(get(f"http://up.example:{port}/"))
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.2)
    # What lies in the buffers of four sockets and two readers; without back-pressure it never stops.
    assert 0 < sent < 60_000_000
    for _ in range(200):
        await reader.read(1 << 20)
    assert sent > before


async def test_silence_ends_a_connection_and_movement_in_one_direction_keeps_it(world: World) -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(12):
            writer.write(b"x")
            await asyncio.sleep(0.1)
        await reader.read()

    await world.start(idle_for=timedelta(seconds=0.6))
    reader, _ = await open_tunnel(world, await world.upstream(trickle))
    assert await reader.readexactly(12) == b"x" * 12
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    reader, writer = await world.connect()
    writer.write(b"GET http://up.exam")
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""


async def test_a_sandbox_has_so_many_connections_and_no_more(world: World) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"!")
        await reader.read()

    await world.start(connections_at_most=3)
    other = await world.listen("other")
    port = await world.upstream(hold)
    tunnels = [await open_tunnel(world, port) for _ in range(3)]
    answer = await world.ask(get(f"http://up.example:{port}/"))
    assert (status(answer), b"has 3 connections open already" in answer) == (503, True)
    answering = await world.answering()
    assert status(await world.ask(get(f"http://up.example:{answering}/"), other)) == 200
    tunnels[0][1].close()
    async with asyncio.timeout(20):
        while status(await world.ask(get(f"http://up.example:{answering}/"))) != 200:
            await asyncio.sleep(0.02)


async def test_release_ends_all_of_one_sandbox_and_nothing_of_another(world: World) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)

    proxy = await world.start()
    other = await world.listen("other")
    port = await world.upstream(echo)
    reader, _ = await open_tunnel(world, port)
    kept_reader, kept_writer = await world.connect(other)
    kept_writer.write(f"CONNECT up.example:{port} HTTP/1.1\r\nHost: up.example:{port}\r\n\r\n".encode())
    await kept_reader.readuntil(b"\r\n\r\n")
    await proxy.release("box")
    await proxy.release("box")
    await proxy.release("unknown")
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", world.port)
    assert proxy.decisions("box") == ()
    kept_writer.write(b"still here")
    assert await kept_reader.readexactly(10) == b"still here"
    again = await world.listen("box")
    assert status(await world.ask(get("http://10.0.0.1/"), again)) == 403


async def test_the_latest_decisions_are_remembered_and_no_more(world: World) -> None:
    proxy = await world.start(remembered_at_most=3)
    for number in range(5):
        await world.ask(get(f"http://10.0.0.{number}/"))
    await world.ask(get("http://nowhere.example/"))
    decisions = proxy.decisions("box")
    assert [decision.host for decision in decisions] == ["10.0.0.3", "10.0.0.4", "nowhere.example"]
    assert decisions[-1].refused == "no such host"
    assert proxy.decisions("other") == ()


async def test_a_unix_socket_serves_as_well(world: World, tmp_path: Path) -> None:
    await world.start()
    port = await world.answering()
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "proxy"))
    sock.listen()
    await world.proxy.serve(sock, "unix")
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "proxy"))
    writer.write(get(f"http://up.example:{port}/"))
    assert status(await reader.read()) == 200
    writer.close()
    await writer.wait_closed()


async def test_the_systems_own_resolver_is_asked_unless_another_is_given(world: World) -> None:
    await world.start(resolve=None, connect_within=timedelta(seconds=30))
    answer = await world.ask(get("http://no-such-host.invalid/"))
    assert status(answer) in (502, 504)
    assert b"no-such-host.invalid" in answer
