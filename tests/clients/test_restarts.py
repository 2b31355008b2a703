"""The published transports while the server ends, or is killed, in the middle of turns, and starts again."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from tests.support.cutting_proxy import CuttingProxy, cutting_proxy, random_cuts
from tests.support.node_clients import NodeOf, Packages, Viewer, has_text, node_processes
from tests.support.serving import Client

from fermata.testing.vendor_server import VendorServer, openai_chunk, openai_usage

pytestmark = pytest.mark.asyncio(loop_scope="module")

VERSIONS = (Packages("ai", "workflow-ai-4"), Packages("ai7", "@workflow/ai"))
TRANSPORTS = ("documented", "documented-workflow", "bare")

SHELL = "".join(
    f"Part {number}:\n```bash\nfor i in $(seq 1 20); do echo line {number}.$i ü; sleep 0.05; done\n```\n"
    for number in range(4)
)


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


class Vendor(VendorServer):
    """A model that never gets to its second half, and after the next start waits before it."""

    def will_answer(self, calls: int) -> asyncio.Event:
        """The next `calls` are cut by the end of the server, the ones after them go on with the event."""
        gate = asyncio.Event()
        self._answers = [_answer("Half of ", "it", gate=asyncio.Event()) for _ in range(calls)]
        self._answers += [_answer("Whole ", "at last.", gate=gate) for _ in range(calls)]
        return gate


def _answer(*texts: str, gate: asyncio.Event) -> list[Any]:
    said = [openai_chunk({"role": "assistant", "content": text}) for text in texts]
    end = openai_chunk({"content": " The end."}), openai_chunk({}, "stop"), openai_usage(9, 9), "[DONE]"
    return [*said, gate, *end]


@dataclass
class House:
    server: Server
    vendor: Vendor
    proxy: CuttingProxy
    node_of: NodeOf

    async def view(self, packages: Packages, transport: str, model: str) -> "Talk":
        """A new chat, and a published one on it; work in a sandbox is watched through the proxy."""
        async with self.server.client() as ada:
            session = await ada.open()
            path = f"/api/sessions/{session['id']}/chats/{session['chat']['id']}"
            assert (await ada.patch(path, {"modelId": model})).status == 200
        door = {"url": self.proxy.url if model == "demo/shell" else self.server.url, "key": self.server.key}
        place = {"chatId": session["chat"]["id"], "sessionId": session["id"]}
        node = await self.node_of(packages)
        return Talk(path, transport, await node.open(path, door, transport=transport, **place))

    async def stored(self, talk: "Talk") -> list[dict[str, Any]]:
        async with self.server.client() as ada:
            while True:
                answer = (await ada.get(talk.path)).json
                if not answer["isStreaming"]:
                    messages: list[dict[str, Any]] = answer["messages"]
                    return messages
                await asyncio.sleep(0.02)


@dataclass
class Talk:
    path: str
    transport: str
    viewer: Viewer

    async def say(self, text: str) -> dict[str, Any]:
        """Send a message, and resume after every cut as the documented page does."""
        seen = await self.viewer.ask("send", text=text, messageId="m1")
        if self.transport == "bare":
            return seen
        return await self.viewer.ask("resumeWhileCut")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(node_scripts: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    # A short path on the disk: sockets need short names, and overlays do not lie on every file system.
    home = Path(tempfile.mkdtemp(prefix="fermata-clients-"))
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, home, onerror=_make_writable)
        node_of = await stack.enter_async_context(
            node_processes(node_scripts, tmp_path_factory.mktemp("pages"))
        )
        vendor = Vendor()
        await stack.enter_async_context(vendor)
        server = Server(home, openai_base_url=vendor.url, orchestrator="false")
        stack.push_async_callback(server.kill)
        await server.start()
        proxy = await stack.enter_async_context(cutting_proxy(server.url))
        yield House(server, vendor, proxy, node_of)
        assert await server.end(signal.SIGTERM) == 0, server.log
        assert "Traceback" not in server.log
        assert "ASGI" not in server.log, "to let viewers go is no error"


def _make_writable(_: object, path: str, __: object) -> None:
    """An overlay's work directory has mode 0000."""
    Path(path).chmod(0o700)
    shutil.rmtree(path)


def has_tool(seen: dict[str, Any]) -> bool:
    return any("toolCallId" in part for message in seen["messages"][1:] for part in message["parts"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
async def test_chats_end_with_the_stored_message_when_the_server_comes_back(
    house: House, number: signal.Signals
) -> None:
    talks = [
        await house.view(packages, transport, "openai/test")
        for packages in VERSIONS
        for transport in TRANSPORTS
    ]
    shells = [
        await house.view(packages, transport, "demo/shell")
        for packages, transport in zip(VERSIONS, TRANSPORTS, strict=False)
    ]
    gate = house.vendor.will_answer(len(talks))
    house.proxy.plan(random_cuts(number, number=9, longest=4_000))
    seen = [asyncio.create_task(talk.say("Go on")) for talk in talks]
    worked = [asyncio.create_task(talk.say(SHELL)) for talk in shells]
    for talk in talks:
        await talk.viewer.when(has_text("it"))
    for talk in shells:
        await talk.viewer.when(has_tool)

    assert await house.server.end(number) == (0 if number is signal.SIGTERM else -number)
    for index, talk in enumerate(talks):
        if talk.transport == "bare":
            cut = await seen[index]
            assert cut["status"] == "error", "half a message is not the end of a turn"
            assert cut["error"].startswith("TypeError")
    await house.server.start()
    for index, talk in enumerate(talks):
        if talk.transport == "bare":
            seen[index] = asyncio.create_task(talk.viewer.ask("resume"))
    for talk in talks:
        await talk.viewer.when(has_text("Whole"))
    gate.set()

    for talk, task in zip([*talks, *shells], [*seen, *worked], strict=True):
        end = await task
        assert (end["status"], end.get("error")) == ("ready", None)
        assert end["messages"] == await house.stored(talk)
    redone = (await house.stored(talks[0]))[1]["parts"]
    assert [part.get("text") for part in redone] == [None, "Half of it", None, "Whole at last. The end."]
