"""The handle on one running sandbox. It holds no descriptor and no state of the machine: every call asks the
machine itself, so it stays right when the sandbox is stopped, resumed or deleted by somebody else."""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from datetime import timedelta

import structlog

from fermata.kit.errors import (
    FermataError,
    InvalidRequestError,
    SandboxFailedError,
    SandboxGoneError,
    SandboxPathError,
    SandboxStoppedError,
)
from fermata.sandboxes.contract import DetachedCommand, DirectoryEntry, ExecResult, FileStat
from fermata.sandboxes.providers.local import agent, detached, files
from fermata.sandboxes.providers.local.agent import Flag, Op, Request
from fermata.sandboxes.providers.local.cgroups import CommandGroup, Group
from fermata.sandboxes.providers.local.locks import is_held
from fermata.sandboxes.providers.local.process import Running
from fermata.sandboxes.providers.local.records import Home
from fermata.sandboxes.providers.local.walls import WORKING_DIRECTORY

_log = structlog.get_logger(__name__)
_END_SECONDS = 10.0
_PIPE_BYTES = 65_536


class LocalSandbox:
    def __init__(self, name: str, home: Home, environment: Mapping[str, str], group: Group) -> None:
        self._name = name
        self._home = home
        self._environment = dict(environment)
        self._group = group

    @property
    def name(self) -> str:
        return self._name

    @property
    def working_directory(self) -> str:
        return WORKING_DIRECTORY

    # ---- commands ----

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
        async with self._running(command, cwd, environment, stdin, time_limit_for, Flag.NONE) as running:
            stdout, stderr = running.clip(output_limit)
            code = await running.wait()
            if not running.timed_out:
                running.let_go()
            return ExecResult(
                exit_code=code,
                stdout=stdout.getvalue(),
                stderr=stderr.getvalue(),
                truncated=stdout.truncated or stderr.truncated,
                timed_out=running.timed_out,
            )

    @contextlib.asynccontextmanager
    async def start(
        self,
        command: Sequence[str],
        *,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: bytes | AsyncIterable[bytes] = b"",
        time_limit_for: timedelta = timedelta(seconds=120),
    ) -> AsyncIterator[Running]:
        async with self._running(command, cwd, environment, stdin, time_limit_for, Flag.TELL) as running:
            await running.started()
            try:
                yield running
            finally:
                await running.kill()

    @contextlib.asynccontextmanager
    async def _running(
        self,
        command: Sequence[str],
        cwd: str | None,
        environment: Mapping[str, str] | None,
        stdin: bytes | AsyncIterable[bytes],
        time_limit_for: timedelta,
        flags: Flag,
    ) -> AsyncIterator[Running]:
        strings, count = self._strings(command, cwd, environment)
        number = secrets.randbits(63)
        group = self._new_group()
        try:
            running = await self._launch(strings, len(command), count, number, stdin, group, flags)
            try:
                running.limit(max(0.0, time_limit_for.total_seconds()))
                yield running
            except BaseException:
                if not running.exited:
                    await asyncio.shield(running.kill())
                raise
            finally:
                await running.close()
        finally:
            if group is not None:
                group.leave()

    async def _launch(
        self,
        strings: bytes,
        argc: int,
        envc: int,
        number: int,
        stdin: bytes | AsyncIterable[bytes],
        group: CommandGroup | None,
        flags: Flag,
    ) -> Running:
        ours: list[int] = []
        theirs: list[int] = []
        feed: int | None = None
        connection: socket.socket | None = None
        try:
            if not isinstance(stdin, bytes) or stdin:
                flags |= Flag.STDIN
                read_end, feed = os.pipe2(os.O_CLOEXEC)
                theirs.append(read_end)
                ours.append(feed)
            for _ in range(2):
                read_end, write_end = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(read_end, False)
                ours.append(read_end)
                theirs.append(write_end)
            if group is not None:
                flags |= Flag.GROUP
                theirs.append(group.open())
            request = Request(Op.EXEC, flags, strings, theirs, argc=argc, envc=envc, id=number)
            connection = await agent.send(self._home.socket, request)
        except BaseException as error:
            for descriptor in ours:
                os.close(descriptor)
            if isinstance(error, agent.AgentLostError):
                raise self._absent() from error
            if isinstance(error, OSError):
                raise SandboxFailedError(f"no command can be started now: {error.strerror}") from error
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)

        async def end() -> None:
            if group is not None:
                group.kill()
            await self._kill(number)

        running = Running(
            connection, ours[-2], ours[-1], end=end, vanished=self._find_absence, refused=_refused
        )
        if feed is not None:
            os.set_blocking(feed, False)
            running.feed(feed, stdin)
        return running

    async def _kill(self, number: int) -> None:
        """Kill a command by its keeper and return when nothing of it is left."""
        try:
            async with asyncio.timeout(_END_SECONDS):
                await agent.ask(self._home.socket, Request(Op.KILL, id=number))
        except agent.AgentLostError:
            return  # with the machine, everything in it has ended
        except (TimeoutError, agent.AgentRefusedError) as error:
            raise SandboxFailedError(
                f"a command in the sandbox {self._name!r} could not be ended: stop the sandbox"
            ) from error

    def _new_group(self) -> CommandGroup | None:
        try:
            return self._group.new_command()
        except FileNotFoundError:
            raise self._absent() from None

    def _strings(
        self, command: Sequence[str], cwd: str | None, environment: Mapping[str, str] | None
    ) -> tuple[bytes, int]:
        if not command or not command[0]:
            raise InvalidRequestError("a command needs at least a program", field=("command",))
        merged = {**self._environment, **(environment or {})}
        for key in merged:
            if not key or "=" in key:
                raise InvalidRequestError(
                    f"{key!r} cannot be the name of an environment variable", field=("environment",)
                )
        place = files.path_bytes(WORKING_DIRECTORY if cwd is None else cwd)
        words = [*command, *(f"{key}={value}" for key, value in merged.items())]
        if any("\0" in word for word in words):
            raise InvalidRequestError("a command and its environment cannot hold NUL characters")
        encoded = b"".join(files.encode(word) + b"\0" for word in words)
        return place + b"\0" + encoded, len(merged)

    # ---- detached commands ----

    async def start_detached(
        self,
        command: Sequence[str],
        *,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        strings, count = self._strings(command, cwd, environment)
        try:
            record = detached.create(self._home.detached)
        except FileNotFoundError:
            raise self._absent() from None
        group = None
        descriptors = [record.descriptor]
        try:
            group = self._new_group()
            flags = Flag.DETACHED | Flag.TELL
            if group is not None:
                flags |= Flag.GROUP
                descriptors.append(group.open())
            request = Request(
                Op.EXEC, flags, strings, descriptors, argc=len(command), envc=count, id=record.number
            )
            await self._ask(request)
        except BaseException:
            detached.forget(self._home.detached, record.id)
            raise
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            if group is not None:
                group.leave()
        return record.id

    async def get_detached(self, command_id: str) -> DetachedCommand:
        self._check_running()
        return detached.read(self._home.detached, command_id)

    async def kill_detached(self, command_id: str) -> None:
        self._check_running()
        detached.read(self._home.detached, command_id)
        await self._kill(int(command_id, 16))
        detached.mark_killed(self._home.detached, command_id)

    # ---- files ----

    async def read_file(self, path: str, *, offset: int = 0, limit: int = 10_000_000) -> bytes:
        descriptor = await self._open(path, Flag.NONE)
        try:
            return await files.read(descriptor, path, offset, limit)
        finally:
            os.close(descriptor)

    async def write_file(self, path: str, data: bytes, *, mode: int | None = None) -> None:
        flags = Flag.NONE if mode is None else Flag.MODE
        strings = files.path_bytes(path) + b"\0" + data
        await self._ask(Request(Op.WRITE, flags, strings, a=mode or 0), path)

    async def stat(self, path: str, *, follow_symlinks: bool = True) -> FileStat:
        flags = Flag.NONE if follow_symlinks else Flag.NOFOLLOW
        reply = await self._ask(Request(Op.STAT, flags, files.path_bytes(path) + b"\0"), path)
        return files.to_stat(reply.values)

    async def list_directory(self, path: str, *, limit: int = 10_000) -> list[DirectoryEntry]:
        descriptor = await self._open(path, Flag.DIRECTORY)
        try:
            return await files.entries(descriptor, limit)
        finally:
            os.close(descriptor)

    async def _open(self, path: str, flags: Flag) -> int:
        reply = await self._ask(Request(Op.OPEN, flags, files.path_bytes(path) + b"\0"), path)
        if len(reply.descriptors) != 1:
            raise SandboxFailedError(f"the sandbox {self._name!r} gave an answer without a file")
        return reply.descriptors[0]

    # ---- what went wrong ----

    async def _ask(self, request: Request, path: str | None = None) -> agent.Reply:
        try:
            return await agent.ask(self._home.socket, request)
        except agent.AgentLostError as error:
            raise self._absent() from error
        except agent.AgentRefusedError as error:
            if path is not None:
                raise files.path_error(error.errno, path) from error
            raise _refused(error.errno, error.stage) from error

    def _absent(self) -> FermataError:
        if self._home.record.exists():
            return SandboxStoppedError(f"the sandbox {self._name!r} is stopped")
        return SandboxGoneError(f"there is no sandbox {self._name!r}")

    def _check_running(self) -> None:
        if not is_held(self._home.lock):
            raise self._absent()

    async def _find_absence(self) -> FermataError | None:
        """Whether the sandbox has gone; None when it is only a command that has."""
        if not is_held(self._home.lock):
            return self._absent()
        try:
            await agent.ask(self._home.socket, Request(Op.PING))
        except agent.AgentLostError:
            return self._absent()
        return None


def _refused(error: int, stage: int) -> FermataError:
    reason = os.strerror(error)
    if stage == agent.Stage.CWD:
        return SandboxPathError(f"the working directory cannot be used: {reason}")
    if stage == agent.Stage.FORK:
        return SandboxFailedError("the sandbox has reached its limit of processes")
    return SandboxFailedError(f"the command could not be started: {reason}")
