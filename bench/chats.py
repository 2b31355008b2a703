"""Sessions, turns and a model to talk to, for measurements over HTTP."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.running import Running, ask, fermata_server, python_server

HERE = Path(__file__).parent


async def open_session(server: Running) -> dict[str, Any]:
    return await ask(server, "POST", "/api/sessions")


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


async def warm_up(server: Running) -> None:
    """A first turn with a vendor's model, which imports what others then find."""
    opened = await open_session(server)
    await choose_model(server, opened, "openai/10x0")
    await play(server, opened, "hello")


async def choose_model(server: Running, opened: dict[str, Any], model: str) -> None:
    path = f"/api/sessions/{opened['session']['id']}/chats/{opened['chat']['id']}"
    await ask(server, "PATCH", path, {"modelId": model})


@contextmanager
def model_server(directory: Path) -> Iterator[Running]:
    with python_server(directory, HERE / "vendor.py") as vendor:
        yield vendor


async def active_run(server: Running, opened: dict[str, Any]) -> str:
    path = f"/api/sessions/{opened['session']['id']}/chats/{opened['chat']['id']}"
    found: Any = await ask(server, "GET", path)
    return str(found["chat"]["activeStreamId"])


@contextmanager
def server_with_model(directory: Path, vendor: Running, **settings: str) -> Iterator[Running]:
    url = f"http://127.0.0.1:{vendor.port}/v1"
    with fermata_server(
        directory, FERMATA_ORCHESTRATOR="false", FERMATA_OPENAI_BASE_URL=url, **settings
    ) as server:
        yield server
