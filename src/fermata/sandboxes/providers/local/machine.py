"""One running sandbox: starting its processes, knowing when they are gone, ending them.

The order of ending matters. The first process inside goes first; the kernel then kills all others with it.
bubblewrap's own process, which holds the disk mounted too, sees that and ends; only then is the disk
unmounted and written out.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import structlog

from fermata.kit.errors import SandboxFailedError
from fermata.sandboxes.contract import NetworkPolicy
from fermata.sandboxes.providers.local import agent
from fermata.sandboxes.providers.local.cgroups import Group
from fermata.sandboxes.providers.local.launcher import Launcher, Plan, readable
from fermata.sandboxes.providers.local.locks import try_lock
from fermata.sandboxes.providers.local.records import Home
from fermata.sandboxes.providers.local.walls import PROXY_PORT

_log = structlog.get_logger(__name__)
_BOOT_SECONDS = 30.0
_END_SECONDS = 30.0
_ERROR_BYTES = 4096


class BootError(Exception):
    """The machine did not come up; the text is what bubblewrap or the launcher said. For the log only."""


@dataclass(slots=True)
class Machine:
    """Processes of a running sandbox that this process started."""

    monitor: int
    init: int
    is_alive: bool = True

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.is_alive:
                signal.pidfd_send_signal(self.init, signal.SIGKILL)

    async def watch(self) -> None:
        """Return when both processes have ended, which unmounts the disk."""
        try:
            await readable(self.init)
            self.is_alive = False
            await readable(self.monitor)
        finally:
            self.is_alive = False
            os.close(self.init)
            os.close(self.monitor)


@dataclass(slots=True)
class Booted:
    machine: Machine
    #: Listening inside, for the proxy; with `network=open` only.
    proxy: socket.socket | None


async def boot(launcher: Launcher, home: Home, plan: Plan, group: Group, network: NetworkPolicy) -> Booted:
    """Start the sandbox in `home` and return when its first process answers and is in its control groups.

    Must not be cancelled half way: the caller shields it. The caller holds the gate, so that the machine's
    lock is free; it is held by the machine from here on. Raises `BootError` with nothing left running.
    """
    lock = try_lock(home.lock)
    if lock is None:
        raise BootError("already running")
    said, errors = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    listener = None
    # Others find the machine under its proper name only when it is complete.
    door = home.socket.with_name("agent.boot")
    try:
        listener = agent.listen(door)
        started = await launcher.start_box(plan, [listener.fileno(), lock, errors])
    except BaseException:
        os.close(said)
        raise
    finally:
        os.close(lock)
        os.close(errors)
        if listener is not None:
            listener.close()
    moving = asyncio.ensure_future(asyncio.to_thread(group.move_in, started.pid))
    try:
        reply = await _greet(door, network)
        await moving
        group.move_in(reply.pid or 0)
        init = os.pidfd_open(reply.pid or 0)
    except (agent.AgentLostError, agent.AgentRefusedError, TimeoutError, OSError) as error:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(started.pidfd, signal.SIGKILL)
        await readable(started.pidfd)
        os.close(started.pidfd)
        await asyncio.wait([moving])
        raise BootError(_read_errors(said) or f"no answer: {error!r}") from error
    finally:
        os.close(said)
    proxy = socket.socket(fileno=reply.descriptors.pop()) if reply.descriptors else None
    if proxy is not None:
        proxy.setblocking(False)
    whose = [_identity(pid) for pid in (os.getpid(), started.pid, reply.pid or 0)]
    home.processes.write_text(json.dumps(whose))
    door.rename(home.socket)
    return Booted(Machine(started.pidfd, init), proxy)


async def _greet(door: Path, network: NetworkPolicy) -> agent.Reply:
    op = agent.Op.LISTEN if network is NetworkPolicy.OPEN else agent.Op.PING
    async with asyncio.timeout(_BOOT_SECONDS):
        return await agent.ask(door, agent.Request(op, a=PROXY_PORT), credentials=True)


def _read_errors(descriptor: int) -> str:
    try:
        return os.read(descriptor, _ERROR_BYTES).decode(errors="replace").strip()
    except BlockingIOError:
        return ""


def _identity(pid: int) -> tuple[int, str]:
    """A process id with what makes it this process: when it started."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return pid, ""
    return pid, words[19]


def _processes(home: Home) -> list[tuple[int, str]]:
    """The server that started the sandbox last, bubblewrap, and the first process inside; or nothing."""
    try:
        return [(pid, started) for pid, started in json.loads(home.processes.read_text())]
    except FileNotFoundError:
        return []
    except ValueError:  # its writer died while it wrote, and the sandbox with it
        return []


def has_living_owner(home: Home) -> bool:
    return any(_identity(pid) == (pid, started) for pid, started in _processes(home)[:1])


async def end_foreign(home: Home, *, kill: bool) -> None:
    """Wait until the processes that another server started for this sandbox are gone; kill them first if
    asked. Returns at once when there are none."""
    descriptors: list[int] = []
    try:
        for pid, started in reversed(_processes(home)[1:]):
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                descriptors.append(descriptor)
                if _identity(pid)[1] != started:
                    os.close(descriptors.pop())
                elif kill and len(descriptors) == 1:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        async with asyncio.timeout(_END_SECONDS):
            for descriptor in descriptors:
                await readable(descriptor)
    except TimeoutError:
        raise SandboxFailedError(f"the processes of the sandbox {home.path.name!r} do not end") from None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


_libc = ctypes.CDLL(None, use_errno=True)


def sync_disk(path: Path) -> None:
    """Write everything to the disk that `path` is on."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)
