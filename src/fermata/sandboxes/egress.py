"""The one way out of a sandbox: a forward proxy for HTTP and, by CONNECT, for everything in TLS.

A sandbox has no route and no resolver. It reaches this proxy on a listening socket that was made inside and
handed out; the proxy looks names up, refuses every address that is not public, and connects to the very
address that it judged, so that a second look-up cannot give another one. Each request is judged anew and
each decision is logged and remembered.

It goes out directly: on a machine whose own way out is a proxy (`HTTPS_PROXY`), sandboxes have none, because
a second proxy would look names up again and unjudged.
"""

import asyncio
import contextlib
import socket
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from ipaddress import ip_address

import h11
import structlog

from fermata.sandboxes.addresses import IPAddress, Target, refuse_address, refuse_name, unwrap
from fermata.sandboxes.egress_http import CHUNK, AnswerError, Wire, forward, read_target, tunnel

_log = structlog.get_logger(__name__)

#: SSH and git's own protocol for repositories, HTTP and TLS in their usual places. No mail, no databases.
PORTS = frozenset({22, 80, 443, 8080, 8443, 9418})
_ADDRESSES_AT_MOST = 4


@dataclass(frozen=True, slots=True)
class Decision:
    at: datetime
    host: str
    port: int
    #: Why not; None when the connection was allowed.
    refused: str | None


class EgressProxy:
    """Serves any number of sandboxes; what one does is bounded and does not slow another.

    `permit` says why an address is refused, or None; `resolve` gives the addresses of a name.
    """

    def __init__(
        self,
        *,
        permit: Callable[[IPAddress], str | None] = refuse_address,
        resolve: Callable[[str, int], Awaitable[list[IPAddress]]] | None = None,
        ports: Iterable[int] | None = PORTS,
        connections_at_most: int = 128,
        remembered_at_most: int = 200,
        connect_within: timedelta = timedelta(seconds=15),
        idle_for: timedelta = timedelta(minutes=5),
    ) -> None:
        self._permit = permit
        self._resolver = ThreadPoolExecutor(max_workers=32, thread_name_prefix="egress-resolve")
        self._resolve = resolve or self._look_up
        self._ports = None if ports is None else frozenset(ports)
        self._connections_at_most = connections_at_most
        self._connect_within = connect_within.total_seconds()
        self._idle_for = idle_for.total_seconds()
        self._servers: dict[str, list[asyncio.Server]] = defaultdict(list)
        self._tasks: dict[str, set[asyncio.Task[None]]] = defaultdict(set)
        self._looking_up: set[asyncio.Task[list[IPAddress]]] = set()
        self._places: Counter[str] = Counter()
        self._lookups: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(4))
        self._decisions: dict[str, deque[Decision]] = defaultdict(lambda: deque(maxlen=remembered_at_most))

    async def serve(self, sock: socket.socket, sandbox: str) -> None:
        """Serve a listening stream socket, which is the proxy's own from here on, until `release`."""

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # As many again may be told that there is no place; more than that are not even answered.
            if sandbox not in self._servers or len(self._tasks[sandbox]) >= 2 * self._connections_at_most:
                writer.transport.abort()
                return
            if sock.family != socket.AF_UNIX:
                # Left to itself the kernel holds the end of an answer back until its start is acknowledged.
                connection = writer.get_extra_info("socket")
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tasks = self._tasks[sandbox]
            task = asyncio.get_running_loop().create_task(self._converse(reader, writer, sandbox))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        start = asyncio.start_unix_server if sock.family == socket.AF_UNIX else asyncio.start_server
        self._servers[sandbox].append(await start(accept, sock=sock, limit=CHUNK))

    async def release(self, sandbox: str) -> None:
        """Close the sandbox's sockets and all its connections. Its decisions are forgotten."""
        for server in self._servers.pop(sandbox, []):
            server.close()
        tasks = self._tasks.pop(sandbox, set())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lookups.pop(sandbox, None)
        self._places.pop(sandbox, None)
        self._decisions.pop(sandbox, None)

    async def close(self) -> None:
        for sandbox in list(self._servers):
            await self.release(sandbox)
        for task in self._looking_up:
            task.cancel()
        await asyncio.gather(*self._looking_up, return_exceptions=True)
        self._resolver.shutdown(wait=False, cancel_futures=True)

    def decisions(self, sandbox: str) -> tuple[Decision, ...]:
        """The latest decisions, oldest first. Empty for an unknown sandbox."""
        return tuple(self._decisions.get(sandbox, ()))

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sandbox: str
    ) -> None:
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(self._idle_for)
        wire = Wire(h11.SERVER, reader, writer, lambda: limit.reschedule(loop.time() + self._idle_for))
        try:
            async with limit:
                with self._place(sandbox):
                    while await self._serve_request(wire, sandbox):
                        wire.conn.start_next_cycle()
        except AnswerError as answer:
            await wire.answer(answer.status, answer.sentence)
        except h11.RemoteProtocolError as error:
            await wire.answer(HTTPStatus(error.error_status_hint), f"Not a proper request: {error}.")
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        except OSError as error:  # Includes TimeoutError: a peer went away or both fell silent.
            _log.debug("egress_connection_lost", sandbox=sandbox, error=type(error).__name__)
            writer.transport.abort()
        finally:
            await wire.close()

    @contextlib.contextmanager
    def _place(self, sandbox: str) -> Iterator[None]:
        """One of the sandbox's connections, free again before the last answer has been taken note of."""
        if self._places[sandbox] >= self._connections_at_most:
            raise AnswerError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"This sandbox has {self._connections_at_most} connections open already.",
            )
        self._places[sandbox] += 1
        try:
            yield
        finally:
            self._places[sandbox] -= 1

    async def _serve_request(self, wire: Wire, sandbox: str) -> bool:
        """Serve one request; whether another may follow on the connection."""
        request = await wire.next_event()
        if not isinstance(request, h11.Request):
            return False
        target, path = read_target(request)
        reader, writer = await self._connect(target, sandbox)
        upstream = Wire(h11.CLIENT, reader, writer, wire.touched)
        try:
            if request.method == b"CONNECT":
                await wire.send(h11.Response(status_code=200, headers=[], reason=b"Connection established"))
                await tunnel(wire, upstream)
            else:
                await forward(wire, upstream, request, target, path)
        except BaseException:
            writer.transport.abort()
            raise
        await upstream.close()
        return wire.conn.our_state is h11.DONE and wire.conn.their_state is h11.DONE

    async def _connect(
        self, target: Target, sandbox: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(self._connect_within):
                addresses = await self._judge(target, sandbox)
                for address in addresses:
                    with contextlib.suppress(OSError):
                        return await asyncio.open_connection(str(address), target.port, limit=CHUNK)
        except TimeoutError:
            raise AnswerError(
                HTTPStatus.GATEWAY_TIMEOUT, f"{target.authority} could not be reached in time."
            ) from None
        raise AnswerError(HTTPStatus.BAD_GATEWAY, f"{target.authority} could not be reached.")

    async def _judge(self, target: Target, sandbox: str) -> list[IPAddress]:
        """The addresses to connect to, every one of them allowed. One bad address refuses the host."""
        refused: str | None = None
        addresses: list[IPAddress] = []
        if self._ports is not None and target.port not in self._ports:
            refused = f"port {target.port} is not open to sandboxes"
        else:
            refused = refuse_name(target.host)
        if refused is None:
            if (literal := target.literal) is not None:
                addresses = [literal]
            else:
                try:
                    addresses = await self._resolve_within_turn(target, sandbox)
                except OSError:
                    self._record(sandbox, target, "no such host")
                    raise AnswerError(
                        HTTPStatus.BAD_GATEWAY, f"The host {target.host} is not known."
                    ) from None
            words = next(filter(None, map(self._permit, addresses)), None)
            refused = None if words is None else f"it is {words}"
        self._record(sandbox, target, refused)
        if refused is not None:
            raise AnswerError(
                HTTPStatus.FORBIDDEN,
                f"A sandbox may not connect to {target.authority}: {refused}.",
            )
        return [unwrap(address) for address in addresses[:_ADDRESSES_AT_MOST]]

    async def _resolve_within_turn(self, target: Target, sandbox: str) -> list[IPAddress]:
        """Look a name up, four at a time per sandbox. A look-up that is given up keeps its place until it has
        really ended, because its thread cannot be stopped."""

        async def look_up() -> list[IPAddress]:
            async with turns:
                return await self._resolve(target.host, target.port)

        turns = self._lookups[sandbox]
        task = asyncio.create_task(look_up())
        self._looking_up.add(task)
        task.add_done_callback(self._looking_up.discard)
        # Whoever asked may be gone when it fails; then nobody wants to know.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    def _record(self, sandbox: str, target: Target, refused: str | None) -> None:
        decision = Decision(datetime.now(UTC), target.host, target.port, refused)
        self._decisions[sandbox].append(decision)
        _log.info("egress", sandbox=sandbox, host=target.host, port=target.port, refused=refused)

    async def _look_up(self, host: str, port: int) -> list[IPAddress]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._resolver, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [ip_address(entry[4][0]) for entry in found]
