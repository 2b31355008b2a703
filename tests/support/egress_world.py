"""An egress proxy between real sockets: a sandbox on its one side, servers on the other."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

from fermata.sandboxes.addresses import IPAddress
from fermata.sandboxes.egress import EgressProxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def refuse_all_but_loopback(address: IPAddress) -> str | None:
    """Stands for the rule that only public addresses are allowed: here 127.0.0.0/28 plays the public."""
    return None if int(address) >> 4 == int(ip_address("127.0.0.0")) >> 4 else "a private address"


class Names:
    """A resolver with a table, which notes what it was asked."""

    def __init__(self) -> None:
        self.table: dict[str, list[str]] = {"up.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[IPAddress]:
        self.asked.append(host)
        if host.startswith("slow"):
            await asyncio.sleep(300)
        if host not in self.table:
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return [ip_address(address) for address in self.table[host]]


class World:
    """A proxy with one sandbox, and servers for it to reach."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self.names = Names()
        self._stack = stack
        self.requests: list[bytes] = []

    async def start(self, **options: object) -> EgressProxy:
        keywords = {"permit": refuse_all_but_loopback, "resolve": self.names, "ports": None} | options
        self.proxy = EgressProxy(**keywords)  # type: ignore[arg-type]
        self._stack.push_async_callback(self.proxy.close)
        self.port = await self.listen("box")
        return self.proxy

    async def listen(self, sandbox: str) -> int:
        sock = socket.create_server(("127.0.0.1", 0))
        await self.proxy.serve(sock, sandbox)
        return int(sock.getsockname()[1])

    async def connect(self, port: int | None = None) -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.port)

        async def close() -> None:
            writer.transport.abort()

        self._stack.push_async_callback(close)
        return reader, writer

    async def ask(self, request: bytes, port: int | None = None) -> bytes:
        """Everything that comes back for a request on a connection of its own."""
        reader, writer = await self.connect(port)
        writer.write(request)
        return await reader.read()

    async def upstream(self, handle: Handler) -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await handle(reader, writer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._stack.callback(server.close)
        return int(server.sockets[0].getsockname()[1])

    async def answering(self, response: bytes = OK) -> int:
        """A server that notes the head of each request and gives a fixed answer."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(response)

        return await self.upstream(answer)


def get(url: str, *headers: str, host: str | None = None, close: bool = True) -> bytes:
    host = host or url.removeprefix("http://").partition("/")[0]
    lines = [f"GET {url} HTTP/1.1", f"Host: {host}", *headers, *(["Connection: close"] if close else [])]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])
