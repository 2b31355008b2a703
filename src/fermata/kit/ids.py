"""Identifiers. Clients treat all of them as opaque text."""

import secrets

import uuid_utils


def new_id() -> str:
    """A random UUID (version 4): for sessions, chats and messages, whose clients may check the format."""
    return str(uuid_utils.uuid4())


def new_ordered_id() -> str:
    """A UUID of version 7, which grows with time: for rows that only we name, such as runs."""
    return str(uuid_utils.uuid7())


def new_secret() -> str:
    """256 random bits as 43 characters that are safe in a URL."""
    return secrets.token_urlsafe(32)
