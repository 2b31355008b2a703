"""The OpenAPI document, read from the signatures of the handlers."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from fermata.edges.http.door import Door

DESCRIPTION = """\
Sandboxed sessions of an LLM-driven agent, with tools, durable turns and streams that can be rejoined.

Send an API key in exactly one of `x-api-key` and `Authorization: Bearer`. Every error is
`{"status": "error", "error": <sentence>, "code": <stable word>}`; a failed validation adds `missing_fields`,
the path of the first field that is wrong. 429 and 503 carry `Retry-After`.

Times are RFC 3339 in UTC. Ids are opaque texts of at most 128 characters. Unknown keys of a body are ignored
unless a schema forbids them.

One deliberate widening of the contract: `sandboxState.type` and the `mode` of POST /api/sandbox name the
sandbox provider that is really used, such as `local`. The word `vercel` is accepted as `sandboxType`
everywhere and means the server's default provider.
"""

_TEXTS = {
    "400": "The request is not valid; `missing_fields` says where.",
    "401": "The API key is missing, given twice, or not good.",
    "403": "The caller may not use this.",
    "404": "There is no such thing.",
    "405": "The path has no such method.",
    "409": "It does not fit what is there now.",
    "412": "Somebody else has changed it meanwhile.",
    "413": "The body is too large.",
    "429": "A limit was reached; try again after `Retry-After` seconds.",
    "500": "Something of ours broke; the server's log has the details.",
    "502": "The sandbox provider, the model or the repository host failed.",
    "503": "Not now; try again after `Retry-After` seconds.",
    "504": "It took too long.",
}


def build_openapi(app: FastAPI, *, sandbox_types: Sequence[str]) -> dict[str, Any]:
    """`sandbox_types` are the words that `sandboxType` may say on this server."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
    )
    for path in document["paths"].values():
        for operation in path.values():
            _describe(operation)
    for route in app.routes:
        if isinstance(route, Door) and route.rules.body_optional:
            for method in route.methods or ():
                document["paths"][route.path_format][method.lower()]["requestBody"].pop("required")
    schemas = document["components"]["schemas"]
    schemas["CreateSessionRequest"]["properties"]["sandboxType"]["enum"] = list(sandbox_types)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document


def _describe(operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    statuses = ["500"]
    if "parameters" in operation or "requestBody" in operation:
        statuses.append("400")
    if "requestBody" in operation:
        statuses.append("413")
    for status in statuses:
        responses.setdefault(status, {"content": error})
    for status, response in responses.items():
        if status in _TEXTS:
            response["description"] = _TEXTS[status]
    if "401" not in responses:
        operation["security"] = []
