"""The verbs of the room. Every verb that changes something for a caller checks the caller's right itself."""

from collections.abc import Sequence
from datetime import datetime

from fermata.accounts import store
from fermata.accounts.model import (
    Account,
    AccountKind,
    ApiKey,
    Caller,
    KeyText,
    is_key_good,
    new_key_text,
    parse_key_text,
)
from fermata.kit.clock import Clock
from fermata.kit.database import Connection, Database
from fermata.kit.errors import ConflictError, ForbiddenError, NotFoundError, UnauthenticatedError
from fermata.kit.ids import new_id

NOT_A_MEMBER = "Caller is not a member of the organization"


def check_member(connection: Connection, caller: Caller, organization_id: str, message: str) -> None:
    """`ForbiddenError` unless the caller is a member; an organization that does not exist has none."""
    if not store.is_member(connection, organization_id, caller.account_id):
        raise ForbiddenError(message)


class AccountService:
    def __init__(self, *, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def authenticate(self, text: str) -> Caller:
        """Who holds this key. `UnauthenticatedError` for every key that is not good, without saying why."""
        key_text = parse_key_text(text)
        if key_text is None:
            raise UnauthenticatedError("Unauthorized")
        key = await self._database.read(lambda connection: store.find_key(connection, key_text.id))
        if key is None or not is_key_good(key, key_text.secret, self._clock.now()):
            raise UnauthenticatedError("Unauthorized")
        return Caller(key.account_id, key.id)

    async def create_account(self, name: str) -> Account:
        """A new person. For whoever runs the server: no caller may do this."""
        account = Account(new_id(), AccountKind.PERSON, name, self._clock.now())
        await self._database.write(lambda connection: store.insert_account(connection, account))
        return account

    async def get_account(self, account_id: str) -> Account:
        account = await self._database.read(lambda connection: store.find_account(connection, account_id))
        if account is None:
            raise NotFoundError("Account not found")
        return account

    async def create_key(self, account_id: str, name: str, *, expires_at: datetime | None = None) -> KeyText:
        """A new key; its secret is in the answer and nowhere else."""
        text = new_key_text()
        key = ApiKey(text.id, account_id, name, text.secret_hash, self._clock.now(), expires_at, None)

        def insert(connection: Connection) -> None:
            if store.find_account(connection, account_id) is None:
                raise NotFoundError("Account not found")
            store.insert_key(connection, key)

        await self._database.write(insert)
        return text

    async def list_keys(self) -> Sequence[ApiKey]:
        """All keys of all accounts, oldest first."""
        return await self._database.read(store.list_keys)

    async def revoke_key(self, key_id: str) -> bool:
        """At once and for good. False when it was revoked before; `NotFoundError` when there is none."""
        now = self._clock.now()

        def revoke(connection: Connection) -> bool:
            if store.find_key(connection, key_id) is None:
                raise NotFoundError("API key not found")
            return store.revoke_key(connection, key_id, now)

        return await self._database.write(revoke)

    async def list_organizations(self, caller: Caller) -> Sequence[Account]:
        return await self._database.read(
            lambda connection: store.list_organizations(connection, caller.account_id)
        )

    async def create_organization(self, caller: Caller, name: str) -> Account:
        """A new organization with the caller as its only member."""
        now = self._clock.now()
        organization = Account(new_id(), AccountKind.ORGANIZATION, name, now)

        def insert(connection: Connection) -> None:
            store.insert_account(connection, organization)
            store.insert_member(connection, organization.id, caller.account_id, now)

        await self._database.write(insert)
        return organization

    async def add_member(self, caller: Caller, organization_id: str, account_id: str) -> None:
        """Let a person into an organization of the caller. Twice is once.

        The new member may use what the organization has. Nobody gets any right over the new member.
        """
        now = self._clock.now()

        def insert(connection: Connection) -> None:
            check_member(connection, caller, organization_id, NOT_A_MEMBER)
            account = store.find_account(connection, account_id)
            if account is None or account.kind is not AccountKind.PERSON:
                raise NotFoundError("Account not found")
            store.insert_member(connection, organization_id, account_id, now)

        await self._database.write(insert)

    async def remove_member(self, caller: Caller, organization_id: str, account_id: str) -> None:
        """Any member may remove any other and itself, but not the last one."""

        def delete(connection: Connection) -> None:
            store.lock_account(connection, organization_id)
            check_member(connection, caller, organization_id, NOT_A_MEMBER)
            if not store.delete_member(connection, organization_id, account_id):
                raise NotFoundError("Account is not a member of the organization")
            if store.count_members(connection, organization_id) == 0:
                raise ConflictError("The last member of an organization cannot be removed")

        await self._database.write(delete)

    async def create_artist(self, caller: Caller, name: str, organization_id: str | None) -> Account:
        """A new artist of the caller or of an organization of the caller."""
        now = self._clock.now()
        artist = Account(new_id(), AccountKind.ARTIST, name, now)

        def insert(connection: Connection) -> None:
            if organization_id is not None:
                check_member(connection, caller, organization_id, NOT_A_MEMBER)
            store.insert_account(connection, artist)
            store.insert_artist_owner(connection, artist.id, organization_id or caller.account_id, now)

        await self._database.write(insert)
        return artist

    async def share_artist(self, caller: Caller, artist_id: str, organization_id: str) -> None:
        """Let the members of the caller's organization work for the caller's artist. Twice is once."""
        now = self._clock.now()

        def insert(connection: Connection) -> None:
            check_member(connection, caller, organization_id, NOT_A_MEMBER)
            if not store.may_use_artist(connection, artist_id, caller.account_id):
                raise ForbiddenError("Access denied to specified artistId")
            store.insert_artist_owner(connection, artist_id, organization_id, now)

        await self._database.write(insert)

    async def link_repository(self, account_id: str, owner: str, name: str) -> bool:
        """Let an account work on a repository. For whoever runs the server: no caller may do this."""
        now = self._clock.now()

        def link(connection: Connection) -> bool:
            if store.find_account(connection, account_id) is None:
                raise NotFoundError("Account not found")
            return store.link_repository(connection, account_id, owner, name, now)

        return await self._database.write(link)
