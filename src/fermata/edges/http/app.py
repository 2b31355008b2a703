"""The HTTP application: routes of every noun, and what surrounds them all."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fermata import __version__
from fermata.edges.http import (
    chat,
    chats_of_session,
    docs,
    git,
    health,
    models,
    organizations,
    sandbox,
    sessions,
)
from fermata.edges.http.errors import http_error_response, unexpected_response
from fermata.edges.http.openapi import DESCRIPTION, build_openapi
from fermata.wiring import Fermata

#: Most used first: routes are tried in this order.
_ROUTERS = (
    sessions.router,
    chat.router,
    chats_of_session.router,
    sandbox.router,
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
    """FastAPI for signatures and the OpenAPI document; requests go through `Street` and `Door` alone."""

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
        self.fermata = fermata
        #: Set when the server is asked to end: `/healthz` then sends balancers elsewhere.
        self.draining = False

    def build_middleware_stack(self) -> ASGIApp:
        return Street(self.router)

    def openapi(self) -> dict[str, object]:
        if self.openapi_schema is None:
            self.openapi_schema = build_openapi(self)
        return self.openapi_schema


class Street:
    """Around everything: CORS on every answer, OPTIONS on every route, one envelope for all errors."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        started = False

        async def send_with_cors(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], *_CORS]
            await send(message)

        try:
            if scope["method"] == "OPTIONS":
                await self._options(scope)(scope, receive, send_with_cors)
            else:
                await self._inner(scope, receive, send_with_cors)
        except HTTPException as error:
            if error.status_code == 405:
                error.headers = {"allow": ", ".join(_methods(scope))}
            await http_error_response(error)(scope, receive, send_with_cors)
        except Exception as error:  # noqa: BLE001 - the last place that can say anything to the client
            response = unexpected_response(error, method=scope["method"], path=scope["path"])
            if started:  # too late for a status: the cut connection is the answer
                raise ConnectionError("an answer broke off") from None
            await response(scope, receive, send_with_cors)

    def _options(self, scope: Scope) -> Response:
        methods = _methods(scope)
        if not methods:
            return http_error_response(HTTPException(404))
        status = 204 if scope["path"] in _OPTIONS_EMPTY else 200
        return Response(status_code=status, headers={"allow": ", ".join(methods)})


def _methods(scope: Scope) -> list[str]:
    """What may be asked of a path, whichever routes serve it. Empty for a path that is not there."""
    found: set[str] = set()
    for route in scope["app"].routes:
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found | {"OPTIONS"}) if found else []


def create_app(fermata: Fermata) -> App:
    app = App(fermata)
    for router in _ROUTERS:
        # As they are: an included router would match every request twice.
        app.router.routes.extend(router.routes)
    return app
