"""The server's end of the launcher: a small process of its own that starts every sandbox (native/launcher.c).

It dies with this process, and every sandbox with it. When it dies alone, the next use starts another.
"""

import asyncio
import errno
import fcntl
import os
import socket
import struct
import subprocess
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fermata.kit.errors import SandboxFailedError
from fermata.sandboxes.providers.local.ids import Mapping

_LAUNCH = struct.Struct("<IIIIQQQ")
_LAUNCHED = struct.Struct("<ii")
_BOX, _REMOVE = 1, 2
_PACKET_BYTES = 128 * 1024
_MFD_EXEC = 0x10


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides how one sandbox is started."""

    disk: Path
    #: Read-only layers, uppermost first.
    layers: Sequence[Path]
    #: Paths of the host that `arguments` bind as /tmp/bind0 and so on.
    binds: Sequence[str]
    #: Directories of the root that are mounted over.
    mount_points: Sequence[str]
    arguments: Sequence[str]
    file_bytes: int
    data_bytes: int
    processes: int


@dataclass(frozen=True, slots=True)
class Started:
    pid: int
    #: Becomes readable when the process has ended. The caller closes it.
    pidfd: int


class Launcher:
    def __init__(
        self, *, program: Path, init: Path, bubblewrap: str, seccomp: bytes, mapping: Mapping
    ) -> None:
        self._program = program
        self._init = init
        self._bubblewrap = bubblewrap
        self._seccomp = seccomp
        self.mapping = mapping
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting: deque[asyncio.Future[Started]] = deque()

    def use(self, mapping: Mapping) -> None:
        """Map differently from now on. Ends what runs."""
        self.close()
        self.mapping = mapping

    async def start_box(self, plan: Plan, descriptors: Sequence[int]) -> Started:
        """Start a sandbox's processes. `descriptors`: listener, lock, error stream, control groups."""
        strings = [
            str(plan.disk),
            *(str(layer) for layer in plan.layers),
            *plan.binds,
            *plan.mount_points,
            *plan.arguments,
        ]
        head = _LAUNCH.pack(
            _BOX,
            len(plan.layers),
            len(plan.binds),
            len(plan.mount_points),
            plan.file_bytes,
            plan.data_bytes,
            plan.processes,
        )
        return await self._ask(head, strings, descriptors)

    async def remove(self, path: Path) -> None:
        """Delete a tree of our own data directory with the rights of root inside. Returns when it is gone."""
        started = await self._ask(_LAUNCH.pack(_REMOVE, 0, 0, 0, 0, 0, 0), [str(path)], ())
        try:
            await readable(started.pidfd)
        finally:
            os.close(started.pidfd)

    def close(self) -> None:
        """End the launcher, and with it every sandbox that is left."""
        if self._control is not None:
            self._lost()
        if self._process is not None:
            self._process.wait()
            self._process = None

    async def _ask(self, head: bytes, strings: Iterable[str], descriptors: Sequence[int]) -> Started:
        packet = head + b"".join(os.fsencode(string) + b"\0" for string in strings)
        if len(packet) > _PACKET_BYTES:
            raise SandboxFailedError("the sandbox has too many layers and settings to be started")
        while True:
            control = self._running()
            try:
                socket.send_fds(control, [packet], descriptors)
                break
            except BlockingIOError:
                await asyncio.sleep(0.001)
            except (BrokenPipeError, ConnectionResetError):
                self._lost()
        # Answers come in the order of the questions; ours stays in the queue also when we are cancelled.
        answer: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        return await answer

    def _running(self) -> socket.socket:
        if self._control is not None:
            return self._control
        if self._process is not None:
            self._process.wait()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        init = sealed_copy("init", self._init.read_bytes(), program=True)
        rules = sealed_copy("seccomp", self._seccomp)
        passed = [theirs.fileno(), init, rules]
        words = [self.mapping.mode.value, self.mapping.uids, self.mapping.gids, self._bubblewrap]
        try:
            self._process = subprocess.Popen(
                [str(self._program), *map(str, passed), *words],
                pass_fds=passed,
                env={},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(init)
            os.close(rules)
        ours.setblocking(False)
        self._control = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._on_answer)
        return ours

    def _on_answer(self) -> None:
        assert self._control is not None
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, _LAUNCHED.size, 1)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data, descriptors = b"", []
        if len(data) != _LAUNCHED.size:
            self._lost()
            return
        pid, error = _LAUNCHED.unpack(data)
        answer = self._waiting.popleft()
        if pid > 0 and descriptors and not answer.done():
            answer.set_result(Started(pid, descriptors[0]))
            return
        for descriptor in descriptors:
            os.close(descriptor)
        if not answer.done():
            answer.set_exception(
                SandboxFailedError(f"this machine could not start another process: {os.strerror(error)}")
            )

    def _lost(self) -> None:
        assert self._control is not None
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        self._control.close()
        self._control = None
        while self._waiting:
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(SandboxFailedError("the process that starts sandboxes has died"))


def sealed_copy(name: str, data: bytes, *, program: bool = False) -> int:
    """A file in memory that nobody can change any more, whoever gets to see it."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        descriptor = os.memfd_create(name, flags | (_MFD_EXEC if program else 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = os.memfd_create(name, flags)  # before Linux 6.3 every such file can be run
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(
        descriptor,
        fcntl.F_ADD_SEALS,
        fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE,
    )
    return descriptor


async def readable(descriptor: int) -> None:
    """Wait until the descriptor has something to say. One waiter a descriptor."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def tell() -> None:
        loop.remove_reader(descriptor)
        if not done.done():
            done.set_result(None)

    loop.add_reader(descriptor, tell)
    try:
        await done
    finally:
        loop.remove_reader(descriptor)
