"""/api/sessions/{sessionId}/chats"""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter
from pydantic import AfterValidator, ConfigDict, Field, model_validator
from starlette.responses import Response

from fermata.edges.http.context import CallerDep, ChatId, FermataDep, SessionId
from fermata.edges.http.door import Door, body
from fermata.edges.http.errors import json_response
from fermata.edges.http.validation import ABSENT, RequestModel, Says, WireModel
from fermata.edges.http.wire import (
    ChatSummaryWire,
    ChatWire,
    OneChat,
    Success,
    chat_to_wire,
    errors,
    summary_to_wire,
)
from fermata.sessions.model import ID_LIMIT

router = APIRouter(route_class=Door, tags=["chats"])

PATH = "/api/sessions/{sessionId}/chats"
TEXT_LIMIT = 1000


def _usable_in_a_path(text: str) -> str:
    if text in (".", ".."):
        raise ValueError("Invalid chat id")
    return text


class CreateChatRequest(RequestModel):
    #: Must fit into a path: no slash, and neither of the two names that paths reserve.
    id: Annotated[
        str,
        Field(min_length=1, max_length=ID_LIMIT, pattern=r"^[^/]+$"),
        AfterValidator(_usable_in_a_path),
        Says(wrong="Invalid chat id"),
    ] = ABSENT


class ChangeChatRequest(RequestModel):
    """At least one field. Both are trimmed."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    title: Annotated[str, Field(min_length=1, max_length=TEXT_LIMIT), Says(empty="title cannot be empty")] = (
        ABSENT
    )
    modelId: Annotated[
        str, Field(min_length=1, max_length=TEXT_LIMIT), Says(empty="modelId cannot be empty")
    ] = ABSENT

    @model_validator(mode="after")
    def _has_one(self) -> "ChangeChatRequest":
        if not self.model_fields_set:
            raise ValueError("At least one field is required")
        return self


class ChatList(WireModel):
    chats: list[ChatSummaryWire]
    defaultModelId: str


class ChatAndMessages(WireModel):
    chat: ChatWire
    isStreaming: bool
    #: UI messages of the AI SDK, in their order.
    messages: list[dict[str, Any]]


@router.get(PATH, summary="List chats", response_model=ChatList, responses=errors(400, 401, 403, 404))
async def list_chats(caller: CallerDep, fermata: FermataDep, session_id: SessionId) -> Response:
    """The chats of a session, oldest first."""
    found = await fermata.sessions.list_chats(caller, session_id)
    return json_response(
        {
            "chats": [summary_to_wire(summary) for summary in found],
            "defaultModelId": fermata.catalogue.default_model_id,
        }
    )


@router.post(
    PATH, summary="Create chat", response_model=OneChat, responses=errors(400, 401, 403, 404, 409, 413)
)
@body(tolerant=True)
async def create_chat(
    caller: CallerDep, fermata: FermataDep, session_id: SessionId, wanted: CreateChatRequest
) -> Response:
    """A new, empty chat. With an id that the session has already, that chat is returned."""
    chat = await fermata.sessions.create_chat(
        caller, session_id, wanted.id, model_id=fermata.catalogue.default_model_id
    )
    return json_response({"chat": chat_to_wire(chat)})


@router.get(
    PATH + "/{chatId}",
    summary="Get chat with its messages",
    response_model=ChatAndMessages,
    responses=errors(400, 401, 403, 404),
)
async def get_chat(
    caller: CallerDep, fermata: FermataDep, session_id: SessionId, chat_id: ChatId
) -> Response:
    found = await fermata.sessions.get_chat(caller, session_id, chat_id)
    return json_response(
        {
            "chat": chat_to_wire(found.chat),
            "isStreaming": found.chat.active_run_id is not None,
            "messages": [orjson.Fragment(message.message) for message in found.messages],
        }
    )


@router.patch(
    PATH + "/{chatId}",
    summary="Change chat",
    response_model=OneChat,
    responses=errors(400, 401, 403, 404, 413),
)
async def change_chat(
    caller: CallerDep,
    fermata: FermataDep,
    session_id: SessionId,
    chat_id: ChatId,
    changes: ChangeChatRequest,
) -> Response:
    chat = await fermata.sessions.change_chat(
        caller, session_id, chat_id, title=changes.title, model_id=changes.modelId
    )
    return json_response({"chat": chat_to_wire(chat)})


@router.delete(
    PATH + "/{chatId}",
    summary="Delete chat",
    response_model=Success,
    responses=errors(400, 401, 403, 404),
)
async def delete_chat(
    caller: CallerDep, fermata: FermataDep, session_id: SessionId, chat_id: ChatId
) -> Response:
    """Deletes a chat with its messages and ends its running turn. The last chat of a session stays (400)."""
    await fermata.sessions.delete_chat(caller, session_id, chat_id)
    return json_response({"success": True})


@router.post(
    PATH + "/{chatId}/read",
    summary="Mark chat as read",
    response_model=Success,
    responses=errors(400, 401, 403, 404),
)
async def mark_read(
    caller: CallerDep, fermata: FermataDep, session_id: SessionId, chat_id: ChatId
) -> Response:
    await fermata.sessions.mark_read(caller, session_id, chat_id)
    return json_response({"success": True})
