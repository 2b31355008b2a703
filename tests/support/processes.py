"""Servers as processes of their own, what they leave behind, and what a viewer sees of them."""

import asyncio
import itertools
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from fermata.turns.fold import Fold
from tests.support.crashing import CRASH, LOG
from tests.support.forking import ForkServer
from tests.support.serving import Client

_numbers = itertools.count()
_TICKS = os.sysconf("SC_CLK_TCK")


class ServerProcess:
    """A real `fermata serve` with real sandboxes, which can be started again on the same data."""

    def __init__(self, forks: ForkServer, home: Path, *, program: str = "serve", **settings: str) -> None:
        """`program`: `serve`, or `worker`, which has no HTTP."""
        self._forks = forks
        self._program = program
        self.data = home / "data"
        self._log = home / f"{program}-{next(_numbers)}.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FERMATA_")}
        given = {"data_dir": str(self.data), "port": "0", "sandbox_base_build": "false"} | settings
        self._environment = environment | {f"FERMATA_{name.upper()}": value for name, value in given.items()}
        self.pid = 0
        #: The URL of a server, the name by which a worker holds its leases.
        self.sign = ""

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def key(self) -> str:
        return (self.data / "api-key").read_text(encoding="ascii").strip()

    async def start(self) -> None:
        begin = len(self.log)
        self.pid = self._forks.start(self._program, self._environment, self._log)
        deadline = time.monotonic() + 40
        sign = r"Fermata (http://\S+)" if self._program == "serve" else r'"owner":"([^"]+)"'
        while not (found := re.search(sign, self.log[begin:])):
            assert self.running(), self.log[begin:]
            assert time.monotonic() < deadline, self.log[begin:]
            await asyncio.sleep(0.01)
        self.sign = found[1]

    def running(self) -> bool:
        return self.pid != 0 and self._forks.status(self.pid) is None

    async def ended(self, within: float = 20) -> int:
        """The exit status, once it has ended; the number of a signal is negative."""
        deadline = time.monotonic() + within
        while (status := self._forks.status(self.pid)) is None:
            assert time.monotonic() < deadline, f"still running\n{self.log[-4000:]}"
            await asyncio.sleep(0.01)
        return status

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    async def stop(self) -> int:
        """End it by SIGTERM, if it runs; its exit status."""
        if self.running():
            self.signal(signal.SIGTERM)
        return await self.ended()

    def arm(self, counted: str, at: int, when: str) -> None:
        """From now on it counts, and kills itself at this point."""
        (self.data / LOG).unlink(missing_ok=True)
        draft = self.data / "crash.draft"
        draft.write_text(json.dumps({"counted": counted, "at": at, "when": when}))
        draft.rename(self.data / CRASH)

    def disarm(self) -> list[str]:
        """For the next start. The points that were passed since `arm`."""
        (self.data / CRASH).unlink(missing_ok=True)
        log = self.data / LOG
        return log.read_text().splitlines() if log.exists() else []

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        async with aiohttp.ClientSession() as http:
            yield Client(self.sign, http, self.key)

    def processes(self) -> dict[int, float]:
        """Processes of this server's sandboxes, and their starts in seconds since boot."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    known = (entry / "cgroup").read_text() + (entry / "mountinfo").read_text()
                    if f"fermata-{self.installation}" in known or f"{self.data}/" in known:
                        stat = (entry / "stat").read_text().rpartition(")")[2].split()
                        found[int(entry.name)] = int(stat[19]) / _TICKS
                except OSError:  # it has ended meanwhile
                    continue
        return found

    @property
    def installation(self) -> str:
        return (self.data / "installation").read_text().strip()

    def check_nothing_is_left(self, before: float = float("inf")) -> None:
        """No process of a sandbox that was started before this moment, and no mount outside of sandboxes.
        When everything has ended, no control group either."""
        old = {pid: start for pid, start in self.processes().items() if start < before}
        assert not old, f"processes are left: {[Path(f'/proc/{pid}/cmdline').read_bytes() for pid in old]}"
        assert not self.mounts()
        if before == float("inf"):
            assert not self.groups()

    def groups(self) -> list[Path]:
        """Control groups of this installation."""
        return [path for path in Path("/sys/fs/cgroup").rglob(f"*{self.installation}*") if path.is_dir()]

    def mounts(self) -> list[str]:
        return [
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.data) in line
        ]


def since_boot() -> float:
    return float(Path("/proc/uptime").read_text().split()[0])


def commands_running(text: str) -> list[int]:
    """Processes of this machine, in sandboxes or not, whose command line holds `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdecimal()
                and text in (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@dataclass
class Seen:
    """What one viewer has of one stream."""

    run_id: str = ""
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: list[dict[str, Any]] = field(default_factory=list)
    #: Index of each chunk, as the server numbered it.
    ids: list[int] = field(default_factory=list)
    done: bool = False
    error: str = ""

    @property
    def types(self) -> list[str]:
        return [chunk["type"] for chunk in self.chunks]

    @property
    def message(self) -> dict[str, Any]:
        return Fold().add_all(self.chunks).message()

    @property
    def text(self) -> str:
        return "".join(chunk["delta"] for chunk in self.chunks if chunk["type"] == "text-delta")


def message(text: str, message_id: str) -> dict[str, Any]:
    return {"id": message_id, "role": "user", "parts": [{"type": "text", "text": text}]}


def shell(*commands: str) -> str:
    """What the built-in model runs."""
    return "\n\n".join(f"```bash\n{command}\n```" for command in commands)


async def watch(
    client: Client,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
    seen: Seen | None = None,
) -> Seen:
    """Read a stream until it ends, or its connection is cut. `seen` is filled while it is read."""
    seen = seen if seen is not None else Seen()
    sent = {"x-api-key": client.key or "", **(headers or {})}
    try:
        async with client.http.request(method, client.url + path, json=body, headers=sent) as response:
            seen.status, seen.headers = response.status, response.headers
            seen.run_id = response.headers.get("x-workflow-run-id", "")
            if response.content_type != "text/event-stream":
                seen.error = (await response.json()).get("error", "") if await response.read() else ""
                return seen
            buffer = b""
            async for piece in response.content.iter_any():
                *events, buffer = (buffer + piece).split(b"\n\n")
                for event in events:
                    _take(seen, event.decode())
    except aiohttp.ClientError as error:
        seen.error = str(error) or type(error).__name__
    return seen


def _take(seen: Seen, event: str) -> None:
    assert not seen.done, f"{event!r} after [DONE]"
    if event.startswith(":"):
        return
    fields = dict(line.split(": ", 1) for line in event.split("\n"))
    if fields["data"] == "[DONE]":
        seen.done = True
        return
    seen.ids.append(int(fields["id"]))
    seen.chunks.append(json.loads(fields["data"]))


async def chat(
    client: Client, session: dict[str, Any], text: str, message_id: str, seen: Seen | None = None
) -> Seen:
    body = {
        "sessionId": session["id"],
        "chatId": session["chat"]["id"],
        "messages": [message(text, message_id)],
    }
    return await watch(client, "POST", "/api/chat", body, seen=seen)


async def stored_messages(client: Client, session: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await client.get(f"/api/sessions/{session['id']}/chats/{session['chat']['id']}")
    assert answer.status == 200, answer.raw
    found: list[dict[str, Any]] = answer.json["messages"]
    return found
