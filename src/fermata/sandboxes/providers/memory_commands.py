"""Processes of the memory provider: ordinary children of this process, found again by a mark.

Every command gets a mark in its environment which all that it starts inherits. Ending a command ends its
process group and then, on Linux, whatever carries the mark, so that a child which left the group dies too.
"""

import array
import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import termios
import threading
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from fermata.sandboxes.contract import Output, OutputStream

MARK = "FERMATA_COMMAND"
_PIECE = 65_536


def kill_marked(mark: str) -> None:
    """Kill every process whose mark starts with `mark`, until there is none. Does nothing without /proc."""
    needle = f"{MARK}={mark}".encode()
    found = True
    while found:
        found = False
        for directory in Path("/proc").glob("[0-9]*"):
            # A process that ends meanwhile, or belongs to somebody else, is not ours to kill.
            with contextlib.suppress(OSError):
                entries = (directory / "environ").read_bytes().split(b"\0")
                if any(entry.startswith(needle) for entry in entries):
                    os.kill(int(directory.name), signal.SIGKILL)
                    found = True


class Command:
    """One running command and the pieces that it wrote. Implements `contract.Process`.

    Pipes are read by hand: what asyncio's own subprocesses call the end waits for every holder of a pipe,
    and a background child may hold one for ever.
    """

    def __init__(self, process: subprocess.Popen[bytes], mark: str) -> None:
        self._process = process
        self._mark = mark
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Output | None] = asyncio.Queue(maxsize=4)
        self._exited = asyncio.Event()
        self._waiting: set[asyncio.Future[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._stdin_error: Exception | None = None
        self._timed_out = False
        threading.Thread(target=self._reap, daemon=True).start()

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        cwd: str,
        environment: Mapping[str, str],
        mark: str,
        stdin: bytes | AsyncIterable[bytes],
        time_limit: float | None,
        merged: bool = False,
    ) -> "Command":
        """Start it, or raise `OSError` as the host does for a program that it cannot run."""
        process = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env={**environment, MARK: mark},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        command = cls(process, mark)
        command._tasks = [
            command._loop.create_task(work)
            for work in (command._feed(stdin), command._collect(), command._expire(time_limit))
        ]
        return command

    async def output(self) -> AsyncIterator[Output]:
        while (piece := await self._pieces.get()) is not None:
            yield piece
        self._pieces.put_nowait(None)
        if self._stdin_error is not None:
            raise self._stdin_error

    async def wait(self) -> int | None:
        async for _ in self.output():
            pass
        await self._exited.wait()
        status = self._process.returncode
        if self._timed_out:
            return None
        return status if status >= 0 else 128 - status

    async def kill(self) -> None:
        if not self._exited.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(kill_marked, self._mark)
        await self._exited.wait()

    async def release(self) -> None:
        """Stop looking after the command. What it left running in the background goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _reap(self) -> None:
        self._process.wait()
        with contextlib.suppress(RuntimeError):  # The loop may have been closed without us.
            self._loop.call_soon_threadsafe(self._note_exit)

    def _note_exit(self) -> None:
        self._exited.set()
        for waiting in self._waiting:
            _resolve(waiting)

    async def _collect(self) -> None:
        pumps = [self._pump(self._process.stdout, OutputStream.STDOUT)]
        if self._process.stderr is not None:
            pumps.append(self._pump(self._process.stderr, OutputStream.STDERR))
        await asyncio.gather(*pumps)
        await self._pieces.put(None)

    async def _pump(self, pipe: IO[bytes] | None, stream: OutputStream) -> None:
        """Pass on what is written, and after the command's end what was in the pipe at that moment."""
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
        left: int | None = None
        while left != 0:
            if left is None and self._exited.is_set():
                left = _readable(pipe.fileno())
                continue
            try:
                data = os.read(pipe.fileno(), _PIECE if left is None else min(left, _PIECE))
            except BlockingIOError:
                await self._ready(pipe.fileno(), writing=False)
                continue
            if not data:
                return
            left = None if left is None else left - len(data)
            await self._pieces.put(Output(stream, data))

    async def _feed(self, stdin: bytes | AsyncIterable[bytes]) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
        try:
            async for piece in _one(stdin) if isinstance(stdin, bytes) else stdin:
                view = memoryview(piece)
                while view and not self._exited.is_set():
                    try:
                        view = view[os.write(pipe.fileno(), view) :]
                    except BlockingIOError:
                        await self._ready(pipe.fileno(), writing=True)
        except BrokenPipeError:
            pass  # The command has closed its input: it wants no more.
        except Exception as error:  # noqa: BLE001 - the caller's own source failed; the caller gets it back.
            self._stdin_error = error
            await self.kill()
        finally:
            pipe.close()

    async def _expire(self, seconds: float | None) -> None:
        if seconds is not None:
            await asyncio.sleep(seconds)
            self._timed_out = not self._exited.is_set()
            if self._timed_out:
                await self.kill()

    async def _ready(self, descriptor: int, *, writing: bool) -> None:
        """Until the descriptor is ready or the command has ended."""
        ready: asyncio.Future[None] = self._loop.create_future()
        add = self._loop.add_writer if writing else self._loop.add_reader
        remove = self._loop.remove_writer if writing else self._loop.remove_reader
        add(descriptor, _resolve, ready)
        self._waiting.add(ready)
        try:
            if not self._exited.is_set():
                await ready
        finally:
            self._waiting.discard(ready)
            remove(descriptor)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _readable(descriptor: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, count)
    return count[0]
