"""Chats of the published npm packages, each version in a node process of its own."""

import asyncio
import contextlib
import json
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: A longest answer of a process: the messages of a chat.
LINE_LIMIT = 16 << 20
#: No chat of a test takes so long; one that does will never end.
ANSWER_SECONDS = 60
ENDED = "the node process has ended"
PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
_BLOCK = re.compile(r"```js\n// (?P<name>[a-z-]+\.js)\n(?P<code>.*?)```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Packages:
    """Directories under `node_modules` that stand where a page would have `ai` and `@workflow/ai`."""

    ai: str
    workflow: str

    @property
    def react(self) -> str:
        return {"ai": "ai-react-6", "ai7": "ai-react-7"}[self.ai]

    def __str__(self) -> str:
        return f"{self.ai} with {self.workflow}"


NodeOf = Callable[[Packages], Awaitable["NodeClients"]]


def documented_blocks(page: Path) -> dict[str, str]:
    """The blocks of a documentation page, by the file name in their first line."""
    text = page.read_text(encoding="utf-8")
    blocks = {match["name"]: match["code"] for match in _BLOCK.finditer(text)}
    assert len(blocks) == text.count("```js\n"), "a block without a file name would not be run"
    return blocks


def lay_out(tree: Path, scripts: Path, packages: Packages) -> None:
    """A directory as a page's own would be: its packages, the documented blocks, and our script."""
    installed = scripts.parent / "node_modules"
    modules = tree / "node_modules"
    ours = {"ai": packages.ai, "@workflow/ai": packages.workflow, "@ai-sdk/react": packages.react}
    for package in [*installed.iterdir(), *installed.glob("@*/*")]:
        place = package.relative_to(installed)
        if str(place) not in ours and not package.name.startswith((".", "@")):
            (modules / place).parent.mkdir(parents=True, exist_ok=True)
            (modules / place).symlink_to(package)
    for name in ("ai", "@ai-sdk/react"):
        (modules / name).symlink_to(installed / ours[name])
    # A copy, so that it finds the `ai` of this directory.
    shutil.copytree(installed / packages.workflow, modules / "@workflow" / "ai")
    (tree / "package.json").write_text('{"type": "module"}')
    for name, code in documented_blocks(PAGE).items():
        (tree / name).write_text(code, encoding="utf-8")
    for script in ("chat.mjs", "hook.mjs"):
        shutil.copy(scripts / script, tree)


@dataclass
class NodeClients:
    """The chats of one process. Answers come when they are ready, so many may be asked at once."""

    process: asyncio.subprocess.Process
    _waiting: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    _count: int = 0
    _ended: bool = False

    async def ask(self, verb: str, **options: Any) -> dict[str, Any]:
        assert not self._ended, ENDED
        self._count += 1
        number = self._count
        self._waiting[number] = asyncio.get_running_loop().create_future()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"id": number, "verb": verb, **options}).encode() + b"\n")
        await self.process.stdin.drain()
        async with asyncio.timeout(ANSWER_SECONDS):
            answer = await self._waiting[number]
        del self._waiting[number]
        assert "thrown" not in answer, answer["thrown"]
        return answer

    async def open(self, name: str, door: dict[str, Any], *, verb: str = "open", **options: Any) -> "Viewer":
        """A new chat, or with the verb `openPage` the hook. `door` is the address of the server and a key."""
        viewer = Viewer(self, name, door)
        await viewer.ask(verb, **door, **options)
        return viewer

    async def read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            answer = json.loads(line)
            self._waiting[answer["id"]].set_result(answer)
        self._ended = True
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(EOFError(ENDED))


@dataclass
class Viewer:
    """One chat of the published package."""

    node: NodeClients
    name: str
    door: dict[str, Any]

    async def ask(self, verb: str, **options: Any) -> dict[str, Any]:
        return await self.node.ask(verb, chat=self.name, **options)

    async def when(self, ready: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Look until the chat is so."""
        async with asyncio.timeout(ANSWER_SECONDS):
            while not ready(seen := await self.ask("look")):
                await asyncio.sleep(0.01)
        return seen


def has_text(text: str) -> Callable[[dict[str, Any]], bool]:
    return lambda seen: any(
        text in part.get("text", "") for message in seen["messages"][1:] for part in message["parts"]
    )


@asynccontextmanager
async def node_clients(tree: Path) -> AsyncIterator[NodeClients]:
    process = await asyncio.create_subprocess_exec(
        "node",
        "chat.mjs",
        cwd=tree,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_LIMIT,
    )
    clients = NodeClients(process)
    reading = asyncio.create_task(clients.read())
    try:
        yield clients
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await reading


@asynccontextmanager
async def node_processes(scripts: Path, directory: Path) -> AsyncIterator[NodeOf]:
    """The process of each set of packages, started when it is first asked for."""
    started: dict[Packages, NodeClients] = {}
    async with AsyncExitStack() as stack:

        async def start(packages: Packages) -> NodeClients:
            if packages not in started:
                tree = directory / str(len(started))
                lay_out(tree, scripts, packages)
                started[packages] = await stack.enter_async_context(node_clients(tree))
            return started[packages]

        yield start
