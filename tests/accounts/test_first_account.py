"""The first account of an installation, and its key file."""

import asyncio
import stat
from pathlib import Path

import pytest

from fermata.accounts.first import KEY_FILE, ensure_first_account
from fermata.accounts.model import Account, new_key_text, parse_key_text
from fermata.accounts.service import AccountService
from fermata.kit.clock import SystemClock
from fermata.kit.database import Database
from fermata.kit.errors import SettingsError, UnauthenticatedError


async def ensure(database: Database, directory: Path, key: str | None = None) -> Account:
    return await ensure_first_account(
        database=database, clock=SystemClock(), data_dir=directory, configured_key=key
    )


def service(database: Database) -> AccountService:
    return AccountService(database=database, clock=SystemClock())


async def test_a_new_installation_gets_an_account_whose_key_is_in_a_private_file(
    database: Database, tmp_path: Path
) -> None:
    directory = tmp_path / "data"
    account = await ensure(database, directory)
    file = directory / KEY_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    caller = await service(database).authenticate(file.read_text().strip())
    assert caller.account_id == account.id
    assert (await ensure(database, directory)).id == account.id
    assert [item.name for item in directory.iterdir()] == [KEY_FILE]


async def test_a_death_between_file_and_row_is_repaired_by_the_next_start(
    database: Database, tmp_path: Path
) -> None:
    text = new_key_text()
    (tmp_path / KEY_FILE).write_text(f"{text}\n")
    account = await ensure(database, tmp_path)
    assert (await service(database).authenticate(str(text))).account_id == account.id


async def test_two_processes_at_once_make_one_account_with_one_key(
    database: Database, tmp_path: Path
) -> None:
    accounts = await asyncio.gather(*(ensure(database, tmp_path) for _ in range(6)))
    assert len({account.id for account in accounts}) == 1
    assert len(await service(database).list_keys()) == 1


async def test_the_configured_key_is_taken_and_written_down(database: Database, tmp_path: Path) -> None:
    text = str(new_key_text())
    account = await ensure(database, tmp_path, text)
    assert (tmp_path / KEY_FILE).read_text().strip() == text
    assert (await service(database).authenticate(text)).account_id == account.id


async def test_a_configured_key_that_was_revoked_stays_revoked(database: Database, tmp_path: Path) -> None:
    text = new_key_text()
    await ensure(database, tmp_path, str(text))
    await service(database).revoke_key(text.id)
    await ensure(database, tmp_path, str(text))
    with pytest.raises(UnauthenticatedError):
        await service(database).authenticate(str(text))


async def test_a_configured_key_with_another_keys_id_is_refused(database: Database, tmp_path: Path) -> None:
    text = new_key_text()
    await ensure(database, tmp_path, str(text))
    with pytest.raises(SettingsError):
        await ensure(database, tmp_path, f"fer_{text.id}_{'x' * 43}")


async def test_a_broken_key_file_is_told_and_not_replaced(database: Database, tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_text("half a ke")
    with pytest.raises(SettingsError):
        await ensure(database, tmp_path)
    assert (tmp_path / KEY_FILE).read_text() == "half a ke"


def test_a_key_does_not_show_its_secret_when_it_is_printed_for_debugging() -> None:
    text = new_key_text()
    assert text.secret not in repr(text)
    assert parse_key_text(str(text)) == text
