"""Who is asking. The door authenticates before it looks at anything else of a request."""

from typing import Annotated, Any

from fastapi import Depends, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import Scope

from fermata.accounts.model import Caller
from fermata.kit.errors import UnauthenticatedError

EXACTLY_ONE = "Exactly one of x-api-key or Authorization must be provided"
BEARER_NEEDED = "Authorization header with Bearer token required"

_key_scheme = APIKeyHeader(
    name="x-api-key", scheme_name="ApiKeyAuth", auto_error=False, description="An API key, `fer_...`."
)
_bearer_scheme = HTTPBearer(
    scheme_name="BearerAuth", auto_error=False, description="The same API key as a bearer token."
)


def read_credential(scope: Scope) -> str:
    """The key that a request brings, in exactly one of its two headers."""
    found: list[tuple[bytes, bytes]] = [
        pair for pair in scope["headers"] if pair[0] in (b"x-api-key", b"authorization") and pair[1]
    ]
    if len(found) != 1:
        raise UnauthenticatedError(EXACTLY_ONE)
    name, value = found[0]
    if name == b"x-api-key":
        return value.decode("latin-1").strip()
    if value[:7] not in (b"Bearer ", b"bearer "):
        raise UnauthenticatedError(BEARER_NEEDED)
    return value[7:].decode("latin-1").strip()


def get_caller(
    key: Annotated[str | None, Security(_key_scheme)] = None,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer_scheme)] = None,
) -> Caller:
    """Declares the caller in signatures and in the OpenAPI document; the door fills it in."""
    raise AssertionError("a route outside the door asks for the caller")


def get_fermata() -> Any:
    """Declares the context in signatures; the door fills it in."""
    raise AssertionError("a route outside the door asks for the context")


CallerDep = Annotated[Caller, Depends(get_caller)]
