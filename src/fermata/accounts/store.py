"""Rows of accounts and of what belongs to them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import bindparam

from fermata.accounts.model import Account, AccountKind, ApiKey
from fermata.kit.database import Connection, Statement, insert_or_ignore, metadata
from fermata.kit.rows import Shape, instant_to_column


def _ref() -> sa.ForeignKey:
    return sa.ForeignKey("accounts.id", ondelete="CASCADE")


accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
members = sa.Table(
    "organization_members",
    metadata,
    sa.Column("organization_id", sa.Text, _ref(), primary_key=True),
    sa.Column("account_id", sa.Text, _ref(), primary_key=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Index("ix_organization_members_account", "account_id"),
)
artist_owners = sa.Table(
    "artist_owners",
    metadata,
    sa.Column("artist_id", sa.Text, _ref(), primary_key=True),
    # A person, or an organization whose members may all work for the artist.
    sa.Column("owner_id", sa.Text, _ref(), primary_key=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Index("ix_artist_owners_owner", "owner_id"),
)
api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.Text, _ref(), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("secret_hash", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("revoked_at", sa.BigInteger),
    sa.Index("ix_api_keys_account", "account_id"),
)
repository_links = sa.Table(
    "repository_links",
    metadata,
    sa.Column("account_id", sa.Text, _ref(), primary_key=True),
    # Both in lower case: repositories are compared without regard to case.
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

ACCOUNT = Shape(Account, accounts)
KEY = Shape(ApiKey, api_keys)


def _big(name: str) -> sa.BindParameter[Any]:
    return bindparam(name, type_=sa.BigInteger)


_INSERT_ACCOUNT = Statement(sa.insert(accounts))
_GET_ACCOUNT = Statement(sa.select(*ACCOUNT.columns).where(accounts.c.id == bindparam("id")))
_LOCK_ACCOUNT = Statement(
    sa.select(*ACCOUNT.columns).where(accounts.c.id == bindparam("id")).with_for_update(key_share=True)
)
_FIRST_ACCOUNT = Statement(
    sa.select(*ACCOUNT.columns)
    .where(accounts.c.kind == AccountKind.PERSON.value)
    .order_by(accounts.c.created_at, accounts.c.id)
    .limit(1)
)

_INSERT_KEY = insert_or_ignore(api_keys)
_GET_KEY = Statement(sa.select(*KEY.columns).where(api_keys.c.id == bindparam("id")))
_KEYS = Statement(sa.select(*KEY.columns).order_by(api_keys.c.created_at, api_keys.c.id))
_REVOKE = Statement(
    sa.update(api_keys)
    .values(revoked_at=_big("to_revoked"))
    .where(api_keys.c.id == bindparam("key"), api_keys.c.revoked_at.is_(None))
)

_INSERT_MEMBER = insert_or_ignore(members)
_DELETE_MEMBER = Statement(
    sa.delete(members).where(
        members.c.organization_id == bindparam("organization"), members.c.account_id == bindparam("account")
    )
)
_MEMBER = Statement(
    sa.select(members.c.organization_id).where(
        members.c.organization_id == bindparam("organization"), members.c.account_id == bindparam("account")
    )
)
_COUNT_MEMBERS = Statement(
    sa.select(sa.func.count())
    .select_from(members)
    .where(members.c.organization_id == bindparam("organization"))
)
_ORGANIZATIONS = Statement(
    sa.select(*ACCOUNT.columns)
    .join(members, members.c.organization_id == accounts.c.id)
    .where(members.c.account_id == bindparam("account"))
    .order_by(accounts.c.name, accounts.c.id)
)
_INSERT_OWNER = insert_or_ignore(artist_owners)
_through = members.alias("through")
_ARTIST_ACCESS = Statement(
    sa.select(artist_owners.c.artist_id)
    .outerjoin(
        _through,
        sa.and_(
            _through.c.organization_id == artist_owners.c.owner_id,
            _through.c.account_id == bindparam("account"),
        ),
    )
    .where(
        artist_owners.c.artist_id == bindparam("artist"),
        sa.or_(artist_owners.c.owner_id == bindparam("account"), _through.c.account_id.is_not(None)),
    )
    .limit(1)
)
_INSERT_LINK = insert_or_ignore(repository_links)
_LINKED = Statement(
    sa.select(repository_links.c.account_id).where(
        repository_links.c.account_id == bindparam("account"),
        repository_links.c.owner == bindparam("owner"),
        repository_links.c.name == bindparam("name"),
    )
)


def insert_account(connection: Connection, account: Account) -> None:
    connection.run(_INSERT_ACCOUNT, **ACCOUNT.write(account))


def find_account(connection: Connection, account_id: str) -> Account | None:
    row = connection.row(_GET_ACCOUNT, id=account_id)
    return ACCOUNT.read(row) if row else None


def lock_account(connection: Connection, account_id: str) -> Account | None:
    """Find an account and make others who lock it wait until this transaction ends."""
    row = connection.row(_LOCK_ACCOUNT, id=account_id)
    return ACCOUNT.read(row) if row else None


def find_first_account(connection: Connection) -> Account | None:
    """The oldest account of a person."""
    row = connection.row(_FIRST_ACCOUNT)
    return ACCOUNT.read(row) if row else None


def insert_key(connection: Connection, key: ApiKey) -> bool:
    """False, and nothing written, when the id is taken."""
    return connection.run(_INSERT_KEY, **KEY.write(key)) == 1


def find_key(connection: Connection, key_id: str) -> ApiKey | None:
    row = connection.row(_GET_KEY, id=key_id)
    return KEY.read(row) if row else None


def list_keys(connection: Connection) -> Sequence[ApiKey]:
    return [KEY.read(row) for row in connection.rows(_KEYS)]


def revoke_key(connection: Connection, key_id: str, at: datetime) -> bool:
    """False when there is no such key or it was revoked before."""
    return connection.run(_REVOKE, key=key_id, to_revoked=instant_to_column(at)) == 1


def insert_member(connection: Connection, organization_id: str, account_id: str, at: datetime) -> bool:
    """False when the account is a member already."""
    return (
        connection.run(
            _INSERT_MEMBER,
            organization_id=organization_id,
            account_id=account_id,
            created_at=instant_to_column(at),
        )
        == 1
    )


def delete_member(connection: Connection, organization_id: str, account_id: str) -> bool:
    return connection.run(_DELETE_MEMBER, organization=organization_id, account=account_id) == 1


def is_member(connection: Connection, organization_id: str, account_id: str) -> bool:
    return connection.row(_MEMBER, organization=organization_id, account=account_id) is not None


def count_members(connection: Connection, organization_id: str) -> int:
    row = connection.row(_COUNT_MEMBERS, organization=organization_id)
    return int(row[0]) if row else 0


def list_organizations(connection: Connection, account_id: str) -> Sequence[Account]:
    """Organizations that the account is a member of, by name."""
    return [ACCOUNT.read(row) for row in connection.rows(_ORGANIZATIONS, account=account_id)]


def insert_artist_owner(connection: Connection, artist_id: str, owner_id: str, at: datetime) -> bool:
    """False when the owner has the artist already."""
    return (
        connection.run(
            _INSERT_OWNER, artist_id=artist_id, owner_id=owner_id, created_at=instant_to_column(at)
        )
        == 1
    )


def may_use_artist(connection: Connection, artist_id: str, account_id: str) -> bool:
    """The account has the artist itself or through an organization that it is a member of."""
    return connection.row(_ARTIST_ACCESS, artist=artist_id, account=account_id) is not None


def link_repository(connection: Connection, account_id: str, owner: str, name: str, at: datetime) -> bool:
    """Let an account (a person or an organization) work on a repository. False when it may already."""
    return (
        connection.run(
            _INSERT_LINK,
            account_id=account_id,
            owner=owner.lower(),
            name=name.lower(),
            created_at=instant_to_column(at),
        )
        == 1
    )


def is_repository_linked(connection: Connection, account_id: str, owner: str, name: str) -> bool:
    return connection.row(_LINKED, account=account_id, owner=owner.lower(), name=name.lower()) is not None
