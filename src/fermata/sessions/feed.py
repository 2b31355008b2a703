"""What happens in a session, told to everybody who may use it. Kinds are listed in `docs/messages.md`."""

from datetime import datetime
from typing import Any

from fermata.events import store as events
from fermata.kit.database import Connection
from fermata.sessions.model import Session


def tell(connection: Connection, session: Session, kind: str, at: datetime, **data: Any) -> None:
    """Append an event in the transaction of what it tells. `data` is JSON in the words of the wire."""
    events.append(
        connection,
        kind,
        at=at,
        account_id=session.account_id,
        organization_id=session.organization_id,
        session_id=session.id,
        data={"sessionId": session.id} | data,
    )
