"""Many viewers of one run, each on a connection of their own."""

import asyncio
from pathlib import Path
from typing import Any

from bench.chats import (
    HERE,
    active_run,
    choose_model,
    model_server,
    open_session,
    play,
    server_with_model,
    warm_up,
)
from bench.running import Running, python_server

VIEWERS = 500
#: Chunks a second, and for how many seconds.
LIVE_RATE = 20
LIVE_SECONDS = 8


class _Viewer(asyncio.Protocol):
    """Counts the chunks that it is sent, until the last one."""

    def __init__(self, request: bytes) -> None:
        self._request, self._tail = request, b""
        self.chunks = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.chunks += data.count(b'"delta"')
        self._tail = (self._tail + data)[-64:]
        if b"[DONE]" in self._tail and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"cut after {self.chunks} chunks: {self._tail!r}"))


async def attach(port: int, request: bytes, count: int = VIEWERS) -> list[_Viewer]:
    loop = asyncio.get_running_loop()
    found = []
    for _ in range(count):
        _, viewer = await loop.create_connection(lambda: _Viewer(request), "127.0.0.1", port)
        found.append(viewer)
    return found


def leave(viewers: list[_Viewer]) -> None:
    for viewer in viewers:
        viewer.done.cancel()
        viewer.transport.close()


async def memory_of(server: Running, opened: dict[str, Any]) -> float:
    """Bytes of a viewer who waits, once what earlier work has given back is used up by others."""
    await choose_model(server, opened, "openai/200x20")
    turn = asyncio.create_task(play(server, opened, "hello"))
    await asyncio.sleep(1)
    path = f"GET /api/chat/{await active_run(server, opened)}/stream HTTP/1.1\r\n{server.headers}\r\n"
    others = await attach(server.port, path.encode(), 2 * VIEWERS)
    await asyncio.sleep(1)
    before = server.memory()
    watching = await attach(server.port, path.encode())
    await asyncio.sleep(1)
    memory = (server.memory() - before) / VIEWERS
    leave(others + watching)
    await turn
    return memory


async def measure(directory: Path) -> dict[str, Any]:
    """One run, many viewers, few chunks a second."""
    found: dict[str, Any] = {}
    count = LIVE_SECONDS * LIVE_RATE
    with model_server(directory) as vendor, server_with_model(directory / "viewers", vendor) as server:
        opened = await open_session(server)
        await choose_model(server, opened, f"openai/{count + LIVE_RATE * 4}x{LIVE_RATE}")
        await warm_up(server)
        turn = asyncio.create_task(play(server, opened, "hello"))
        await asyncio.sleep(0.5)
        path = f"GET /api/chat/{await active_run(server, opened)}/stream HTTP/1.1\r\n{server.headers}\r\n"
        watching = await attach(server.port, path.encode())
        await asyncio.sleep(1)
        cpu, sent = server.cpu_seconds(), sum(viewer.chunks for viewer in watching)
        await asyncio.gather(*(viewer.done for viewer in watching))
        sent = sum(viewer.chunks for viewer in watching) - sent
        spent = (server.cpu_seconds() - cpu) / sent * 1e6
        await turn
        leave(watching)
        memory = await memory_of(server, opened)
    with python_server(directory, HERE / "fan_out.py", str(VIEWERS), str(count), str(LIVE_RATE)) as floor:
        watching = await attach(floor.port, b"x")
        await asyncio.gather(*(viewer.done for viewer in watching))
        floor_us = floor.cpu_seconds() / (count * VIEWERS) * 1e6
    what = f"{VIEWERS} viewers of one run, {LIVE_RATE} chunks a second"
    found[f"{what}: CPU a chunk and viewer"] = {"cpu_us": spent, "floor_us": floor_us}
    found[f"{what}: memory a viewer"] = {"kib": memory / 1024}
    return found
