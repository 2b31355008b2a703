"""`fermata keys` and `fermata link`: API keys of accounts, and repositories they may work on.

For whoever runs the server. Both work on the database, with or without a running server; what they change
counts at once.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from fermata.accounts import store
from fermata.accounts.model import Account, parse_key_text
from fermata.accounts.service import AccountService
from fermata.edges.options import read_settings, settings_options
from fermata.kit.clock import SystemClock
from fermata.kit.database import Database
from fermata.kit.errors import NotFoundError
from fermata.workspaces.model import RepositoryName


@click.group()
def keys() -> None:
    """Create, list and revoke API keys."""


def _run(
    config: Path | None,
    flags: dict[str, str | None],
    work: Callable[[Database, AccountService], Awaitable[None]],
) -> None:
    from fermata.wiring import open_database  # takes a second to load: only for commands that need it

    async def run() -> None:
        async with open_database(read_settings(config, **flags)) as database:
            await work(database, AccountService(database=database, clock=SystemClock()))

    asyncio.run(run())


@keys.command()
@settings_options
@click.option("--name", default="key", show_default=True, help="What the key is for.")
@click.option("--account", "account_id", help="Id of the account; the first account when absent.")
@click.option("--new-account", help="Make a new account of this name for the key.")
@click.option("--days", type=click.IntRange(1, 36500), help="How long the key is good; for ever when absent.")
def create(
    config: Path | None,
    name: str,
    account_id: str | None,
    new_account: str | None,
    days: int | None,
    **flags: str | None,
) -> None:
    """Make a key and print it. It is shown this once."""
    if account_id and new_account:
        raise click.UsageError("Give --account or --new-account, not both.")

    async def work(database: Database, accounts: AccountService) -> None:
        account = (
            await accounts.create_account(new_account)
            if new_account
            else await _account(database, accounts, account_id)
        )
        expires_at = datetime.now(UTC) + timedelta(days=days) if days else None
        text = await accounts.create_key(account.id, name, expires_at=expires_at)
        click.echo(f"Key for account {account.id} ({account.name}):", err=True)
        click.echo(str(text))

    _run(config, flags, work)


@keys.command("list")
@settings_options
def list_(config: Path | None, **flags: str | None) -> None:
    """List all keys, without their secrets."""

    async def work(database: Database, accounts: AccountService) -> None:
        now = datetime.now(UTC)
        for key in await accounts.list_keys():
            state = "good"
            if key.revoked_at is not None:
                state = "revoked"
            elif key.expires_at is not None and key.expires_at <= now:
                state = "expired"
            fields: tuple[Any, ...] = (key.id, state, key.account_id, f"{key.created_at:%Y-%m-%d}", key.name)
            click.echo("\t".join(map(str, fields)))

    _run(config, flags, work)


@keys.command()
@settings_options
@click.argument("key")
def revoke(config: Path | None, key: str, **flags: str | None) -> None:
    """End a key for good. KEY is its public id, as `keys list` shows it, or the whole key."""
    text = parse_key_text(key)

    async def work(database: Database, accounts: AccountService) -> None:
        was_good = await accounts.revoke_key(text.id if text else key)
        click.echo("revoked" if was_good else "was revoked before")

    _run(config, flags, work)


@click.command()
@settings_options
@click.argument("repository")
@click.option(
    "--account", "account_id", help="Id of an account or organization; the first account when absent."
)
def link(config: Path | None, repository: str, account_id: str | None, **flags: str | None) -> None:
    """Let an account work on a repository that is not its workspace. REPOSITORY is OWNER/NAME."""
    owner, _, name = repository.partition("/")
    wanted = RepositoryName(owner, name)

    async def work(database: Database, accounts: AccountService) -> None:
        account = await _account(database, accounts, account_id)
        is_new = await accounts.link_repository(account.id, wanted.owner, wanted.name)
        click.echo("linked" if is_new else "was linked before")

    _run(config, flags, work)


async def _account(database: Database, accounts: AccountService, account_id: str | None) -> Account:
    if account_id:
        return await accounts.get_account(account_id)
    first = await database.read(store.find_first_account)
    if first is None:
        raise NotFoundError(
            "There is no account yet. Start the server once, or use `keys create --new-account`."
        )
    return first
