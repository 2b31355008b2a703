"""Keys, organizations, artists and kept answers."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from fermata.accounts.idempotency import KEPT_FOR, PRUNED_AT_ONCE, find_answer, idempotency_keys, keep_answer
from fermata.accounts.model import Account, Caller
from fermata.accounts.service import AccountService
from fermata.kit.clock import SystemClock
from fermata.kit.database import Connection, Database, Statement
from fermata.kit.errors import ConflictError, ForbiddenError, NotFoundError, UnauthenticatedError

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture
def accounts(database: Database) -> AccountService:
    return AccountService(database=database, clock=SystemClock())


async def caller(accounts: AccountService, name: str) -> Caller:
    return Caller((await accounts.create_account(name)).id, "key")


async def test_a_key_opens_its_own_account_until_it_is_revoked(accounts: AccountService) -> None:
    account = await accounts.create_account("Ada")
    text = await accounts.create_key(account.id, "laptop")
    assert (await accounts.authenticate(str(text))).account_id == account.id
    assert await accounts.revoke_key(text.id)
    assert not await accounts.revoke_key(text.id), "twice is once"
    with pytest.raises(UnauthenticatedError):
        await accounts.authenticate(str(text))
    with pytest.raises(NotFoundError):
        await accounts.revoke_key("nobody")


async def test_the_secret_is_nowhere_in_the_database(accounts: AccountService, database: Database) -> None:
    account = await accounts.create_account("Ada")
    text = await accounts.create_key(account.id, "laptop")
    (key,) = await accounts.list_keys()
    assert text.secret not in repr(key)


async def test_a_key_for_nobody_is_not_made(accounts: AccountService) -> None:
    with pytest.raises(NotFoundError):
        await accounts.create_key("nobody", "x")


async def test_only_members_let_others_in(accounts: AccountService) -> None:
    ada, bob, eve = [await caller(accounts, name) for name in ("Ada", "Bob", "Eve")]
    band = await accounts.create_organization(ada, "Band")
    with pytest.raises(ForbiddenError):
        await accounts.add_member(eve, band.id, eve.account_id)
    await accounts.add_member(ada, band.id, bob.account_id)
    await accounts.add_member(ada, band.id, bob.account_id)
    assert [found.name for found in await accounts.list_organizations(bob)] == ["Band"]
    with pytest.raises(NotFoundError):
        await accounts.add_member(ada, band.id, "nobody")
    with pytest.raises(NotFoundError):
        await accounts.add_member(ada, band.id, band.id)


async def test_an_organization_keeps_its_last_member(accounts: AccountService) -> None:
    ada, bob = await caller(accounts, "Ada"), await caller(accounts, "Bob")
    band = await accounts.create_organization(ada, "Band")
    await accounts.add_member(ada, band.id, bob.account_id)
    results = await asyncio.gather(
        accounts.remove_member(ada, band.id, ada.account_id),
        accounts.remove_member(bob, band.id, bob.account_id),
        return_exceptions=True,
    )
    assert [type(result) for result in results if result is not None] == [ConflictError]
    left = [await accounts.list_organizations(who) for who in (ada, bob)]
    assert sorted(map(len, left)) == [0, 1]


async def test_an_artist_of_an_organization_is_every_members(accounts: AccountService) -> None:
    ada, bob, eve = [await caller(accounts, name) for name in ("Ada", "Bob", "Eve")]
    band = await accounts.create_organization(ada, "Band")
    await accounts.add_member(ada, band.id, bob.account_id)
    shared: Account = await accounts.create_artist(ada, "Singer", band.id)
    own = await accounts.create_organization(bob, "Solo")
    await accounts.share_artist(bob, shared.id, own.id)
    theirs = await accounts.create_organization(eve, "Pirates")
    with pytest.raises(ForbiddenError):
        await accounts.share_artist(eve, shared.id, theirs.id)
    with pytest.raises(ForbiddenError):
        await accounts.create_artist(eve, "Fake", band.id)


async def test_a_kept_answer_is_found_for_a_day(accounts: AccountService, database: Database) -> None:
    account = (await accounts.create_account("Ada")).id
    keep = database.write
    assert await keep(lambda found: keep_answer(found, account, "k", "hash", "first", NOW))
    assert not await keep(lambda found: keep_answer(found, account, "k", "hash", "second", NOW))
    soon, late = NOW + KEPT_FOR - timedelta(seconds=1), NOW + KEPT_FOR
    assert await keep(lambda found: find_answer(found, account, "k", "hash", soon)) == "first"
    with pytest.raises(ConflictError):
        await keep(lambda found: find_answer(found, account, "k", "other", soon))
    assert await keep(lambda found: find_answer(found, account, "k", "other", late)) is None
    assert await keep(lambda found: keep_answer(found, account, "k", "other", "third", late))
    assert await keep(lambda found: find_answer(found, account, "k", "other", late)) == "third"


async def test_expired_answers_are_cleared_in_small_bites(
    accounts: AccountService, database: Database
) -> None:
    account = (await accounts.create_account("Ada")).id

    def many(connection: Connection) -> None:
        for number in range(PRUNED_AT_ONCE + 5):
            keep_answer(connection, account, f"old {number}", "hash", "x", NOW)

    await database.write(many)
    later = NOW + KEPT_FOR
    await database.write(lambda found: keep_answer(found, account, "new", "hash", "x", later))
    count = Statement(sa.select(sa.func.count()).select_from(idempotency_keys))
    row = await database.read(lambda found: found.row(count))
    assert row is not None
    assert row[0] == 5 + 1
