"""Names and places of new sessions."""

import re

from fermata.accounts.model import Account, AccountKind
from fermata.accounts.store import insert_account
from fermata.flows.titles import CITIES, choose_title
from fermata.kit.clock import SystemClock
from fermata.kit.database import Connection, Database
from fermata.kit.ids import new_id
from fermata.sessions import store
from fermata.sessions.model import Session, SessionStatus


def account(connection: Connection) -> str:
    made = Account(new_id(), AccountKind.PERSON, "Ada", SystemClock().now())
    insert_account(connection, made)
    return made.id


def add(connection: Connection, account_id: str, title: str) -> str:
    now = SystemClock().now()
    session = Session(
        id=new_id(), account_id=account_id, organization_id=None, artist_id=None, title=title,
        status=SessionStatus.RUNNING, repo_owner=None, repo_name=None, branch=None, clone_url=None,
        is_new_branch=False, global_skill_refs=[], lines_added=0, lines_removed=0, cached_diff=None,
        cached_diff_updated_at=None, active_at=now, created_at=now, updated_at=now,
    )  # fmt: skip
    store.insert_session(connection, session)
    return title


async def test_every_city_is_used_once_before_any_gets_a_number(database: Database) -> None:
    def write(connection: Connection) -> list[str]:
        owner = account(connection)
        return [add(connection, owner, choose_title(connection, owner)) for _ in range(len(CITIES) + 60)]

    titles = await database.write(write)
    assert len(CITIES) >= 150
    assert set(titles[: len(CITIES)]) == set(CITIES)
    assert len({title.casefold() for title in titles}) == len(titles)
    numbered = titles[len(CITIES) :]
    assert all(re.fullmatch(r".+ \d+", title) for title in numbered)


async def test_titles_of_other_accounts_do_not_matter(database: Database) -> None:
    def write(connection: Connection) -> str:
        other, owner = account(connection), account(connection)
        for city in CITIES:
            add(connection, other, city)
        return choose_title(connection, owner)

    assert await database.write(write) in CITIES


async def test_a_title_in_another_case_counts_as_taken(database: Database) -> None:
    def write(connection: Connection) -> str:
        owner = account(connection)
        for city in CITIES[:-1]:
            add(connection, owner, city.upper())
        return choose_title(connection, owner)

    assert await database.write(write) == CITIES[-1]
