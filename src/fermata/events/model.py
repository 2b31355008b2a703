"""Where a reader of the feed stands. Pure."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from fermata.kit.errors import InvalidRequestError
from fermata.kit.rows import instant_from_column, instant_to_column

#: A cursor that is older is answered by a reset: what happened since is no longer all kept.
KEPT_FOR = timedelta(days=3)
#: Rows stay longer than cursors are good, by more than a page of them takes to be read.
PRUNED_AFTER = KEPT_FOR + timedelta(hours=1)

_CURSOR = re.compile(r"([0-9]{1,17})\.([0-9]{1,18})\.([0-9]{1,19})")


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Events are read in this order, in which their transactions are known to be over."""

    #: PostgreSQL's number of the transaction that wrote the event; 0 on SQLite, which has one at a time.
    transaction_id: int
    id: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a reader has come, and when that was. Opaque text to clients."""

    position: Position
    at: datetime

    def __str__(self) -> str:
        return f"{instant_to_column(self.at)}.{self.position.transaction_id}.{self.position.id}"

    def is_good(self, end: Position, now: datetime) -> bool:
        """Whether every event after it is still there. One from beyond the end is of another database."""
        return self.at >= now - KEPT_FOR and self.position <= end


@dataclass(frozen=True, slots=True)
class Event:
    position: Position
    kind: str
    session_id: str | None
    data: dict[str, Any]
    at: datetime


def parse_cursor(text: str) -> Cursor:
    """`InvalidRequestError` for what no cursor looks like."""
    found = _CURSOR.fullmatch(text)
    if found is None or int(found[3]) >= 2**63:
        raise InvalidRequestError("Invalid cursor", field=("cursor",))
    return Cursor(Position(int(found[2]), int(found[3])), instant_from_column(int(found[1])))
