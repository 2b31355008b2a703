"""Cursors of a stream. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StreamState:
    #: Number of chunks; the last one has the index `length - 1`.
    length: int
    #: No chunk will follow.
    closed: bool


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Batch:
    """Chunks that follow each other. Viewers at the same place are given the same object."""

    #: Index of the first chunk in it.
    first: int
    lines: tuple[str, ...]

    @property
    def end(self) -> int:
        """Index after the last chunk in it."""
        return self.first + len(self.lines)


@dataclass(frozen=True, slots=True)
class Page:
    """What a look at a stream finds: the chunks from some index on, and the stream's state at that moment."""

    batch: Batch
    state: StreamState

    @property
    def is_last(self) -> bool:
        """No chunk follows this page, and none will."""
        return self.state.closed and self.batch.end >= self.state.length

    @property
    def has_more(self) -> bool:
        """Chunks that follow this page can be read at once."""
        return self.batch.end < self.state.length


def decide_start(start: int, length: int) -> int:
    """The index to begin at. A negative `start` counts from the present end, and stops at the beginning."""
    return start if start >= 0 else max(length + start, 0)
