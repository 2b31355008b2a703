"""A running sandbox of the memory provider and the handle on it."""

import asyncio
import base64
import contextlib
import json
import os
import re
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from fermata.kit.errors import FermataError, InvalidRequestError, SandboxPathError
from fermata.sandboxes.clip import Clip
from fermata.sandboxes.contract import (
    DetachedCommand,
    DetachedStatus,
    DirectoryEntry,
    ExecResult,
    FileStat,
    Output,
    OutputStream,
    Process,
)
from fermata.sandboxes.providers.memory_commands import Command, kill_marked
from fermata.sandboxes.providers.memory_disk import Disk, told_of

WORKING_DIRECTORY = "/workspace"
_WORKSPACE = re.compile(r"(?<![\w./-])/workspace(?![\w.-])")
_COMMAND_ID = re.compile(r"[0-9a-f]{16}")
_TAIL = 65_536
_Result = TypeVar("_Result")


@dataclass
class Machine:
    """What runs in one sandbox between its start and its stop."""

    disk: Disk
    detached_at: Path
    environment: Mapping[str, str]
    #: Start of the mark that every process in it carries.
    mark: str
    detached: dict[str, "_Detached"] = field(default_factory=dict)
    ended: asyncio.Future[FermataError] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    async def end(self, error: FermataError) -> None:
        """Kill all that runs in it. Calls under way, and all later ones, raise `error`."""
        self.ended.set_result(error)
        await asyncio.to_thread(kill_marked, self.mark)
        for detached in self.detached.values():
            detached.task.cancel()
        await asyncio.gather(*(one.task for one in self.detached.values()), return_exceptions=True)
        for detached in self.detached.values():
            await detached.command.release()  # Its task may have been cancelled before it began.

    async def during(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """The result of `work`, unless the machine ends first: then its error."""
        task = asyncio.ensure_future(work)
        either: list[asyncio.Future[Any]] = [task, self.ended]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self.ended.done():
            # Whatever the call came to, it is about a machine that is no more.
            task.cancelled() or task.exception()
            raise self.ended.result()
        return task.result()

    def start(
        self,
        command: Sequence[str],
        cwd: str | None,
        environment: Mapping[str, str] | None,
        stdin: bytes | AsyncIterable[bytes],
        time_limit_for: timedelta | None,
        *,
        merged: bool = False,
    ) -> Command:
        """Start a command; one that the machine cannot run becomes a shell that says so."""
        if not command or not command[0]:
            raise InvalidRequestError("a command needs a program")
        if any("\0" in text for text in (*command, *chain.from_iterable((environment or {}).items()))):
            raise InvalidRequestError("a command and its environment cannot hold NUL bytes")
        place = cwd or WORKING_DIRECTORY
        with told_of(place):
            where = self.disk.locate(place)
            if not os.path.isdir(where):
                raise SandboxPathError(f"{place}: not a directory")
        root = str(self.disk.root)
        given = {**_base_environment(root), **self.environment, **(environment or {})}
        keywords: dict[str, Any] = {
            "cwd": where,
            "environment": {key: _rewrite(value, root) for key, value in given.items()},
            "mark": f"{self.mark}{secrets.token_hex(8)}",
            "stdin": stdin,
            "time_limit": None if time_limit_for is None else time_limit_for.total_seconds(),
            "merged": merged,
        }
        try:
            return Command.start([_rewrite(argument, root) for argument in command], **keywords)
        except OSError as error:
            status = 127 if isinstance(error, FileNotFoundError) else 126
            words = os.strerror(error.errno or 0)
            keywords["environment"] = {"PATH": os.defpath}
            script = 'printf "%s: %s\\n" "$1" "$2" >&2; exit "$3"'
            return Command.start(
                ["/bin/sh", "-c", script, "sh", command[0][:1000], words, str(status)], **keywords
            )


@dataclass
class _Detached:
    command: Command
    tail: bytearray = field(default_factory=bytearray)
    task: asyncio.Task[None] = field(init=False)


class MemorySandbox:
    """Implements `contract.Sandbox`. Asks for the machine at each call, so it outlives a stop."""

    def __init__(self, name: str, machine: Callable[[str], Machine]) -> None:
        self._name = name
        self._find = machine

    @property
    def name(self) -> str:
        return self._name

    @property
    def working_directory(self) -> str:
        return WORKING_DIRECTORY

    async def exec(
        self,
        command: Sequence[str],
        *,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: bytes | AsyncIterable[bytes] = b"",
        time_limit_for: timedelta = timedelta(seconds=120),
        output_limit: int = 1_000_000,
    ) -> ExecResult:
        machine = self._find(self._name)

        async def run() -> ExecResult:
            kept = {stream: Clip(output_limit) for stream in OutputStream}
            running = machine.start(command, cwd, environment, stdin, time_limit_for)
            try:
                async for piece in running.output():
                    kept[piece.stream].write(piece.data)
                status = await running.wait()
            except BaseException:
                await running.kill()
                raise
            finally:
                await running.release()
            return ExecResult(
                exit_code=status,
                stdout=kept[OutputStream.STDOUT].getvalue(),
                stderr=kept[OutputStream.STDERR].getvalue(),
                truncated=any(clip.truncated for clip in kept.values()),
                timed_out=status is None,
            )

        return await machine.during(run())

    @contextlib.asynccontextmanager
    async def start(
        self,
        command: Sequence[str],
        *,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: bytes | AsyncIterable[bytes] = b"",
        time_limit_for: timedelta = timedelta(seconds=120),
    ) -> AsyncIterator[Process]:
        machine = self._find(self._name)
        running = machine.start(command, cwd, environment, stdin, time_limit_for)
        try:
            yield _Watched(running, machine)
        finally:
            await running.kill()
            await running.release()

    async def start_detached(
        self,
        command: Sequence[str],
        *,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        machine = self._find(self._name)
        command_id = secrets.token_hex(8)
        running = machine.start(command, cwd, environment, b"", None, merged=True)
        machine.detached[command_id] = detached = _Detached(running)
        (machine.detached_at / command_id).write_text("{}")
        detached.task = asyncio.create_task(self._follow(machine, command_id, detached))
        return command_id

    async def _follow(self, machine: Machine, command_id: str, detached: _Detached) -> None:
        """Keep the end of its output, and write down how it ended, unless the machine ended it."""
        try:
            async for piece in detached.command.output():
                detached.tail += piece.data
                del detached.tail[:-_TAIL]
            status = await detached.command.wait()
        finally:
            await detached.command.release()
        if not machine.ended.done():
            output = base64.b64encode(detached.tail).decode()
            ended = json.dumps({"exit_code": status, "output": output})
            (machine.detached_at / command_id).write_text(ended)

    async def get_detached(self, command_id: str) -> DetachedCommand:
        machine = self._find(self._name)
        detached = machine.detached.get(command_id)
        if detached is not None and not detached.task.done():
            return DetachedCommand(command_id, DetachedStatus.RUNNING, None, bytes(detached.tail))
        if not _COMMAND_ID.fullmatch(command_id) or not (machine.detached_at / command_id).exists():
            raise SandboxPathError(f"no command has the id {command_id[:64]!r}")
        record = json.loads((machine.detached_at / command_id).read_bytes())
        if "exit_code" not in record:
            return DetachedCommand(command_id, DetachedStatus.LOST, None, b"")
        output = base64.b64decode(record["output"])
        return DetachedCommand(command_id, DetachedStatus.EXITED, record["exit_code"], output)

    async def kill_detached(self, command_id: str) -> None:
        machine = self._find(self._name)
        await self.get_detached(command_id)
        detached = machine.detached.get(command_id)
        if detached is not None and not detached.task.done():
            await detached.command.kill()
            await asyncio.wait([detached.task])

    async def read_file(self, path: str, *, offset: int = 0, limit: int = 10_000_000) -> bytes:
        machine = self._find(self._name)
        return await machine.during(asyncio.to_thread(machine.disk.read, path, offset, limit))

    async def write_file(self, path: str, data: bytes, *, mode: int | None = None) -> None:
        machine = self._find(self._name)
        await machine.during(asyncio.to_thread(machine.disk.write, path, data, mode))

    async def stat(self, path: str, *, follow_symlinks: bool = True) -> FileStat:
        machine = self._find(self._name)
        return await machine.during(
            asyncio.to_thread(machine.disk.stat, path, follow_symlinks=follow_symlinks)
        )

    async def list_directory(self, path: str, *, limit: int = 10_000) -> list[DirectoryEntry]:
        machine = self._find(self._name)
        return await machine.during(asyncio.to_thread(machine.disk.entries, path, limit))


class _Watched:
    """A process whose reader is told when the whole machine ended."""

    def __init__(self, command: Command, machine: Machine) -> None:
        self._command = command
        self._machine = machine

    async def output(self) -> AsyncIterator[Output]:
        async for piece in self._command.output():
            yield piece
        self._check()

    async def wait(self) -> int | None:
        status = await self._command.wait()
        self._check()
        return status

    async def kill(self) -> None:
        await self._command.kill()

    def _check(self) -> None:
        if self._machine.ended.done():
            raise self._machine.ended.result()


def _base_environment(root: str) -> dict[str, str]:
    path = os.environ.get("PATH", os.defpath)
    temporary = f"{root}/tmp"  # noqa: S108 - a path inside
    return {"PATH": path, "HOME": f"{root}/root", "LANG": "C.UTF-8", "TMPDIR": temporary}


def _rewrite(text: str, root: str) -> str:
    return _WORKSPACE.sub(lambda _: f"{root}{WORKING_DIRECTORY}", text)
