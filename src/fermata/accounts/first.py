"""The first account of an installation and its key.

The key is written to `<data directory>/api-key`, readable by the owner only, before its row is committed.
So a death in between leaves a file whose key the next start brings into the database, never an account
that nobody has a key for.
"""

import os
import secrets
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from fermata.accounts import store
from fermata.accounts.model import Account, AccountKind, ApiKey, KeyText, new_key_text, parse_key_text
from fermata.kit.clock import Clock
from fermata.kit.database import Connection, Database, Statement
from fermata.kit.errors import SettingsError
from fermata.kit.ids import new_id

KEY_FILE = "api-key"
#: Any fixed number: PostgreSQL's advisory lock that lets one process at a time look for the first account.
_LOCK = Statement(sa.select(sa.func.pg_advisory_xact_lock(7_306_140_022)))


async def ensure_first_account(
    *, database: Database, clock: Clock, data_dir: Path, configured_key: str | None
) -> Account:
    """The first account, made now if there is none. Idempotent, also for two processes at once.

    A new installation takes `configured_key`, or else the key in the file, or else a new one. Later, the
    configured key is added to the first account unless the database knows it; if the database knows its
    public id with another secret, that is a `SettingsError`.
    """
    path = data_dir / KEY_FILE
    known = await database.read(store.find_first_account)
    if configured_key is not None:
        text = _parse(configured_key, "FERMATA_API_KEY")
        _write_private(path, str(text), replace=True)
    elif known is not None:
        return known
    else:
        text = _read_or_create(path)
    now = clock.now()
    return await database.write(lambda connection: _ensure(connection, text, now))


def _ensure(connection: Connection, text: KeyText, now: datetime) -> Account:
    if connection.dialect_name == "postgresql":
        connection.row(_LOCK)
    account = store.find_first_account(connection)
    if account is None:
        account = Account(new_id(), AccountKind.PERSON, "First account", now)
        store.insert_account(connection, account)
    key = ApiKey(text.id, account.id, "first key", text.secret_hash, now, None, None)
    if not store.insert_key(connection, key):
        found = store.find_key(connection, text.id)
        if found is None or found.secret_hash != text.secret_hash:
            raise SettingsError("FERMATA_API_KEY has the public id of another key with a different secret.")
    return account


def _parse(text: str, source: str) -> KeyText:
    parsed = parse_key_text(text)
    if parsed is None:
        raise SettingsError(f"{source} does not hold an API key (fer_<id>_<secret>).")
    return parsed


def _read_or_create(path: Path) -> KeyText:
    """The key in the file; without a file, a new one. Two processes at once agree on one key."""
    if not path.exists():
        with suppress(FileExistsError):
            _write_private(path, str(new_key_text()), replace=False)
    return _parse(path.read_text(encoding="ascii", errors="replace").strip(), f"The file {KEY_FILE}")


def _write_private(path: Path, text: str, *, replace: bool) -> None:
    """Whole and on the disk when this returns, or not there. `FileExistsError` unless it may replace."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(file, "w", encoding="ascii") as stream:
            stream.write(f"{text}\n")
            stream.flush()
            os.fsync(stream.fileno())
        if replace:
            draft.replace(path)
        else:
            path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
