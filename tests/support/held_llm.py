"""A model whose every call waits until the test says what it answers, and helpers to talk to it over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fermata.testing.scripted_llm import Gate, Script, ends, says
from fermata.turns.llms.catalogue import Catalogue
from fermata.turns.model import ModelCall, ModelEvent, Text, UserMessage
from tests.support.processes import Seen, watch
from tests.support.serving import Answer, Client


@dataclass
class HeldCall:
    call: ModelCall
    gate: Gate = field(default_factory=Gate)
    script: Script = ()

    @property
    def heard(self) -> list[str]:
        """The texts of the user's messages that the model sees."""
        return [
            part.text
            for message in self.call.messages
            if isinstance(message, UserMessage)
            for part in message.parts
            if isinstance(part, Text)
        ]

    def answer(self, *script: Any) -> None:
        """What the model says; without a script it repeats the last message."""
        self.script = script or (*says(f"You said {self.heard[-1]}."), ends())
        self.gate.open()


class HeldCatalogue(Catalogue):
    def __init__(self) -> None:
        super().__init__(default_model="held/model")
        #: Calls that nobody has looked at.
        self.waiting: asyncio.Queue[HeldCall] = asyncio.Queue()
        #: Calls are answered at once.
        self.free = False

    async def next(self) -> HeldCall:
        """The next call that a turn makes."""
        async with asyncio.timeout(10):
            return await self.waiting.get()

    def let_go(self) -> None:
        """Answer whatever waits, and from now on everything at once."""
        self.free = True
        while not self.waiting.empty():
            self.waiting.get_nowait().answer()

    @asynccontextmanager
    async def stream(self, call: ModelCall) -> AsyncIterator[AsyncIterator[ModelEvent]]:
        held = HeldCall(call)
        if self.free:
            held.answer()
        else:
            self.waiting.put_nowait(held)
        yield self._events(held)

    async def _events(self, held: HeldCall) -> AsyncIterator[ModelEvent]:
        await held.gate.wait()
        for event in held.script:
            await asyncio.sleep(0)
            yield event


async def send(
    client: Client, session: dict[str, Any], text: str, busy: str | None = None, **more: Any
) -> Answer:
    """Post a message, whose id is its text, and read no more of a stream than its head."""
    message = {"id": text, "role": "user", "parts": [{"type": "text", "text": text}]}
    body = {"sessionId": session["id"], "chatId": session["chat"]["id"], "messages": [message], **more}
    if busy is not None:
        body["busy"] = busy
    url, headers = f"{client.url}/api/chat", {"x-api-key": client.key or ""}
    async with client.http.post(url, json=body, headers=headers) as response:
        is_stream = response.content_type == "text/event-stream"
        return Answer(response.status, response.headers, b"" if is_stream else await response.read())


async def follow(client: Client, run_id: str) -> Seen:
    """A run's stream from its first chunk to its end."""
    async with asyncio.timeout(10):
        return await watch(client, "GET", f"/api/chat/{run_id}/stream")


def run_of(answer: Answer) -> str:
    return answer.headers["x-workflow-run-id"]
