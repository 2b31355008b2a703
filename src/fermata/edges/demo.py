"""`fermata demo`: the whole journey against a server of its own, told in the terminal with times."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from fermata.client import Client

T = TypeVar("T")

FIRST = """Please add a note and commit it.

```bash
echo "A fermata holds the note." > note.txt
git add note.txt && git commit -q -m "Add a note" && git log --oneline | head -3
```
"""
SECOND = """Is the note still there?

```bash
cat note.txt && git log -1 --format=%s && git status --short
```
"""
NOTE = "A fermata holds the note."


class DemoFailedError(Exception):
    """A step did not do what it should; the text says which and how."""


class Narrator:
    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.figures: list[tuple[str, float]] = []

    def say(self, text: str) -> None:
        self.console.print(text)

    async def step(self, what: str, work: Awaitable[T]) -> T:
        """Do one step and tell how long it took."""
        start = time.perf_counter()
        result = await work
        took = (time.perf_counter() - start) * 1000
        self.figures.append((what, took))
        self.console.print(f"[green]✓[/green] {what} [dim]{took:.1f} ms[/dim]")
        return result

    def table(self) -> None:
        table = Table(title="Figures", title_justify="left", show_edge=False)
        table.add_column("step")
        table.add_column("ms", justify="right")
        for what, took in self.figures:
            table.add_row(what, f"{took:.1f}")
        self.console.print()
        self.console.print(table)


def play(*, keep: bool, console: Console | None = None) -> int:
    """Run the demo; the process's exit status."""
    narrator = Narrator(console)
    home = Path(tempfile.mkdtemp(prefix="fermata-demo-"))
    try:
        with _server(home, narrator) as (url, key):
            asyncio.run(_journey(narrator, url, key, home))
        narrator.table()
        narrator.say(
            "\n[bold]The journey is complete.[/bold] Start your own server with [bold]make serve[/bold]."
        )
    except DemoFailedError as failure:
        narrator.say(f"[red]✗ {failure}[/red]")
        log = home / "server.log"
        narrator.say(f"[dim]{log.read_text(errors='replace')[-4000:] if log.exists() else ''}[/dim]")
        return 1
    finally:
        if keep:
            narrator.say(f"Data kept in {home}")
        else:
            shutil.rmtree(home, onerror=_make_writable)
    return 0


async def _journey(narrator: Narrator, url: str, key: str, home: Path) -> None:
    async with Client(url, key) as client:
        opened = await narrator.step("Create a session", client.create_session(title="Demo"))
        session, chat = opened["session"], opened["chat"]
        repository = session["cloneUrl"].removeprefix("https://github.com/")
        await narrator.step(
            "Push a repository with history to the built-in git host",
            asyncio.to_thread(_push_history, home, f"{url}/git/{repository}.git", key),
        )
        await _start(narrator, client, session, "Provision its sandbox and clone the repository")
        await _turn(
            narrator, client, session, chat, "First turn: edit a file and commit it", FIRST, "Add a note"
        )
        await narrator.step("Hibernate", client.pause_sandbox(session["id"]))
        await _expect_state(client, session, "hibernated")
        await _start(narrator, client, session, "Restore")
        await _turn(
            narrator, client, session, chat, "Second turn: it sees the first one's file", SECOND, NOTE
        )
        again = await client.create_session(title="Demo, second session")
        await asyncio.sleep(1.5)  # the base snapshot is built in the background after the first clone
        await _start(narrator, client, again["session"], "A second session boots from the base snapshot")
        for one in (session, again["session"]):
            await client.delete_session(one["id"])


async def _start(narrator: Narrator, client: Client, session: dict[str, Any], what: str) -> None:
    await narrator.step(what, client.start_sandbox(session["id"], session["cloneUrl"]))
    await _expect_state(client, session, "active")


async def _expect_state(client: Client, session: dict[str, Any], state: str) -> None:
    found = await client.get_session(session["id"])
    if found["lifecycleState"] != state:
        raise DemoFailedError(f"The sandbox should be {state} and is {found['lifecycleState']}.")


async def _turn(
    narrator: Narrator,
    client: Client,
    session: dict[str, Any],
    chat: dict[str, Any],
    what: str,
    text: str,
    expected: str,
) -> None:
    narrator.say(f"  [cyan]you[/cyan]    {text.splitlines()[0]}")
    answer = await narrator.step(what, _answer(client, session, chat, text))
    for line in answer.strip().splitlines():
        narrator.say(f"  [magenta]agent[/magenta]  {line}")
    if expected not in answer:
        raise DemoFailedError(f"{what}: the answer does not hold {expected!r}.")
    stored = (await client.get_messages(session["id"], chat["id"]))[-1]
    if _text_of(stored["parts"]) != answer:
        raise DemoFailedError(f"{what}: the stored message differs from what was streamed.")


async def _answer(client: Client, session: dict[str, Any], chat: dict[str, Any], text: str) -> str:
    texts: list[str] = []
    async for chunk in client.chat(session["id"], chat["id"], text):
        if chunk["type"] == "text-start":
            texts.append("")
        if chunk["type"] == "text-delta":
            texts[-1] += chunk["delta"]
        if chunk["type"] == "error":
            raise DemoFailedError(chunk["errorText"])
    return "\n".join(texts)


def _text_of(parts: list[dict[str, Any]]) -> str:
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


def _push_history(home: Path, remote: str, key: str) -> None:
    """A repository with twenty commits, pushed as a person would: over HTTP with the API key."""
    work = home / "history"
    environment = os.environ | {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "http.extraHeader",
        "GIT_CONFIG_VALUE_0": f"x-api-key: {key}",
        "GIT_AUTHOR_NAME": "Demo",
        "GIT_AUTHOR_EMAIL": "demo@localhost",
        "GIT_COMMITTER_NAME": "Demo",
        "GIT_COMMITTER_EMAIL": "demo@localhost",
        "GIT_TERMINAL_PROMPT": "0",
    }

    def git(*arguments: str, cwd: Path = work) -> None:
        done = subprocess.run(
            ["git", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise DemoFailedError(f"git {arguments[0]} failed: {done.stderr.strip()}")

    git("clone", "-q", remote, str(work), cwd=home)
    for number in range(1, 21):
        (work / f"chapter-{number:02}.md").write_text(f"# Chapter {number}\n\nOnce more, with feeling.\n")
        git("add", ".")
        git("commit", "-q", "-m", f"Write chapter {number}")
    git("push", "-q", "origin", "HEAD")


@contextmanager
def _server(home: Path, narrator: Narrator) -> Iterator[tuple[str, str]]:
    """A server in a process of its own, on a free port; its URL and the first account's key."""
    start = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FERMATA_")}
    environment |= {
        "FERMATA_PORT": "0",
        "FERMATA_DATA_DIR": str(home / "data"),
        # The journey starts its sandboxes itself, to time them; and the host's programs are base enough.
        "FERMATA_ORCHESTRATOR": "false",
        "FERMATA_SANDBOX_BASE_BUILD": "false",
    }
    output = home / "server.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fermata.edges.cli", "serve"],
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        url = _wait_until_up(process, output)
        took = (time.perf_counter() - start) * 1000
        narrator.say(f"[green]✓[/green] A server of its own, {url} [dim]{took:.0f} ms[/dim]")
        key = (home / "data" / "api-key").read_text(encoding="ascii").strip()
        yield url, key
    finally:
        process.terminate()
        try:
            status = process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = -9
    if status != 0:
        raise DemoFailedError(f"The server ended with status {status}.")


def _wait_until_up(process: "subprocess.Popen[bytes]", output: Path) -> str:
    for _ in range(600):
        found = re.search(r"Fermata (http://\S+)", output.read_text(errors="replace"))
        if found:
            return found[1]
        if process.poll() is not None:
            raise DemoFailedError("The server did not start.")
        time.sleep(0.05)
    raise DemoFailedError("The server did not start within 30 seconds.")


def _make_writable(_: Any, path: str, __: Any) -> None:
    """A layer's work directory has mode 0000, which keeps its owner from removing it."""
    Path(path).chmod(0o700)
    shutil.rmtree(path)
