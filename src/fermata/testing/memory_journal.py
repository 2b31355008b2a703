"""A journal of one turn in memory, which can fail at any entry, before or after it is kept."""

import copy
import json
from collections.abc import Sequence
from typing import Any

from fermata.turns.contract import Effect, Recorded, Steered
from fermata.turns.model import Chunk


class JournalCrashError(Exception):
    """The simulated end of the process."""


class MemoryJournal:
    """Entries survive only as JSON, as they would in a database.

    `crash_at` counts entries from 0 (`load` included); that entry raises `JournalCrashError`, and is kept
    all the same when `kept` is true: the commit went through, the answer was lost. Misuse (a step twice, a
    result twice, an intent twice, a chunk after the end) is an `AssertionError`.
    """

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.steps: list[dict[str, Any]] = []
        self.effects: dict[str, Effect] = {}
        self.inputs: dict[str, Any] = {}
        #: What the user has sent while the turn runs, and what of it was taken before which model call.
        self.waiting: list[Steered] = []
        self.steered: dict[int, tuple[Steered, ...]] = {}
        #: Names of the entries so far, in order.
        self.entries: list[str] = []
        self.crash_at: int | None = None
        self.kept = False

    def _entry(self, name: str) -> bool:
        """Count an entry; whether it is to be kept and then lost on the way back."""
        self.entries.append(name)
        if self.crash_at is None or len(self.entries) - 1 < self.crash_at:
            return False
        if not self.kept:
            raise JournalCrashError(name)
        return True

    def _add(self, chunks: Sequence[Chunk]) -> None:
        assert not any(chunk["type"] == "finish" for chunk in self.chunks), "a chunk after the end"
        self.chunks.extend(json.loads(json.dumps(list(chunks), allow_nan=False)))

    async def load(self) -> Recorded:
        crash = self._entry("load")
        if crash:
            raise JournalCrashError("load")
        return Recorded(
            tuple(copy.deepcopy(self.chunks)),
            tuple(copy.deepcopy(self.steps)),
            copy.deepcopy(self.effects),
            dict(self.steered),
        )

    async def append(self, chunks: Sequence[Chunk]) -> None:
        crash = self._entry("append")
        assert chunks, "an empty entry"
        self._add(chunks)
        if crash:
            raise JournalCrashError("append")

    async def take_steering(self, number: int, chunks: Sequence[Chunk]) -> Sequence[Steered]:
        if not self.waiting:
            return ()
        crash = self._entry("take_steering")
        assert number == len(self.steps), "what is taken is taken for the next call"
        taken, self.waiting = tuple(self.waiting), []
        self.steered[number] = self.steered.get(number, ()) + taken
        self._add([*chunks, *(steered.chunk for steered in taken)])
        if crash:
            raise JournalCrashError("take_steering")
        return taken

    async def record_step(self, number: int, record: dict[str, Any], chunks: Sequence[Chunk]) -> None:
        crash = self._entry("record_step")
        assert number == len(self.steps), "steps are recorded once and in order"
        self.steps.append(json.loads(json.dumps(record, allow_nan=False)))
        self._add(chunks)
        if crash:
            raise JournalCrashError("record_step")

    async def record_intent(self, number: int, call_id: str, tool: str, input: Any) -> None:
        crash = self._entry("record_intent")
        assert call_id not in self.effects, "an intent is recorded once"
        assert number == len(self.steps) - 1
        self.effects[call_id] = Effect(call_id, tool, None)
        self.inputs[call_id] = json.loads(json.dumps(input, allow_nan=False))
        if crash:
            raise JournalCrashError("record_intent")

    async def record_result(self, call_id: str, result: dict[str, Any], chunks: Sequence[Chunk]) -> None:
        crash = self._entry("record_result")
        known = self.effects.get(call_id)
        assert known is None or known.result is None, "a result is recorded once"
        kept = json.loads(json.dumps(result, allow_nan=False))
        self.effects[call_id] = Effect(call_id, known.tool if known else "", kept)
        self._add(chunks)
        if crash:
            raise JournalCrashError("record_result")
