"""Git's smart HTTP protocol, versions 0 to 2, without the HTTP: a request in, an answer out.

The edge authenticates, decides whether the caller may read or write (`GitRequest.writes`), passes the
request on and sends the answer. Everything said here is what `git http-backend` does, less the parts
that serve files.
"""

import os
import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

from fermata.kit.errors import BodyTooLargeError, InvalidRequestError, NotFoundError
from fermata.workspaces import git
from fermata.workspaces.contract import READ, WRITE, GitRequest, GitResponse

_SERVICES = (READ, WRITE)

#: What a client wants and has, decoded. Git itself sends at most a few hundred KiB.
READ_BODY_LIMIT = 16 * 1024 * 1024
#: A clone or a push over a slow line takes long; one that takes longer than this is not alive.
TIME_LIMIT = timedelta(hours=1)
_PROTOCOL = re.compile(r"(?:^|:)version=([012])(?:$|:)")
_NEVER_CACHED = {
    "cache-control": "no-cache, max-age=0, must-revalidate",
    "expires": "Fri, 01 Jan 1980 00:00:00 GMT",
    "pragma": "no-cache",
}


async def answer(repository: Path, request: GitRequest) -> GitResponse:
    """Answer one request for the bare repository at `repository`.

    `NotFoundError` for anything that is not part of the protocol (the old one without a service included),
    `InvalidRequestError` for a body of another kind, `BodyTooLargeError` for an oversized one.
    """
    version = _protocol_version(request.protocol)
    if request.method == "GET" and request.tail == "info/refs" and request.service in _SERVICES:
        return await _advertise(repository, request.service, version)
    if request.method == "POST" and request.tail in _SERVICES and request.body is not None:
        return await _exchange(repository, request, request.body, version)
    raise NotFoundError("Only git's smart HTTP protocol is served here.")


async def _advertise(repository: Path, service: str, version: int) -> GitResponse:
    done = await git.run(
        service.removeprefix("git-"),
        "--stateless-rpc",
        "--advertise-refs",
        ".",
        cwd=repository,
        environment=_environment(version),
    )
    if done.exit_code != 0:
        raise git.failure(service, done.exit_code, done.stderr)
    announcement = b"" if version == 2 and service == READ else _announce(service)
    headers = {"content-type": f"application/x-{service}-advertisement", **_NEVER_CACHED}
    return GitResponse(headers, git.one_piece(announcement + done.stdout))


async def _exchange(
    repository: Path, request: GitRequest, body: AsyncIterable[bytes], version: int
) -> GitResponse:
    service = request.tail
    if request.content_type != f"application/x-{service}-request":
        raise InvalidRequestError(f"The content type must be application/x-{service}-request.")
    match request.content_encoding:
        case None | "" | "identity":
            decoded: AsyncGenerator[bytes, None] = _plain(body)
        case "gzip" | "x-gzip":
            decoded = _gunzip(body)
        case _:
            raise InvalidRequestError("The content encoding must be gzip or none.")
    if service == READ:
        # Small, and read whole before git starts, so that a bad one is refused with a proper status.
        decoded = git.one_piece(await _collect(decoded, READ_BODY_LIMIT))
    headers = {"content-type": f"application/x-{service}-result", **_NEVER_CACHED}
    return GitResponse(headers, _converse(repository, service, decoded, version))


async def _converse(
    repository: Path, service: str, body: AsyncGenerator[bytes, None], version: int
) -> AsyncGenerator[bytes, None]:
    """Run one stateless exchange. Git writes its own refusals into its output, where the client shows them;
    an exit status that is not 0 says nothing more to it."""
    verb = service.removeprefix("git-")
    async with (
        aclosing(body),
        git.start(
            verb,
            "--stateless-rpc",
            ".",
            cwd=repository,
            time_limit_for=TIME_LIMIT,
            environment=_environment(version),
        ) as process,
    ):
        process.feed(body)
        answered = False
        output = _output(process)
        async with aclosing(output if service == READ else _hide(output, _real_path(repository))) as pieces:
            async for piece in pieces:
                answered = True
                yield piece
        code, stderr = await process.wait()
        if code != 0:
            error = git.failure(verb, code, stderr)
            if not answered:
                raise error


async def _output(process: git.Git) -> AsyncGenerator[bytes, None]:
    while piece := await process.read():
        yield piece


def _real_path(repository: Path) -> bytes:
    return os.fsencode(repository.resolve())


async def _hide(pieces: AsyncGenerator[bytes, None], path: bytes) -> AsyncGenerator[bytes, None]:
    """Make `path` look like `./`, also across pieces. In place, because packets say how long they are.

    Git names the repository's place on the disk when it cannot write there. Only for the report of a push:
    in a clone the bytes could be a file's.
    """
    held = b""
    async for piece in pieces:
        data = (held + piece).replace(path, b"." + b"/" * (len(path) - 1))
        kept = next((size for size in range(len(path) - 1, 0, -1) if data.endswith(path[:size])), 0)
        data, held = data[: len(data) - kept], data[len(data) - kept :]
        if data:
            yield data
    if held:
        yield held


def _environment(version: int) -> dict[str, str]:
    return {"GIT_PROTOCOL": f"version={version}"} if version else {}


def _protocol_version(header: str | None) -> int:
    found = _PROTOCOL.search(header or "")
    return int(found[1]) if found else 0


def _announce(service: str) -> bytes:
    line = f"# service={service}\n".encode()
    return b"%04x%s0000" % (len(line) + 4, line)


async def _plain(body: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    async for piece in body:
        if piece:
            yield piece


async def _gunzip(body: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Decode in pieces of bounded size, however much a few bytes expand to."""
    decoder = zlib.decompressobj(wbits=31)
    async for piece in body:
        while piece:
            try:
                decoded = decoder.decompress(piece, git.CHUNK)
            except zlib.error as error:
                raise InvalidRequestError("The body is not valid gzip.") from error
            if decoded:
                yield decoded
            piece = decoder.unconsumed_tail
            if decoder.unused_data:
                raise InvalidRequestError("The body has more than one gzip member.")
    if not decoder.eof:
        raise InvalidRequestError("The gzip body is cut short.")


async def _collect(body: AsyncGenerator[bytes, None], limit: int) -> bytes:
    collected = bytearray()
    async with aclosing(body):
        async for piece in body:
            collected += piece
            if len(collected) > limit:
                raise BodyTooLargeError(f"The request is larger than {limit} bytes.")
    return bytes(collected)
