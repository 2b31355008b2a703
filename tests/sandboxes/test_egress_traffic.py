"""What goes through the egress proxy: bodies, tunnels, back-pressure, limits and ends."""

import asyncio
import contextlib
import io
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web
from tests.support.egress_world import OK, Streams, World, get, status


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
        yield World(stack)


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
