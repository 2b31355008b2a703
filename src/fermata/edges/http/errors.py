"""From errors to HTTP: the one table of statuses, and the one envelope."""

from collections.abc import Mapping
from typing import Any

import orjson
import structlog
from starlette.responses import Response

from fermata.kit.errors import ErrorKind, FermataError, InternalError

STATUS: dict[ErrorKind, int] = {
    ErrorKind.INVALID: 400,
    ErrorKind.UNAUTHENTICATED: 401,
    ErrorKind.FORBIDDEN: 403,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.CONFLICT: 409,
    ErrorKind.PRECONDITION: 412,
    ErrorKind.TOO_LARGE: 413,
    ErrorKind.LIMIT: 429,
    ErrorKind.INTERNAL: 500,
    ErrorKind.UPSTREAM: 502,
    ErrorKind.UNAVAILABLE: 503,
    ErrorKind.TIMEOUT: 504,
}

#: Sent where trying again may help.
RETRY_AFTER_SECONDS = {429: 1, 503: 5}

log = structlog.get_logger()


def json_response(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`data` is anything that orjson knows; `orjson.Fragment` puts stored JSON in as it is."""
    return Response(orjson.dumps(data), status, headers, "application/json")


def error_response(error: FermataError) -> Response:
    """`{"status": "error", "error": <sentence>}`, with what the kind adds to it."""
    if error.kind is ErrorKind.INTERNAL and not isinstance(error, InternalError):
        log.error("unexpected error", code=error.code, message=error.message)
    body: dict[str, Any] = {"status": "error", "error": error.message}
    if error.kind is ErrorKind.UNAUTHENTICATED:
        body["message"] = error.message
    if error.kind is ErrorKind.INVALID:
        body["missing_fields"] = list(error.field)
    body["code"] = error.code
    status = STATUS[error.kind]
    return json_response(body, status, _headers(status))


def plain_error(status: int, code: str, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """The envelope for what is no error of ours: no such path, no such method."""
    return json_response({"status": "error", "error": text, "code": code}, status, headers)


def unexpected_response(error: BaseException, *, method: str, path: str) -> Response:
    """Something of ours broke: the log has all of it, the client a sentence."""
    log.error("request failed", method=method, path=path, exc_info=error)
    return error_response(InternalError("Internal server error"))


def _headers(status: int) -> dict[str, str] | None:
    if status in RETRY_AFTER_SECONDS:
        return {"retry-after": str(RETRY_AFTER_SECONDS[status])}
    if status == 401:
        return {"www-authenticate": "Bearer"}
    if status == 413:
        return {"connection": "close"}
    return None
