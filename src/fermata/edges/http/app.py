"""The HTTP application: routes of every noun, and what surrounds them all."""

from typing import Any

from fastapi import FastAPI
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from fermata import __version__
from fermata.edges.http import (
    chat,
    chats_of_session,
    docs,
    events,
    git,
    health,
    models,
    organizations,
    queue,
    sandbox,
    sessions,
)
from fermata.edges.http.door import Door
from fermata.edges.http.errors import plain_error, unexpected_response
from fermata.edges.http.openapi import DESCRIPTION, build_openapi
from fermata.wiring import Fermata

#: Most used first: routes are tried in this order.
_ROUTERS = (
    sessions.router,
    chat.router,
    chats_of_session.router,
    sandbox.router,
    queue.router,
    events.router,
    organizations.router,
    models.router,
    health.router,
    docs.router,
    git.router,
)

_CORS = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"GET, POST, PUT, DELETE, OPTIONS, PATCH"),
    (
        b"access-control-allow-headers",
        b"Content-Type, Authorization, X-Requested-With, x-api-key, Idempotency-Key, If-Match, Last-Event-ID",
    ),
    (b"access-control-expose-headers", b"x-workflow-run-id, x-workflow-stream-tail-index"),
]

#: Paths whose OPTIONS answers 204 and not 200; clients of old have seen it so.
_OPTIONS_EMPTY = frozenset({"/api/sandbox", "/api/sandbox/status", "/api/sandbox/reconnect"})


class App(FastAPI):
    """FastAPI for signatures and the OpenAPI document; requests go through `_serve` and `Door` alone, which
    take half the time of FastAPI's own stack."""

    def __init__(self, fermata: Fermata) -> None:
        super().__init__(
            title="Fermata",
            version=__version__,
            description=DESCRIPTION,
            openapi_url=None,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        self._doors = [route for router in _ROUTERS for route in router.routes if isinstance(route, Door)]
        self.router.routes.extend(self._doors)
        #: Looked up, where there is nothing in a path to fill in; the others are tried one after the other.
        self._fixed: dict[str, list[Door]] = {}
        self._patterns: list[Door] = []
        for door in self._doors:
            fixed = "{" not in door.path
            (self._fixed.setdefault(door.path, []) if fixed else self._patterns).append(door)
        self.fermata = fermata
        #: Set when the server is asked to end: `/healthz` then sends balancers elsewhere.
        self.draining = False

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = build_openapi(self, sandbox_types=self.fermata.sandboxes.types)
        return self.openapi_schema

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """CORS on every answer, OPTIONS on every route, one envelope for all errors."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        started = False

        async def send_with_cors(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], *_CORS]
            await send(message)

        try:
            await self._dispatch(scope, receive, send_with_cors)
        except Exception as error:
            response = unexpected_response(error, method=scope["method"], path=scope["path"])
            if started:  # too late for a status: the cut connection is the answer
                raise
            await response(scope, receive, send_with_cors)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        for doors in (self._fixed.get(path, ()), self._patterns):
            for door in doors:
                if method in door.methods and (found := door.path_regex.match(path)):
                    scope["path_params"] = found.groupdict()
                    await door.serve(scope, receive, send)
                    return
        await self._answer_unmatched(scope)(scope, receive, send)

    def _answer_unmatched(self, scope: Scope) -> Response:
        methods: set[str] = set()
        for door in self._doors:
            if door.path_regex.match(scope["path"]):
                methods |= door.methods
        if not methods:
            return plain_error(404, "not_found", "Not found")
        allow = {"allow": ", ".join(sorted(methods | {"OPTIONS"}))}
        if scope["method"] == "OPTIONS":
            return Response(status_code=204 if scope["path"] in _OPTIONS_EMPTY else 200, headers=allow)
        return plain_error(405, "method_not_allowed", "Method not allowed", allow)


def create_app(fermata: Fermata) -> App:
    return App(fermata)
