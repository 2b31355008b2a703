"""/healthz: whether this process can serve."""

import asyncio
from typing import Literal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from fermata.edges.http.context import FermataDep
from fermata.edges.http.door import Door, public
from fermata.edges.http.errors import RETRY_AFTER_SECONDS, json_response
from fermata.edges.http.validation import WireModel
from fermata.kit.database import ping
from fermata.kit.errors import UnavailableError

router = APIRouter(route_class=Door, tags=["server"])

#: A database that takes longer than this to say anything does not answer.
PATIENCE_SECONDS = 5


class SandboxHealth(WireModel):
    provider: str
    usable: bool
    #: How sandboxes are isolated, and what limits hold.
    summary: str
    #: What is missing, and how to get it.
    missing: list[str]
    #: Which file system new sandboxes get.
    base: str


class Health(WireModel):
    status: Literal["ok", "draining"]
    database: Literal["sqlite", "postgresql"]
    sandboxes: SandboxHealth
    models: str


@router.get("/healthz", summary="Health", response_model=Health, responses={503: {"model": Health}})
@public
async def get_health(fermata: FermataDep, request: Request) -> Response:
    """200 while the process serves. 503 while it ends, or when the database does not answer.

    A machine that cannot make sandboxes is told here and is no reason for a 503: sessions, chats and stored
    streams work without."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await fermata.database.read(ping)
    except TimeoutError:
        raise UnavailableError("The database does not answer.") from None
    draining = request.app.draining
    report = fermata.report
    answer = {
        "status": "draining" if draining else "ok",
        "database": fermata.database.dialect_name,
        "sandboxes": {
            "provider": fermata.sandboxes.default,
            "usable": report.usable,
            "summary": report.summary,
            "missing": report.missing,
            "base": fermata.base.status(),
        },
        "models": fermata.catalogue.summary,
    }
    if draining:
        return json_response(answer, 503, {"retry-after": str(RETRY_AFTER_SECONDS[503])})
    return json_response(answer)
