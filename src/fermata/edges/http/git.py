"""/git/<owner>/<name>.git: clone and push the workspaces that this server keeps.

Git asks without credentials first and then sends them as Basic: the password is the API key, the user name is
ignored. The headers of the API work too (`git -c http.extraHeader='x-api-key: ...'`).
"""

import base64
import binascii
from contextlib import aclosing

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
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


class _GitStream(StreamingResponse):
    """Ends git when the client goes away, wherever the stream stands then."""

    def __init__(self, answer: GitResponse) -> None:
        super().__init__(answer.body, headers=dict(answer.headers))
        self._source = answer.body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._source):
            await super().__call__(scope, receive, send)


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
    answer = await fermata.workspaces.answer(
        repository,
        GitRequest(
            method=request.method,
            tail=tail,
            service=request.query_params.get("service"),
            content_type=request.headers.get("content-type"),
            content_encoding=request.headers.get("content-encoding"),
            protocol=request.headers.get("git-protocol"),
            body=request.stream() if request.method == "POST" else None,
        ),
    )
    return _GitStream(answer)


def _credential(request: Request) -> str:
    authorization = request.headers.get("authorization", "")
    if authorization[:6].lower() != "basic " or "x-api-key" in request.headers:
        return read_credential(request.scope)
    try:
        _, _, password = base64.b64decode(authorization[6:], validate=True).decode("latin-1").partition(":")
    except binascii.Error:
        raise UnauthenticatedError("Unauthorized") from None
    return password
