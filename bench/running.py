"""A server in a process of its own, and ways to load it."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Running:
    port: int
    process: "subprocess.Popen[bytes]"
    key: str = ""

    @property
    def headers(self) -> str:
        return f"Host: 127.0.0.1\r\nx-api-key: {self.key}\r\n"

    def cpu_seconds(self) -> float:
        """Processor time of the process and its threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> int:
        """Bytes that the process has of its own."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]


@contextmanager
def fermata_server(data_dir: Path, **settings: str) -> Iterator[Running]:
    output = data_dir.parent / f"{data_dir.name}.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FERMATA_")}
    environment |= {
        "FERMATA_PORT": "0",
        "FERMATA_DATA_DIR": str(data_dir),
        "FERMATA_SANDBOX_BASE_BUILD": "false",
        "FERMATA_LOG_LEVEL": "warning",
        **settings,
    }
    command = [sys.executable, "-m", "fermata.edges.cli", "serve"]
    with output.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        port = _wait_for(output, process, r"Fermata http://127\.0\.0\.1:(\d+)")
        yield Running(port, process, _read_key(data_dir))
    finally:
        end_process(process)


def _read_key(data_dir: Path) -> str:
    """Empty where the database had an account before."""
    file = data_dir / "api-key"
    return file.read_text().strip() if file.exists() else ""


@contextmanager
def plain_server(directory: Path, size: int) -> Iterator[Running]:
    """The floor of HTTP: Starlette on uvicorn answering `size` bytes, or streaming what it is asked for."""
    with python_server(directory, Path(__file__).with_name("plain.py"), str(size)) as server:
        yield server


@contextmanager
def python_server(directory: Path, script: Path, *arguments: str) -> Iterator[Running]:
    """A server of one file, which prints its port."""
    output = directory / f"{script.stem}.log"
    with output.open("wb") as log:
        process = subprocess.Popen([sys.executable, str(script), *arguments], stdout=log, stderr=log)
    try:
        yield Running(_wait_for(output, process, r"port (\d+)"), process)
    finally:
        end_process(process)


def _wait_for(output: Path, process: "subprocess.Popen[bytes]", pattern: str) -> int:
    for _ in range(1200):
        if found := re.search(pattern, output.read_text(errors="replace")):
            return int(found[1])
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise SystemExit(f"a server did not start:\n{output.read_text(errors='replace')}")


def end_process(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Caller(asyncio.Protocol):
    """Sends one request again and again on one connection, as fast as it is answered."""

    def __init__(self, request: bytes, until: float) -> None:
        self._request = request
        self._until = until
        self._buffer = b""
        self.answered = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        if len(rest) < length:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self._buffer.decode(errors="replace")))
            return
        self._buffer = b""
        self.answered += 1
        if time.perf_counter() > self._until:
            self._transport.close()
            self.done.set_result(None)
        else:
            self._transport.write(self._request)  # type: ignore[attr-defined]


async def load(server: Running, request: bytes, *, connections: int, seconds: float) -> tuple[float, float]:
    """(answers a second, microseconds of the server's processor per answer)."""
    loop = asyncio.get_running_loop()
    cpu, began = server.cpu_seconds(), time.perf_counter()
    callers = []
    for _ in range(connections):
        _, caller = await loop.create_connection(
            lambda: _Caller(request, began + seconds), "127.0.0.1", server.port
        )
        callers.append(caller)
    await asyncio.gather(*(caller.done for caller in callers))
    took, answered = time.perf_counter() - began, sum(caller.answered for caller in callers)
    return answered / took, (server.cpu_seconds() - cpu) / answered * 1e6


async def ask(server: Running, method: str, path: str, body: object = None) -> dict[str, object]:
    """One request on a connection of its own; the JSON of its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    raw = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\n{server.headers}Connection: close\r\nContent-Length: {len(raw)}"
    writer.write(f"{head}\r\n\r\n".encode() + raw)
    head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202")):
        raise RuntimeError(f"{method} {path}: {head.decode()}\n{answer.decode()}")
    found: dict[str, object] = json.loads(answer)
    return found
