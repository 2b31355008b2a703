"""What handlers may ask for in their signatures."""

from typing import Annotated

from fastapi import Depends, Path

from fermata.edges.http.auth import CallerDep as CallerDep
from fermata.edges.http.auth import get_fermata
from fermata.sessions.model import ID_LIMIT
from fermata.wiring import Fermata

FermataDep = Annotated[Fermata, Depends(get_fermata)]

SessionId = Annotated[str, Path(alias="sessionId", description="The session's id.", max_length=ID_LIMIT)]
ChatId = Annotated[str, Path(alias="chatId", description="The chat's id.", max_length=ID_LIMIT)]
