"""Many sessions at once, and a server that ends at any moment: `python -m bench.chaos [rounds] [seed]`.

Each round sends messages, pauses, starts, stops and probes in all sessions, ends the server by SIGKILL or
SIGTERM after a random while, starts it again, and then checks that every message that was accepted is
answered once, that no command ran twice, that nothing is stuck and nothing of the old server is left.
"""

import asyncio
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.forking import ForkServer
from tests.support.journeys import Journey
from tests.support.processes import ServerProcess, chat, shell, since_boot, stored_messages
from tests.support.serving import Client

SESSIONS = 6


class Chaos:
    def __init__(self, server: ServerProcess, dice: random.Random) -> None:
        self._server = server
        self._dice = dice
        self._sessions: list[dict[str, Any]] = []
        #: Messages that were sent, by session; the last of each may not have arrived.
        self._sent: dict[str, list[str]] = {}
        self.messages = 0

    async def open(self) -> None:
        async with self._server.client() as client:
            self._sessions = [await client.open() for _ in range(SESSIONS)]
        self._sent = {session["id"]: [] for session in self._sessions}

    async def round(self) -> None:
        async with self._server.client() as client:
            users = [asyncio.create_task(self._use(client, session)) for session in self._sessions]
            await asyncio.sleep(0.3 + 1.5 * self._dice.random())
            number = self._dice.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
            self._server.signal(number)
            status = await self._server.ended()
            assert status == (0 if number is signal.SIGTERM else -number), self._server.log[-4000:]
            for user in users:
                user.cancel()
            await asyncio.gather(*users, return_exceptions=True)
        begun = since_boot()
        await self._server.start()
        self._server.check_nothing_is_left(begun)
        async with self._server.client() as client:
            for session in self._sessions:
                await self._check(client, session)

    async def _use(self, client: Client, session: dict[str, Any]) -> None:
        """Until the connection breaks."""
        body = {"sessionId": session["id"], "repoUrl": session["cloneUrl"]}
        while True:
            match self._dice.choices(("say", "pause", "start", "stop", "probe"), (60, 15, 15, 5, 5))[0]:
                case "say":
                    self.messages += 1
                    name = f"message-{self.messages}"
                    self._sent[session["id"]].append(name)
                    text = shell(f"echo {name} >> lines; sleep {0.2 * self._dice.random()}")
                    if (await chat(client, session, text, name)).status == 0:
                        return
                case "pause":
                    await client.post("/api/sandbox/snapshot", {"sessionId": session["id"]})
                case "start":
                    await client.post("/api/sandbox", body)
                case "stop":
                    await client.post(f"/api/chat/{session['chat']['id']}/stop")
                case _:
                    await client.get(f"/api/sandbox/reconnect?sessionId={session['id']}")

    async def _check(self, client: Client, session: dict[str, Any]) -> None:
        sent = self._sent[session["id"]]
        for name in sent[-3:]:  # what was accepted is rejoined, the rest is accepted now
            assert (await chat(client, session, shell(f"echo {name} >> lines"), name)).status in (200, 202)
        await Journey(self._server).settled(session["id"])
        stored = await stored_messages(client, session)
        assert [one["role"] for one in stored] == ["user", "assistant"] * (len(stored) // 2)
        assert set(sent) <= {one["id"] for one in stored}
        self.messages += 1
        seen = await chat(client, session, shell("touch lines; cat lines"), f"check-{self.messages}")
        [call] = [part for part in seen.message["parts"] if part["type"] == "tool-bash"]
        lines = call["output"]["stdout"].split()
        assert len(lines) == len(set(lines)), "a command ran twice"


async def play(forks: ForkServer, rounds: int, seed: int) -> None:
    home = Path(tempfile.mkdtemp(prefix="fermata-chaos-"))
    server = ServerProcess(forks, home, orchestrator="true", sandbox_idle="3s")
    await server.start()
    try:
        chaos = Chaos(server, random.Random(seed))
        await chaos.open()
        for number in range(1, rounds + 1):
            await chaos.round()
            sys.stdout.write(f"\rround {number} of {rounds}, {chaos.messages} messages ")
            sys.stdout.flush()
        assert await server.stop() == 0
        server.check_nothing_is_left()
        sys.stdout.write("\nnothing lost, doubled, stuck or left\n")
    finally:
        await server.stop()
    shutil.rmtree(home, onerror=_make_writable)


def _make_writable(_: object, path: str, __: object) -> None:
    """An overlay's work directory has mode 0000."""
    Path(path).chmod(0o700)
    shutil.rmtree(path)


def main() -> None:
    rounds, seed = ([int(word) for word in sys.argv[1:]] + [12, 1][len(sys.argv) - 1 :])[:2]
    forks = ForkServer()
    try:
        asyncio.run(play(forks, rounds, seed))
    finally:
        forks.close()


if __name__ == "__main__":
    main()
