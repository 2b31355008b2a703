"""Accounts, keys and who the caller is. Pure."""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from fermata.kit.ids import new_secret

#: Longest name of an account, an organization, an artist or a key.
NAME_LIMIT = 200

_KEY = re.compile(r"fer_([A-Za-z0-9]{8,32})_([A-Za-z0-9_-]{32,128})")


class AccountKind(StrEnum):
    PERSON = "person"
    ORGANIZATION = "organization"
    ARTIST = "artist"


@dataclass(frozen=True, slots=True)
class Account:
    id: str
    kind: AccountKind
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, as proven by a key."""

    account_id: str
    key_id: str


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is stored: without its secret."""

    #: The public part of the key.
    id: str
    account_id: str
    name: str
    #: SHA-256 of the secret part, in hexadecimal. The secret is random, so nothing slower is needed.
    secret_hash: str
    created_at: datetime
    #: None: never.
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class KeyText:
    """The text of a key, `fer_<public id>_<secret>`, taken apart."""

    id: str
    secret: str

    def __str__(self) -> str:
        return f"fer_{self.id}_{self.secret}"

    def __repr__(self) -> str:
        return f"KeyText(id={self.id!r})"

    @property
    def secret_hash(self) -> str:
        return hash_secret(self.secret)


def new_key_text() -> KeyText:
    return KeyText(secrets.token_hex(12), new_secret())


def parse_key_text(text: str) -> KeyText | None:
    found = _KEY.fullmatch(text)
    return KeyText(found[1], found[2]) if found else None


def hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def is_key_good(key: ApiKey, secret: str, now: datetime) -> bool:
    """Whether `secret` is the key's, and the key may still be used."""
    if not hmac.compare_digest(key.secret_hash, hash_secret(secret)):
        return False
    return is_key_in_force(key, now)


def is_key_in_force(key: ApiKey, now: datetime) -> bool:
    """Whether a key that was proven once may still be used."""
    return key.revoked_at is None and (key.expires_at is None or now < key.expires_at)
