"""HTTP/1.1 between a sandbox and a server: what the egress proxy does once it has allowed a request."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import cast

import h11

from fermata.sandboxes.addresses import Target, parse_authority

CHUNK = 65_536
_HEADERS_AT_MOST = 32_768
#: How long a connection that has been answered or closed may take to take note, in seconds.
_LINGER = 2.0
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"}
)


class AnswerError(Exception):
    """Ends a request with a status and a sentence for whoever reads it inside the sandbox."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


class Wire:
    """One side of the proxy: an HTTP/1.1 parser on a stream. `touched` is called when bytes moved."""

    def __init__(
        self,
        role: type[h11.SERVER] | type[h11.CLIENT],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        touched: Callable[[], None],
    ) -> None:
        self.conn = h11.Connection(role, max_incomplete_event_size=_HEADERS_AT_MOST)
        self.reader = reader
        self.writer = writer
        self.touched = touched

    async def next_event(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self.conn.next_event()) is h11.NEED_DATA:
            self.conn.receive_data(await self.reader.read(CHUNK))
            self.touched()
        return cast("h11.Event | type[h11.PAUSED]", event)

    async def send(self, event: h11.Event) -> None:
        if data := self.conn.send(event):
            self.writer.write(data)
            await self.writer.drain()
            self.touched()

    async def answer(self, status: HTTPStatus, sentence: str) -> None:
        """A short text as the whole response, and no request after it."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.writer.transport.abort()
            return
        body = f"{sentence}\n".encode()
        headers = [
            ("content-type", "text/plain; charset=utf-8"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        response = h11.Response(status_code=status, headers=headers, reason=status.phrase.encode())
        with contextlib.suppress(OSError):
            async with asyncio.timeout(_LINGER):
                for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                    self.writer.write(self.conn.send(event) or b"")
                await self.writer.drain()
                self.writer.write_eof()
                # Closing on unread bytes would reset the connection and take the answer with it.
                while await self.reader.read(CHUNK):
                    pass

    async def close(self) -> None:
        self.writer.close()
        try:
            async with asyncio.timeout(_LINGER):
                await self.writer.wait_closed()
        except OSError:
            self.writer.transport.abort()


async def tunnel(client: Wire, upstream: Wire) -> None:
    """Copy both ways until both are closed; one side may close its half long before the other."""
    early, _ = client.conn.trailing_data
    upstream.writer.write(early)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_pump(client, upstream))
            group.create_task(_pump(upstream, client))
    except* OSError as errors:
        raise errors.exceptions[0] from None


async def _pump(source: Wire, sink: Wire) -> None:
    while data := await source.reader.read(CHUNK):
        sink.writer.write(data)
        await sink.writer.drain()
        source.touched()
    if sink.writer.can_write_eof():
        sink.writer.write_eof()


async def forward(client: Wire, upstream: Wire, request: h11.Request, target: Target, path: bytes) -> None:
    """Pass a request on and its response back, both bodies at once: a server may answer before the end."""
    headers = [(name, value) for name, value in _end_to_end(request.headers) if name != b"host"]
    host = target.authority.removesuffix(":80").encode()
    await upstream.send(
        h11.Request(
            method=request.method,
            target=path,
            headers=[(b"host", host), *headers, (b"connection", b"close")],
        )
    )
    upload = asyncio.create_task(_upload(client, upstream))
    try:
        await _download(upstream, client, target)
    finally:
        upload.cancel()
        await asyncio.gather(upload, return_exceptions=True)


async def _upload(client: Wire, upstream: Wire) -> None:
    try:
        if client.conn.they_are_waiting_for_100_continue:
            await client.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        while True:
            event = await client.next_event()
            if isinstance(event, h11.EndOfMessage):
                event = h11.EndOfMessage()
            elif not isinstance(event, h11.Data):
                raise ConnectionError("the request ended in the middle")
            try:
                await upstream.send(event)
            except OSError:
                return  # The server has heard enough; what it answered is read by `_download`.
            if isinstance(event, h11.EndOfMessage):
                return
    except (OSError, h11.RemoteProtocolError):
        upstream.writer.transport.abort()


async def _download(upstream: Wire, client: Wire, target: Target) -> None:
    broken = AnswerError(HTTPStatus.BAD_GATEWAY, f"{target.authority} gave no proper answer.")
    try:
        event = await upstream.next_event()
        while isinstance(event, h11.InformationalResponse):
            event = await upstream.next_event()
        if not isinstance(event, h11.Response):
            raise broken
        response = h11.Response(
            status_code=event.status_code, headers=_end_to_end(event.headers), reason=event.reason
        )
    except (OSError, h11.RemoteProtocolError):
        raise broken from None
    await client.send(response)
    while True:
        try:
            event = await upstream.next_event()
        except h11.RemoteProtocolError as error:
            raise ConnectionError(str(error)) from error
        if isinstance(event, h11.Data):
            await client.send(event)
        else:
            await client.send(h11.EndOfMessage())
            return


def read_target(request: h11.Request) -> tuple[Target, bytes]:
    """Whom a request is for and, unless it is CONNECT, the path to ask there for."""
    if request.http_version not in (b"1.0", b"1.1"):
        raise AnswerError(HTTPStatus.BAD_REQUEST, "This proxy speaks HTTP/1.0 and HTTP/1.1.")
    if sum(len(name) + len(value) for name, value in request.headers) > _HEADERS_AT_MOST:
        raise AnswerError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The headers are too large.")
    text = request.target.decode("ascii", "replace")
    path = b""
    if request.method == b"CONNECT":
        target = parse_authority(text)
    elif text[:7].lower() == "http://":
        end = min((at for at in map(text[7:].find, "/?#") if at >= 0), default=len(text) - 7) + 7
        target = parse_authority(text[7:end], default_port=80)
        path = request.target[end:].partition(b"#")[0]
        path = path if path.startswith(b"/") else b"/" + path
    else:
        raise AnswerError(
            HTTPStatus.BAD_REQUEST,
            "This is a proxy: it takes requests for http:// addresses, and CONNECT for everything else.",
        )
    if target is None:
        raise AnswerError(HTTPStatus.BAD_REQUEST, "The request names no proper host and port.")
    for name, value in request.headers:
        if name == b"host":
            named = parse_authority(value.decode("ascii", "replace"), default_port=target.port)
            if named != target:
                raise AnswerError(
                    HTTPStatus.BAD_REQUEST, f"The Host header names another host than {target.authority}."
                )
    return target, path


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers without those that are between neighbours only, or that `Connection` names as such."""
    headers = list(headers)
    dropped = set(_HOP_BY_HOP)
    for name, value in headers:
        if name == b"connection":
            dropped |= {token.strip().lower() for token in value.split(b",")} - {b"content-length"}
    chunked = [(name, b"chunked") for name, _ in headers if name == b"transfer-encoding"][:1]
    if chunked:
        dropped.add(b"content-length")
    kept = [
        (name, value) for name, value in headers if name not in dropped and not name.startswith(b"proxy-")
    ]
    return kept + chunked
