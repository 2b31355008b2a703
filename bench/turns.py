"""Turns and their viewers: a vendor's tokens, durability, many viewers, many turns, each beside its floor.

    python -m bench.turns [--only tokens,durability,viewers,many,restart] [--json]

"CPU" is processor time of the server's process, not time on the wall: it says the same on a busy machine.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.running import Running, ask, fermata_server, python_server
from bench.server import open_session

HERE = Path(__file__).parent
TOKENS = 20_000
TOKENS_A_SECOND = 2_000
VIEWERS = 500
#: Chunks a second, and for how many seconds.
LIVE_RATE = 20
LIVE_SECONDS = 8


def chat_request(server: Running, opened: dict[str, Any], text: str) -> bytes:
    message = {"id": str(time.perf_counter_ns()), "role": "user", "parts": [{"type": "text", "text": text}]}
    body = {"sessionId": opened["session"]["id"], "chatId": opened["chat"]["id"], "messages": [message]}
    raw = json.dumps(body).encode()
    return f"POST /api/chat HTTP/1.1\r\n{server.headers}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


async def play(server: Running, opened: dict[str, Any], text: str) -> bytes:
    """A turn with one viewer, who reads the answer to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 22)
    writer.write(chat_request(server, opened, text))
    tail = b""
    while b"data: [DONE]" not in tail:
        piece = await reader.read(1 << 18)
        if not piece:
            raise RuntimeError(f"the answer was cut: {tail!r}")
        tail = (tail + piece)[-400:]
    writer.close()
    if b'"type":"error"' in tail:
        raise RuntimeError(tail.decode())
    return tail


async def choose_model(server: Running, opened: dict[str, Any], model: str) -> None:
    path = f"/api/sessions/{opened['session']['id']}/chats/{opened['chat']['id']}"
    await ask(server, "PATCH", path, {"modelId": model})


@contextmanager
def model_server(directory: Path) -> Iterator[Running]:
    with python_server(directory, HERE / "vendor.py") as vendor:
        yield vendor


def token_floor(vendor: Running, rate: int) -> float:
    url = f"http://127.0.0.1:{vendor.port}/"
    command = [sys.executable, HERE / "vendor_floor.py", url, str(TOKENS), str(rate)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


async def tokens(directory: Path) -> dict[str, Any]:
    """Microseconds of CPU for each token from the vendor's socket to the log and one viewer."""
    found = {}
    with model_server(directory) as vendor:
        settings = {"FERMATA_OPENAI_BASE_URL": f"http://127.0.0.1:{vendor.port}/v1"}
        with fermata_server(directory / "tokens", FERMATA_ORCHESTRATOR="false", **settings) as server:
            opened = await open_session(server)
            await choose_model(server, opened, "openai/100x0")
            await play(server, opened, "warm up")
            for rate in (0, TOKENS_A_SECOND):
                await choose_model(server, opened, f"openai/{TOKENS}x{rate}")
                cpu = server.cpu_seconds()
                await play(server, opened, "hello")
                spent = (server.cpu_seconds() - cpu) / TOKENS * 1e6
                what = "at once" if rate == 0 else f"at {rate:,} a second"
                found[f"CPU a token, {TOKENS:,} {what}"] = {
                    "cpu_us": spent,
                    "floor_us": await asyncio.to_thread(token_floor, vendor, rate),
                }
    return found


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


async def attach(port: int, request: bytes) -> list[_Viewer]:
    loop = asyncio.get_running_loop()
    found = []
    for _ in range(VIEWERS):
        _, viewer = await loop.create_connection(lambda: _Viewer(request), "127.0.0.1", port)
        found.append(viewer)
    return found


async def viewers(directory: Path) -> dict[str, Any]:
    """One run, many viewers, few chunks a second; and as many who never read what they are sent."""
    found: dict[str, Any] = {}
    count = LIVE_SECONDS * LIVE_RATE
    with model_server(directory) as vendor:
        settings = {"FERMATA_OPENAI_BASE_URL": f"http://127.0.0.1:{vendor.port}/v1"}
        with fermata_server(directory / "viewers", FERMATA_ORCHESTRATOR="false", **settings) as server:
            opened = await open_session(server)
            await choose_model(server, opened, f"openai/{count + LIVE_RATE * 4}x{LIVE_RATE}")
            before = server.memory()
            turn = asyncio.create_task(play(server, opened, "hello"))
            await asyncio.sleep(0.5)
            path = f"GET /api/chat/{await active_run(server, opened)}/stream HTTP/1.1\r\n{server.headers}\r\n"
            watching = await attach(server.port, path.encode())
            await asyncio.sleep(1)
            memory = (server.memory() - before) / VIEWERS
            cpu, sent = server.cpu_seconds(), sum(viewer.chunks for viewer in watching)
            await asyncio.gather(*(viewer.done for viewer in watching))
            sent = sum(viewer.chunks for viewer in watching) - sent
            spent = (server.cpu_seconds() - cpu) / sent * 1e6
            await turn
            for viewer in watching:
                viewer.transport.close()
    with python_server(directory, HERE / "fan_out.py", str(VIEWERS), str(count), str(LIVE_RATE)) as floor:
        watching = await attach(floor.port, b"x")
        await asyncio.gather(*(viewer.done for viewer in watching))
        floor_us = floor.cpu_seconds() / (count * VIEWERS) * 1e6
    what = f"{VIEWERS} viewers of one run, {LIVE_RATE} chunks a second"
    found[f"{what}: CPU a chunk and viewer"] = {"cpu_us": spent, "floor_us": floor_us}
    found[f"{what}: memory a viewer"] = {"kib": memory / 1024}
    return found


async def active_run(server: Running, opened: dict[str, Any]) -> str:
    path = f"/api/sessions/{opened['session']['id']}/chats/{opened['chat']['id']}"
    found: Any = await ask(server, "GET", path)
    return str(found["chat"]["activeStreamId"])


PARTS = {"tokens": tokens, "viewers": viewers}


async def measure(directory: Path, only: list[str]) -> dict[str, Any]:
    return {name: await PARTS[name](directory) for name in only}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        found = asyncio.run(measure(Path(place), options.only.split(",")))
    if options.json:
        json.dump(found, sys.stdout)
        return
    for part in found.values():
        for what, values in part.items():
            print(f"{what:50}" + "  ".join(f"{name} {value:,.2f}" for name, value in values.items()))


if __name__ == "__main__":
    main()
