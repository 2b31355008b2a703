"""A TCP proxy that cuts connections: after a number of bytes of the answer, a bounded number of times."""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum


class End(StrEnum):
    #: The connection is closed as by a proxy that ends: what was sent arrives.
    CLOSE = "close"
    #: The connection is reset, as by a machine that lost its power: what was not read yet is lost.
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Cut:
    #: Bytes of the answer, with its head, that are let through. Zero cuts before the first of them, when the
    #: request has arrived.
    after: int
    end: End = End.CLOSE


def random_cuts(seed: int, number: int, longest: int) -> list[Cut]:
    """Cuts that a seed decides: anywhere up to `longest` bytes behind the head, or before and within it."""
    dice = random.Random(seed)
    return [
        Cut(
            dice.choice([0, dice.randrange(1, 600), *[dice.randrange(600, longest)] * 4]),
            dice.choice(list(End)),
        )
        for _ in range(number)
    ]


class CuttingProxy:
    """Every connection takes the next cut of the plan; when there is none left, it is let through."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._plan: Iterator[Cut] = iter(())
        self._open: set[asyncio.StreamWriter] = set()
        #: Connections that were cut so far.
        self.made = 0
        #: Requests that were passed on so far.
        self.requests = 0
        self.url = ""

    def plan(self, cuts: Sequence[Cut]) -> None:
        """What to do with the connections from now on."""
        self._plan = iter(cuts)

    def cut_now(self) -> None:
        """Reset every connection that is open."""
        for writer in tuple(self._open):
            self.made += 1
            _reset(writer)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cut = next(self._plan, None)
        try:
            their_reader, theirs = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        self._open.add(writer)
        asking = asyncio.create_task(self._ask(reader, theirs))
        try:
            if await _answer(their_reader, writer, cut):
                self.made += 1
        finally:
            self._open.discard(writer)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            theirs.close()
            writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                self.requests += data.count(b" HTTP/1.1\r\n")
                writer.write(data)
                await writer.drain()
        writer.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: Cut | None) -> bool:
    """Copy the answer. True when it was cut."""
    passed = 0
    # Either end may vanish at any time: that is what this proxy is for.
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            if cut is not None and passed + len(data) > cut.after:
                writer.write(data[: cut.after - passed])
                await writer.drain()
                if cut.end is End.RESET:
                    _reset(writer)
                return True
            passed += len(data)
            writer.write(data)
            await writer.drain()
    return False


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def cutting_proxy(target_url: str) -> AsyncIterator[CuttingProxy]:
    """A proxy to a server on this machine, on a free port."""
    proxy = CuttingProxy(int(target_url.rsplit(":", 1)[1]))
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener:
        yield proxy
        proxy.cut_now()
