"""The rule for names of sandboxes and snapshots, and the ceilings of labels: one place for all providers."""

import re
from collections.abc import Mapping

from fermata.kit.errors import InvalidRequestError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """`InvalidRequestError` when nothing can be made under this name."""
    if not is_name(name):
        raise InvalidRequestError(
            f"{name[:128]!r} is no name for a sandbox or snapshot: 1 to 128 letters, digits, '_', '.' and "
            "'-', the first a letter or digit"
        )
    return name


def check_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """`InvalidRequestError` when there are more than 16, or one has over 200 characters."""
    if len(labels) > 16 or any(len(text) > 200 for pair in labels.items() for text in pair):
        raise InvalidRequestError("a sandbox has at most 16 labels of at most 200 characters each")
    return labels
