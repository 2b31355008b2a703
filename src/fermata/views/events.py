"""The feed of events as one caller may see it: its own, and those of its organizations."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta

import orjson
import sqlalchemy as sa
from sqlalchemy import bindparam

from fermata.accounts import store as accounts
from fermata.accounts.model import Caller, is_key_in_force
from fermata.accounts.store import members
from fermata.events import store
from fermata.events.model import Cursor, Event, Position
from fermata.events.store import events
from fermata.kit.clock import Clock
from fermata.kit.database import Connection, Database, Row, Statement
from fermata.kit.hints import Watch
from fermata.kit.rows import instant_from_column
from fermata.sessions.tables import sessions

#: Looks again at least this often. Members hear of an organization's machines by this alone.
POLL = timedelta(seconds=1)
#: First pause before another look at events that wait for an older transaction to be over. Pauses double.
SETTLING = timedelta(milliseconds=20)
#: After this long in silence an empty page tells where the reader stands, and keeps the connection alive.
HEARTBEAT = timedelta(seconds=15)
PAGE = 200


def _big(name: str) -> sa.BindParameter[int]:
    return bindparam(name, type_=sa.BigInteger)


_after = sa.or_(
    events.c.transaction_id > _big("after_transaction"),
    sa.and_(events.c.transaction_id == _big("after_transaction"), events.c.id > _big("after_id")),
)
_until = sa.or_(
    events.c.transaction_id < _big("end_transaction"),
    sa.and_(events.c.transaction_id == _big("end_transaction"), events.c.id <= _big("end_id")),
)
_mine = events.c.account_id == bindparam("account")
_ours = sa.exists().where(
    members.c.account_id == bindparam("account"),
    sa.or_(
        members.c.organization_id == events.c.organization_id,
        members.c.organization_id == sessions.c.organization_id,
    ),
)
_PAGE = Statement(
    sa.select(
        events.c.transaction_id,
        events.c.id,
        events.c.kind,
        events.c.session_id,
        events.c.data,
        events.c.at,
    )
    .select_from(events.outerjoin(sessions, sessions.c.id == events.c.session_id))
    .where(_after, _until, sa.or_(_mine, _ours))
    .order_by(events.c.transaction_id, events.c.id)
    .limit(PAGE)
)


@dataclass(frozen=True, slots=True)
class Page:
    events: Sequence[Event]
    #: Where the reader stands after them.
    cursor: Cursor
    #: What happened before is not known here: read the lists again, and go on from this cursor.
    reset: bool = False


@dataclass(frozen=True, slots=True)
class _Look:
    page: Page
    settling: bool
    #: The key that opened the feed is still good.
    allowed: bool


class EventFeed:
    def __init__(self, *, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._watches: set[Watch] = set()
        self._closed = False

    def close(self) -> None:
        """End every reader where it is. They may come back."""
        self._closed = True
        for watch in self._watches:
            watch.wake()

    async def read(self, caller: Caller, after: Cursor | None) -> AsyncIterator[Page]:
        """Pages of what happens after a cursor, or from now on; the first comes at once, and may be empty.

        With a cursor that is too old, or of another database, the first page is a reset. Ends when this is
        closed, and when the caller's key is no longer good.
        """
        watch = Watch()
        with ExitStack() as stack:
            stack.enter_context(self._open(watch))
            for topic in await self._topics(caller):
                stack.enter_context(self._database.hints.listen(topic, watch.wake))
            first = await self._begin(after)
            yield first
            cursor, silent, pause = first.cursor, timedelta(0), POLL
            while not self._closed:
                look = await self._look(caller, cursor)
                if not look.allowed:
                    return
                cursor = look.page.cursor
                if look.page.events or silent >= HEARTBEAT:
                    yield look.page
                    silent = timedelta(0)
                if len(look.page.events) == PAGE:
                    continue
                pause = min(pause * 2 if pause < POLL else SETTLING, POLL) if look.settling else POLL
                if not await watch.wait(pause):
                    silent += pause

    @contextmanager
    def _open(self, watch: Watch) -> Iterator[None]:
        self._watches.add(watch)
        try:
            yield
        finally:
            self._watches.discard(watch)

    async def _topics(self, caller: Caller) -> list[str]:
        """What wakes a reader. An organization joined later is seen, only not as quickly."""
        joined = await self._database.read(
            lambda connection: accounts.list_organizations(connection, caller.account_id)
        )
        return [store.topic(name) for name in (caller.account_id, *(item.id for item in joined))]

    async def _begin(self, after: Cursor | None) -> Page:
        end = await self._database.read(store.get_end)
        now = self._clock.now()
        if after is None:
            return Page((), Cursor(end, now))
        if not after.is_good(end, now):
            return Page((), Cursor(end, now), reset=True)
        return Page((), after)

    async def _look(self, caller: Caller, cursor: Cursor) -> _Look:
        now = self._clock.now()

        def read(connection: Connection) -> _Look:
            key = accounts.find_key(connection, caller.key_id)
            allowed = key is not None and is_key_in_force(key, now)
            # First where the settled ones end, then these: the other way around some would be stepped over.
            end = store.get_end(connection)
            found = [_event(row) for row in self._page(connection, caller, cursor.position, end)]
            position = found[-1].position if len(found) == PAGE else max(end, cursor.position)
            settling = store.has_unsettled(connection, end)
            return _Look(Page(found, Cursor(position, now)), settling, allowed)

        return await self._database.read(read)

    def _page(self, connection: Connection, caller: Caller, after: Position, end: Position) -> Sequence[Row]:
        return connection.rows(
            _PAGE,
            account=caller.account_id,
            after_transaction=after.transaction_id,
            after_id=after.id,
            end_transaction=end.transaction_id,
            end_id=end.id,
        )


def _event(row: Row) -> Event:
    return Event(Position(row[0], row[1]), row[2], row[3], orjson.loads(row[4]), instant_from_column(row[5]))
