"""Cursors of a stream. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StreamState:
    #: Number of chunks; the last one has the index `length - 1`.
    length: int
    #: No chunk will follow.
    closed: bool


@dataclass(frozen=True, slots=True)
class Batch:
    #: Index of the first chunk in it.
    first: int
    lines: tuple[str, ...]


def decide_start(start: int, length: int) -> int:
    """The index to begin at. A negative `start` counts from the present end, and stops at the beginning."""
    return start if start >= 0 else max(length + start, 0)
