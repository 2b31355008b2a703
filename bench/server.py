"""The server over HTTP: sessions a second, sandboxes, turns and streams, each beside its floor.

python -m bench.server [--runs 30] [--json]
"""

import argparse
import asyncio
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from bench.chats import open_session
from bench.running import Running, ask, fermata_server, load, plain_server
from bench.sandbox import floor as bare_bubblewrap

#: Seconds of load for each rate.
LOAD = 4.0
REPLAYED = 10_000
VIEWERS = 100


async def timed(work: Awaitable[Any]) -> float:
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1000


def two_row_transactions(directory: Path) -> float:
    """The floor of creating a session: bare transactions of two rows a second, each synced to the disk."""
    database = sqlite3.connect(directory / "floor.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE one (id TEXT PRIMARY KEY, body TEXT)")
    database.execute("CREATE TABLE two (id TEXT PRIMARY KEY, body TEXT)")
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < LOAD / 2:
        count += 1
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO one VALUES (?, ?)", (f"{count:032}", "x" * 400))
        database.execute("INSERT INTO two VALUES (?, ?)", (f"{count:032}", "x" * 200))
        database.execute("COMMIT")
    took = time.perf_counter() - began
    database.close()
    return count / took


async def rates(server: Running, plain: Running, directory: Path) -> dict[str, Any]:
    opened: Any = await ask(server, "POST", "/api/sessions")
    get = f"GET /api/sessions/{opened['session']['id']} HTTP/1.1\r\n{server.headers}\r\n".encode()
    post = f"POST /api/sessions HTTP/1.1\r\n{server.headers}Content-Length: 0\r\n\r\n".encode()
    bare = b"GET /answer HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    floor_rate, floor_cpu = await load(plain, bare, connections=16, seconds=LOAD)
    get_rate, get_cpu = await load(server, get, connections=16, seconds=LOAD)
    post_rate, post_cpu = await load(server, post, connections=64, seconds=LOAD)
    return {
        "GET /api/sessions/{id}": {"per_second": get_rate, "cpu_us": get_cpu},
        "floor: Starlette, same size": {"per_second": floor_rate, "cpu_us": floor_cpu},
        "POST /api/sessions": {"per_second": post_rate, "cpu_us": post_cpu},
        "floor: two-row transaction": {"per_second": two_row_transactions(directory)},
    }


async def sandboxes(server: Running, runs: int) -> dict[str, Any]:
    """Until a command has answered, from nothing and from sleep; a turn's first chunk and its whole."""
    times: dict[str, list[float]] = {}

    def note(what: str, took: float) -> None:
        times.setdefault(what, []).append(took)

    await start(server, await open_session(server))  # makes the workspace's base snapshot in the background
    await asyncio.sleep(2)
    for _ in range(runs):
        session = await open_session(server)
        note("floor: bare bubblewrap", await timed(bare_bubblewrap()))
        note("POST /api/sandbox until a command has answered", await timed(start(server, session)))
        note("command over HTTP (reconnect)", await timed(probe(server, session)))
        first, whole = await turn(server, session, "hello")
        note("POST /api/chat until the first chunk", first)
        note("turn without a tool", whole)
        note("turn with one command", (await turn(server, session, "```bash\ntrue\n```"))[1])
        sleep = ask(server, "POST", "/api/sandbox/snapshot", {"sessionId": session["session"]["id"]})
        note("hibernate", await timed(sleep))
        note("restore until a command has answered", await timed(start(server, session)))
        await ask(server, "DELETE", f"/api/sessions/{session['session']['id']}")
    return {what: summary(values) for what, values in times.items()}


def summary(values: list[float]) -> dict[str, float]:
    p95 = sorted(values)[max(0, int(len(values) * 0.95) - 1)]
    return {"median_ms": statistics.median(values), "p95_ms": p95}


async def start(server: Running, opened: dict[str, Any]) -> None:
    session = opened["session"]
    body = {"sessionId": session["id"], "repoUrl": session["cloneUrl"]}
    await ask(server, "POST", "/api/sandbox", body)
    await probe(server, opened)


async def probe(server: Running, opened: dict[str, Any]) -> None:
    found = await ask(server, "GET", f"/api/sandbox/reconnect?sessionId={opened['session']['id']}")
    assert found["status"] == "connected", found


async def turn(server: Running, opened: dict[str, Any], text: str) -> tuple[float, float]:
    """Milliseconds until the first chunk and until the last."""
    message = {"id": str(time.perf_counter_ns()), "role": "user", "parts": [{"type": "text", "text": text}]}
    body = {"sessionId": opened["session"]["id"], "chatId": opened["chat"]["id"], "messages": [message]}
    raw = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    began = time.perf_counter()
    head = f"POST /api/chat HTTP/1.1\r\n{server.headers}Content-Length: {len(raw)}\r\n\r\n"
    writer.write(head.encode() + raw)
    await reader.readuntil(b"data: ")
    first = time.perf_counter() - began
    await reader.readuntil(b"[DONE]")
    whole = time.perf_counter() - began
    writer.close()
    return first * 1000, whole * 1000


async def read_stream(server: Running, path: str, end: bytes) -> tuple[float, int]:
    """(ms until the first chunk, bytes)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 22)
    began = time.perf_counter()
    writer.write(f"GET {path} HTTP/1.1\r\n{server.headers}Connection: close\r\n\r\n".encode())
    await reader.readuntil(b"data: ")
    first, size, tail = (time.perf_counter() - began) * 1000, 0, b""
    while piece := await reader.read(1 << 18):
        size += len(piece)
        tail = (tail + piece)[-64:]
    writer.close()
    assert end in tail, tail
    return first, size


async def prepare_long_stream(data_dir: Path) -> str:
    """A finished run whose stream was made long behind the server's back, as a fast model would."""
    with fermata_server(data_dir, FERMATA_ORCHESTRATOR="false") as server:
        opened = await open_session(server)
        await turn(server, opened, "hello")
    database = sqlite3.connect(data_dir / "fermata.db", isolation_level=None)
    run_id, length = database.execute("SELECT id, length FROM streams").fetchone()
    line = '{"type":"text-delta","id":"1-text-0","delta":"' + "x" * 24 + '"}'
    database.execute("BEGIN")
    for first in range(length, length + REPLAYED, 5):
        row = (run_id, first, 5, "\n".join([line] * 5))
        database.execute("INSERT INTO stream_chunks VALUES (?, ?, ?, ?)", row)
    database.execute("UPDATE streams SET length = ?", (length + REPLAYED,))
    database.execute("COMMIT")
    database.close()
    return str(run_id)


async def streams(server: Running, plain: Running, run_id: str) -> dict[str, Any]:
    found = {}
    for what, running, path, end in (
        ("replay of 10,000 chunks", server, f"/api/chat/{run_id}/stream", b"[DONE]"),
        ("floor: Starlette stream", plain, f"/stream/{REPLAYED}", b"0\r\n\r\n"),
    ):
        first = statistics.median([(await read_stream(running, path, end))[0] for _ in range(5)])
        cpu, began = running.cpu_seconds(), time.perf_counter()
        for _ in range(VIEWERS // 20):
            await asyncio.gather(*(read_stream(running, path, end) for _ in range(20)))
        took, sent = time.perf_counter() - began, VIEWERS * REPLAYED
        found[what] = {
            "first_chunk_ms": first,
            "per_second": sent / took,
            "cpu_us": (running.cpu_seconds() - cpu) / sent * 1e6,
        }
    return found


async def measure(directory: Path, runs: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    run_id = await prepare_long_stream(directory / "long")
    with plain_server(directory, 1300) as plain:
        with fermata_server(directory / "long", FERMATA_ORCHESTRATOR="false") as server:
            found["streams"] = await streams(server, plain, run_id)
        with fermata_server(directory / "rates", FERMATA_ORCHESTRATOR="false") as server:
            found["rates"] = await rates(server, plain, directory)
    with fermata_server(directory / "boxes", FERMATA_ORCHESTRATOR="false") as server:
        found["times"] = await sandboxes(server, runs)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        found = asyncio.run(measure(Path(place), options.runs))
    if options.json:
        json.dump(found, sys.stdout)
        return
    for part in found.values():
        for what, values in part.items():
            print(f"{what:50}" + "  ".join(f"{name} {value:,.2f}" for name, value in values.items()))


if __name__ == "__main__":
    main()
