"""What durability costs: the same scripted turn on a journal that keeps lists, and on SQLite."""

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fermata.flows.journal import RunJournal
from fermata.kit.clock import SystemClock
from fermata.kit.sqlite import SqliteDatabase
from fermata.runs import store as runs
from fermata.runs.contract import RunHandle
from fermata.runs.model import new_run
from fermata.schema.migrate import migrate
from fermata.stream import store as streams
from fermata.testing.scripted_llm import ScriptedLlm, asks, ends, says
from fermata.testing.turns import RecordingTool, a_turn, no_sandbox
from fermata.turns.contract import Journal, Recorded, Steered
from fermata.turns.loop import run_turn
from fermata.turns.model import Chunk, FinishReason, TurnEnd
from fermata.turns.toolset import Toolset

STEPS = 17
TURNS = 20
#: Tokens of a step, and pieces of a call's input.
TOKENS = 60
PIECES = ['{"com', "mand", '": "', "ls", " -la", '"}']


class ForgetfulJournal:
    """What a turn needs at least; nothing of it outlives the process."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.kept: list[Any] = []
        self.count = 0

    def _keep(self, entry: Any, chunks: Sequence[Chunk] = ()) -> None:
        self.count += 1
        self.kept.append(entry)
        self.chunks += chunks

    async def load(self) -> Recorded:
        return Recorded()

    async def append(self, chunks: Sequence[Chunk]) -> None:
        self._keep(None, chunks)

    async def take_steering(self, number: int, chunks: Sequence[Chunk]) -> Sequence[Steered]:
        return ()

    async def record_step(self, number: int, record: dict[str, Any], chunks: Sequence[Chunk]) -> None:
        self._keep(record, chunks)

    async def record_intent(self, number: int, call_id: str, tool: str, input: Any) -> None:
        self._keep(input)

    async def record_result(self, call_id: str, result: dict[str, Any], chunks: Sequence[Chunk]) -> None:
        self._keep(result, chunks)


def script() -> ScriptedLlm:
    text = says(*[" token"] * TOKENS)
    steps = [
        [
            *text,
            *asks(f"call_{number}", "note", {"command": "ls -la"}, *PIECES),
            ends(FinishReason.TOOL_CALLS),
        ]
        for number in range(STEPS - 1)
    ]
    return ScriptedLlm(*steps, [*text, ends()])


async def play(journal: Journal) -> None:
    outcome = await run_turn(
        turn=a_turn(),
        llm=script(),
        tools=Toolset([RecordingTool()]),
        journal=journal,
        get_sandbox=no_sandbox,
        stopping=asyncio.Event(),
    )
    assert outcome.end is TurnEnd.COMPLETED


async def durable(database: SqliteDatabase, number: int) -> Journal:
    now = datetime.now(UTC)
    run_id = f"run-{number}"

    def begin(connection: Any) -> Any:
        runs.insert(connection, new_run(run_id, "turn", run_id, now=now, due_at=None, input={}))
        streams.create(connection, run_id, now)
        lease = timedelta(hours=1)
        return runs.claim_due(connection, kind="turn", owner="bench", now=now, lease=lease, count=1)[0]

    run = await database.write(begin)
    return RunJournal(RunHandle(run, database, SystemClock()))


def bare_entry(directory: Path) -> float:
    """Microseconds of processor time of a bare transaction: a row changed, a row added, synced."""
    database = sqlite3.connect(directory / "bare.db", isolation_level=None)
    for statement in (
        "PRAGMA journal_mode=WAL",
        "PRAGMA synchronous=FULL",
        "CREATE TABLE one (id INTEGER PRIMARY KEY, length INTEGER)",
        "CREATE TABLE two (id INTEGER PRIMARY KEY, body TEXT)",
        "INSERT INTO one VALUES (1, 0)",
    ):
        database.execute(statement)
    began, count = time.process_time(), 500
    for _ in range(count):
        database.execute("BEGIN IMMEDIATE")
        database.execute("UPDATE one SET length = length + 1")
        database.execute("INSERT INTO two (body) VALUES (?)", ("x" * 300,))
        database.execute("COMMIT")
    spent = time.process_time() - began
    database.close()
    return spent / count * 1e6


async def measure(directory: Path) -> tuple[float, float, float, float]:
    """Milliseconds of CPU of a turn, durable and not; its entries; microseconds of a bare one."""
    path = directory / "durability.db"
    await migrate(f"sqlite:///{path}")
    database = SqliteDatabase(path)
    spent = {True: 0.0, False: 0.0}
    forgetful = [ForgetfulJournal() for _ in range(TURNS)]
    try:
        for number in range(TURNS):
            for kind in (True, False):
                journal = await durable(database, number) if kind else forgetful[number]
                began = time.process_time()
                await play(journal)
                spent[kind] += time.process_time() - began
    finally:
        await database.close()
    entries = sum(journal.count for journal in forgetful) / TURNS
    return spent[True] / TURNS * 1000, spent[False] / TURNS * 1000, entries, bare_entry(directory)


def run(directory: Path) -> tuple[float, float, float, float]:
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = None
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(measure(directory))
