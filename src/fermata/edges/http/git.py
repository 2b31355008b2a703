"""/git/<owner>/<name>.git: clone and push the workspaces that this server keeps.

Git asks without credentials first and then sends them as Basic: the password is the API key, the user name is
ignored. The headers of the API work too (`git -c http.extraHeader='x-api-key: ...'`).
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fermata.accounts.model import Caller
from fermata.edges.http.auth import read_credential
from fermata.edges.http.context import FermataDep
from fermata.edges.http.door import Door, public
from fermata.edges.http.errors import error_response
from fermata.flows.open_session import find_repository
from fermata.kit.errors import NotFoundError, UnauthenticatedError
from fermata.wiring import Fermata
from fermata.workspaces.contract import GitRequest, GitResponse

router = APIRouter(route_class=Door, include_in_schema=False)


class _Upload:
    """The request's body, and the moment when it has been read: until then nobody else may call `receive`,
    or it would take pieces of the body for itself."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.read = asyncio.Event()
        if request.method != "POST":
            self.read.set()

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._request.stream():
                yield piece
        finally:
            self.read.set()


class _GitStream(Response):
    """Streams git's answer while git reads the request, and ends git when the client goes away.

    Starlette's own streaming response waits for the disconnect from the start, and so eats the body.
    """

    def __init__(self, answer: GitResponse, upload: _Upload) -> None:
        super().__init__(headers=dict(answer.headers))
        del self.headers["content-length"]
        self._source = answer.body
        self._upload = upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._source):
            sending = asyncio.ensure_future(self._send(send))
            watching = asyncio.ensure_future(self._watch(receive))
            try:
                await asyncio.wait([sending, watching], return_when=asyncio.FIRST_COMPLETED)
            finally:
                watching.cancel()
                gone = sending.cancel()
                await asyncio.wait([sending, watching])
            if not gone:
                with suppress(ClientDisconnect):
                    sending.result()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for piece in self._source:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, receive: Receive) -> None:
        await self._upload.read.wait()
        while (await receive())["type"] != "http.disconnect":
            pass


@router.api_route("/git/{owner}/{name}/{tail:path}", methods=["GET", "POST"])
@public  # authenticates by itself, because git wants to be asked for a Basic password
async def serve_git(fermata: FermataDep, request: Request, owner: str, name: str, tail: str) -> Response:
    try:
        caller = await fermata.accounts.authenticate(_credential(request))
    except UnauthenticatedError as error:
        response = error_response(error)
        response.headers["www-authenticate"] = 'Basic realm="Fermata API key as password", charset="UTF-8"'
        return response
    if not name.endswith(".git"):
        raise NotFoundError("Repository not found")
    return await _answer(fermata, caller, request, owner, name.removesuffix(".git"), tail)


async def _answer(
    fermata: Fermata, caller: Caller, request: Request, owner: str, name: str, tail: str
) -> Response:
    repository = await fermata.database.read(
        lambda connection: find_repository(connection, fermata.workspaces, caller, owner, name)
    )
    if fermata.workspaces.is_own(repository):
        await fermata.workspaces.ensure_workspace(repository)
    upload = _Upload(request)
    answer = await fermata.workspaces.answer(
        repository,
        GitRequest(
            method=request.method,
            tail=tail,
            service=request.query_params.get("service"),
            content_type=request.headers.get("content-type"),
            content_encoding=request.headers.get("content-encoding"),
            protocol=request.headers.get("git-protocol"),
            body=upload.pieces() if request.method == "POST" else None,
        ),
    )
    return _GitStream(answer, upload)


def _credential(request: Request) -> str:
    authorization = request.headers.get("authorization", "")
    if authorization[:6].lower() != "basic " or "x-api-key" in request.headers:
        return read_credential(request.scope)
    try:
        _, _, password = base64.b64decode(authorization[6:], validate=True).decode("latin-1").partition(":")
    except binascii.Error:
        raise UnauthenticatedError("Unauthorized") from None
    return password
