"""/api/ai/models"""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from fermata.edges.http.context import FermataDep
from fermata.edges.http.door import Door, public
from fermata.edges.http.errors import json_response
from fermata.edges.http.validation import WireModel

router = APIRouter(route_class=Door, tags=["models"])


class ModelList(WireModel):
    models: list[dict[str, Any]]


@router.get("/api/ai/models", summary="List models", response_model=ModelList)
@public
async def list_models(fermata: FermataDep) -> Response:
    """Models that chats may name in `modelId`."""
    return json_response(fermata.catalogue.list_models())
