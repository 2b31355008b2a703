"""The published transports while the server ends, or is killed, in the middle of turns, and starts again."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.support.cutting_proxy import cutting_proxy, random_cuts
from tests.support.node_clients import NodeOf, Packages, Viewer, has_text, node_processes
from tests.support.serving import Client

from fermata.testing.vendor_server import VendorServer, openai_chunk, openai_usage

VERSIONS = (Packages("ai", "workflow-ai-4"), Packages("ai7", "@workflow/ai"))
TRANSPORTS = ("documented", "documented-workflow", "bare")

SHELL = "".join(
    f"Part {number}:\n```bash\nfor i in $(seq 1 20); do echo line {number}.$i ü; sleep 0.05; done\n```\n"
    for number in range(4)
)


@pytest.fixture
async def node_of(node_scripts: Path, tmp_path: Path) -> AsyncIterator[NodeOf]:
    async with node_processes(node_scripts, tmp_path) as start:
        yield start


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path on the disk: sockets need short names, and overlays do not lie on every file system."""
    directory = Path(tempfile.mkdtemp(prefix="fermata-clients-"))
    yield directory
    shutil.rmtree(directory, onerror=_make_writable)


def _make_writable(_: object, path: str, __: object) -> None:
    """An overlay's work directory has mode 0000."""
    Path(path).chmod(0o700)
    shutil.rmtree(path)


class Server:
    """`fermata serve`, which comes back on the same port with the same data."""

    def __init__(self, home: Path, **settings: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._data = home / "data"
        self._log = home / "server.log"
        given = {"data_dir": str(self._data), "port": str(port), "sandbox_base_build": "false", **settings}
        self._environment = {name: value for name, value in os.environ.items() if name[:8] != "FERMATA_"}
        self._environment |= {f"FERMATA_{name.upper()}": value for name, value in given.items()}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def key(self) -> str:
        return (self._data / "api-key").read_text(encoding="ascii").strip()

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        async with aiohttp.ClientSession() as http:
            yield Client(self.url, http, self.key)

    async def start(self) -> None:
        with self._log.open("a") as log:
            self._process = await asyncio.create_subprocess_exec(
                Path(sys.executable).with_name("fermata"),
                "serve",
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        async with aiohttp.ClientSession() as http:
            while True:
                assert self._process.returncode is None, self.log
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with http.get(f"{self.url}/healthz") as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(0.02)

    async def end(self, number: signal.Signals) -> int:
        """The exit status; the number of a signal is negative."""
        assert self._process is not None
        self._process.send_signal(number)
        return await self._process.wait()

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.end(signal.SIGKILL)


@asynccontextmanager
async def serving(home: Path, **settings: str) -> AsyncIterator[Server]:
    server = Server(home, **settings)
    try:
        await server.start()
        yield server
        assert await server.end(signal.SIGTERM) == 0, server.log
    finally:
        await server.kill()


async def new_chat(ada: Client, model: str) -> tuple[str, str]:
    session = await ada.open()
    path = f"/api/sessions/{session['id']}/chats/{session['chat']['id']}"
    assert (await ada.patch(path, {"modelId": model})).status == 200
    return path, session["chat"]["id"]


async def stored(ada: Client, path: str) -> list[dict[str, Any]]:
    while True:
        answer = (await ada.get(path)).json
        if not answer["isStreaming"]:
            messages: list[dict[str, Any]] = answer["messages"]
            return messages
        await asyncio.sleep(0.02)


async def view(
    node_of: NodeOf, server: Server, url: str, transport: str, packages: Packages, model: str
) -> tuple[Viewer, str]:
    async with server.client() as ada:
        path, chat_id = await new_chat(ada, model)
    node = await node_of(packages)
    door = {"url": url, "key": server.key}
    session_id = path.split("/")[3]
    viewer = await node.open(chat_id, door, transport=transport, chatId=chat_id, sessionId=session_id)
    return viewer, path


def answer(*texts: str, gate: asyncio.Event | None = None) -> list[Any]:
    said = [openai_chunk({"role": "assistant", "content": text}) for text in texts]
    waits = [] if gate is None else [gate]
    return [
        *said,
        *waits,
        openai_chunk({"content": " The end."}),
        openai_chunk({}, "stop"),
        openai_usage(9, 9),
        "[DONE]",
    ]


async def send_and_stay(viewer: Viewer, text: str) -> dict[str, Any]:
    """Send a message and resume after every cut, as the documented page does."""
    await viewer.ask("send", text=text, messageId="m1")
    return await viewer.ask("resumeWhileCut")


def has_tool(seen: dict[str, Any]) -> bool:
    return any("toolCallId" in part for message in seen["messages"][1:] for part in message["parts"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
async def test_chats_end_with_the_stored_message_when_the_server_comes_back(
    node_of: NodeOf, home: Path, number: signal.Signals
) -> None:
    gate = asyncio.Event()
    kinds = [(packages, transport) for packages in VERSIONS for transport in TRANSPORTS]
    cut_calls = [answer("Half of ", "it", gate=asyncio.Event()) for _ in kinds]
    whole_calls = [answer("Whole ", "at last.", gate=gate) for _ in kinds]
    async with (
        asyncio.timeout(90),
        VendorServer(*cut_calls, *whole_calls) as vendor,
        serving(home, openai_base_url=vendor.url) as server,
        cutting_proxy(server.url) as proxy,
    ):
        talks = {
            kind: await view(node_of, server, server.url, kind[1], kind[0], "openai/test") for kind in kinds
        }
        shells = [
            await view(node_of, server, proxy.url, transport, packages, "demo/shell")
            for packages, transport in zip(VERSIONS, TRANSPORTS, strict=False)
        ]
        proxy.plan(random_cuts(number, number=9, longest=4_000))
        staying = [
            (viewer, path, asyncio.create_task(send_and_stay(viewer, text)))
            for viewer, path, text in [
                *((*talks[kind], "Go on") for kind in kinds if kind[1] != "bare"),
                *((*shell, SHELL) for shell in shells),
            ]
        ]
        bare = [talks[kind] for kind in kinds if kind[1] == "bare"]
        cut = [asyncio.create_task(viewer.ask("send", text="Go on", messageId="m1")) for viewer, _ in bare]
        for viewer, _ in talks.values():
            await viewer.when(has_text("it"))
        for viewer, _ in shells:
            await viewer.when(has_tool)
        assert await server.end(number) == (0 if number is signal.SIGTERM else -number)
        for seen in await asyncio.gather(*cut):
            assert seen["status"] == "error", "half a message is not the end of a turn"
            assert seen["error"].startswith("TypeError")
        await server.start()
        for viewer, path in bare:
            staying.append((viewer, path, asyncio.create_task(viewer.ask("resume"))))
        for viewer, _ in talks.values():
            await viewer.when(has_text("Whole"))
        gate.set()
        async with server.client() as ada:
            for _, path, task in staying:
                seen = await task
                assert (seen["status"], seen.get("error")) == ("ready", None)
                assert seen["messages"] == await stored(ada, path)
            redone = (await stored(ada, bare[0][1]))[1]["parts"]
            assert [part.get("text") for part in redone] == [
                None,
                "Half of it",
                None,
                "Whole at last. The end.",
            ]
        assert len(vendor.requests) == 2 * len(kinds)
