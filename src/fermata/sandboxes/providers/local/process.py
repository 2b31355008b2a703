"""A command that runs in a sandbox, as the server sees it: its streams, its end, and how to end it."""

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable

from fermata.kit.errors import FermataError
from fermata.sandboxes.clip import Clip
from fermata.sandboxes.contract import Output, OutputStream
from fermata.sandboxes.providers.local import agent

_CHUNK = 256 * 1024
#: Output that nobody has taken yet before we stop reading, and the command has to wait.
_WAITING_AT_MOST = 512 * 1024
#: What a child left behind may still write after the command itself has ended.
_LINGER_SECONDS = 0.2
#: Reads of a stream before it is closed; a pipe holds less than one of them takes, unless it is refilled.
_LAST_READS = 2
_KILLED = 137


class Running:
    """Implements `contract.Process`. Made by the sandbox, which also closes it.

    `end` kills the command with all it started and returns when nothing of it is left. `vanished` is asked
    when the command's keeper is gone without a word: the error to raise when the whole sandbox is gone.
    """

    def __init__(
        self,
        connection: socket.socket,
        stdout: int,
        stderr: int,
        *,
        end: Callable[[], Awaitable[None]],
        vanished: Callable[[], Awaitable[FermataError | None]],
        refused: Callable[[int, int], FermataError],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._end = end
        self._vanished = vanished
        self._refused = refused
        self._open = {stdout: OutputStream.STDOUT, stderr: OutputStream.STDERR}
        self._paused = False
        self._pieces: deque[Output] = deque()
        self._waiting_bytes = 0
        self._clips: dict[OutputStream, Clip] | None = None
        self._dropping = False
        self._news = asyncio.Event()
        self._code: int | None = None
        self._started = False
        self._exited = False
        self._lost = False
        self._error: FermataError | None = None
        self._failure: BaseException | None = None
        self._over = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: asyncio.Task[None] | None = None
        self.timed_out = False
        self.killed = False
        self._loop.add_reader(connection.fileno(), self._on_connection)
        for descriptor in self._open:
            self._loop.add_reader(descriptor, self._on_output, descriptor)

    # ---- what the command does ----

    def _on_connection(self) -> None:
        try:
            reply = agent.take(self._connection)
        except BlockingIOError:
            return
        except agent.AgentLostError:
            self._lost = True
        else:
            for descriptor in reply.descriptors:
                os.close(descriptor)
            if reply.kind == agent.Reply.OK:
                self._started = True
                self._news.set()
                return
            if reply.kind == agent.Reply.EXIT:
                self._code = reply.values[0] & 0xFF
            else:
                self._error = self._refused(reply.error, reply.values[0])
        self._loop.remove_reader(self._connection.fileno())
        self._exited = True
        if self._open and not self._over:
            # What it wrote is in the pipes already; only what others still write has to be waited for.
            self._timer_to(_LINGER_SECONDS, self._close_streams)
        else:
            self._finish()

    def _on_output(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._close_stream(descriptor)
            if not self._open and self._exited:
                self._finish()
            return
        stream = self._open[descriptor]
        if self._clips is not None:
            self._clips[stream].write(data)
        elif not self._dropping:
            self._pieces.append(Output(stream, data))
            self._waiting_bytes += len(data)
            if self._waiting_bytes >= _WAITING_AT_MOST:
                self._pause()
            self._news.set()

    def _close_stream(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        del self._open[descriptor]
        os.close(descriptor)

    def _close_streams(self) -> None:
        self._timer = None
        if self._paused:
            # The reader is slow: what was written before the end is still to be read, at the reader's pace.
            self._timer_to(_LINGER_SECONDS, self._close_streams)
            return
        for descriptor in list(self._open):
            # This loop may have been late for more than the pause: what is in the pipe is still to be read.
            for _ in range(_LAST_READS):
                if descriptor in self._open and not self._paused:
                    self._on_output(descriptor)
        if self._paused:
            self._timer_to(_LINGER_SECONDS, self._close_streams)
            return
        for descriptor in list(self._open):
            self._close_stream(descriptor)
        self._finish()

    def _finish(self) -> None:
        if not self._over:
            self._over = True
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._news.set()

    def _pause(self) -> None:
        self._paused = True
        for descriptor in self._open:
            self._loop.remove_reader(descriptor)

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            for descriptor in self._open:
                self._loop.add_reader(descriptor, self._on_output, descriptor)

    # ---- time ----

    def limit(self, seconds: float) -> None:
        """Kill the command when it is not done by then."""
        self._timer_to(seconds, self._on_time)

    def _timer_to(self, seconds: float, then: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, then)

    def _on_time(self) -> None:
        self._timer = None
        if not self._exited:
            self.timed_out = True
            self._kill_soon()

    def _kill_soon(self) -> None:
        async def run() -> None:
            try:
                await self.kill()
            except FermataError as error:
                self._error = self._error or error
                self._exited = True
                self._finish()

        self._ending = self._loop.create_task(run())
        self._tasks.add(self._ending)
        self._ending.add_done_callback(self._tasks.discard)

    # ---- the contract ----

    async def output(self) -> AsyncIterator[Output]:
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._waiting_bytes -= len(piece.data)
                if self._waiting_bytes < _WAITING_AT_MOST // 2:
                    self._resume()
                yield piece
            if self._over or (not self._open and self._exited):
                break
            if not self._open and not self._exited:
                break  # both streams are closed; the command itself may go on
            self._news.clear()
            await self._news.wait()
        if self._over:
            await self._result()

    async def wait(self) -> int | None:
        if self._clips is None:
            self._dropping = True
            self._pieces.clear()
            self._waiting_bytes = 0
            self._resume()
        while not self._over:
            self._news.clear()
            await self._news.wait()
        return await self._result()

    async def kill(self) -> None:
        if not self._exited:
            self.killed = True
        await self._end()

    # ---- for the sandbox ----

    async def started(self) -> None:
        """Return when the command runs. Raises why it does not."""
        while not self._started and not self._exited:
            self._news.clear()
            await self._news.wait()
        if self._error is not None or (self._lost and not self._started):
            await self._result()

    def clip(self, limit: int) -> tuple[Clip, Clip]:
        """Keep the output in clips from now on, instead of handing out pieces."""
        out, err = Clip(limit), Clip(limit)
        self._clips = {OutputStream.STDOUT: out, OutputStream.STDERR: err}
        return out, err

    def feed(self, descriptor: int, stdin: bytes | AsyncIterable[bytes]) -> None:
        """Write standard input in the background; takes the descriptor over. When its source fails, the
        command is ended and the failure is raised by `wait`."""
        task = self._loop.create_task(_feed(descriptor, stdin))
        self._tasks.add(task)
        task.add_done_callback(self._fed)

    def _fed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = failure
            self._kill_soon()

    async def _result(self) -> int | None:
        if self._ending is not None:
            await asyncio.shield(self._ending)  # the keeper goes first; what it kept may still be dying
        if self._failure is not None:
            raise self._failure
        if self._error is not None:
            raise self._error
        if self.timed_out:
            return None
        if self._lost and self._code is None:
            error = None if self.killed else await self._vanished()
            if error is not None:
                raise error
            return _KILLED
        return self._code

    @property
    def exited(self) -> bool:
        return self._exited

    def let_go(self) -> None:
        """What the command left running may go on."""
        with contextlib.suppress(OSError):
            self._connection.send(b"k")

    async def close(self) -> None:
        """Free everything. A command that is still running, or left something, loses its keeper and dies."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for descriptor in list(self._open):
            self._close_stream(descriptor)
        if self._connection.fileno() >= 0:
            self._loop.remove_reader(self._connection.fileno())
            self._connection.close()
        self._over = True
        self._news.set()


async def _feed(descriptor: int, stdin: bytes | AsyncIterable[bytes]) -> None:
    try:
        if isinstance(stdin, bytes):
            await _write(descriptor, stdin)
        else:
            async for piece in stdin:
                await _write(descriptor, piece)
    except BrokenPipeError:
        return  # the command does not want it
    finally:
        os.close(descriptor)


async def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    loop = asyncio.get_running_loop()
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            room = asyncio.Event()
            loop.add_writer(descriptor, room.set)
            try:
                await room.wait()
            finally:
                loop.remove_writer(descriptor)
