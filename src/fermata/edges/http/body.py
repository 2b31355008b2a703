"""Reading a request body: bounded in size and depth, and only JSON that the databases can store."""

from typing import Any

import orjson
from starlette.requests import Request

from fermata.kit.errors import BodyTooLargeError, InvalidRequestError

KIB = 1024
MIB = 1024 * KIB
#: Bodies of routes that do not say otherwise.
BODY_LIMIT = MIB
DEPTH_LIMIT = 64

NOT_JSON = "Invalid JSON body"


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. `BodyTooLargeError` as soon as it is announced or found to be larger than `limit`."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"The request body is larger than {limit} bytes.")


def parse_body(raw: bytes) -> Any:
    """JSON in UTF-8, at most 64 levels deep, without NUL characters (PostgreSQL cannot store them)."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise InvalidRequestError(NOT_JSON) from None
    # Looking for the bytes first spares nearly every body the walk.
    if raw.count(b"[") + raw.count(b"{") > DEPTH_LIMIT or b"\\u0000" in raw:
        check_value(value)
    return value


def check_value(value: Any) -> None:
    """`InvalidRequestError` for JSON that is too deep or holds a NUL character."""
    waiting: list[tuple[Any, int]] = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, str):
            if "\0" in item:
                raise InvalidRequestError("A text in the body holds a NUL character")
        elif isinstance(item, list | dict):
            if depth > DEPTH_LIMIT:
                raise InvalidRequestError(f"The body is nested more than {DEPTH_LIMIT} levels deep")
            if isinstance(item, dict):
                waiting.extend((key, depth) for key in item)
                waiting.extend((inner, depth + 1) for inner in item.values())
            else:
                waiting.extend((inner, depth + 1) for inner in item)
