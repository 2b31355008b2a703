"""The server's end of a sandbox's first process (native/init.c): one connection, one request.

Nothing of what comes back is trusted beyond its form: it comes from a process that code inside may have
attacked.
"""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from pathlib import Path

from fermata.kit.errors import SandboxFailedError
from fermata.sandboxes.providers.local.launcher import sealed_copy

_REQUEST = struct.Struct("<IIIIQqq")
_REPLY = struct.Struct("<Ii6q")
_INLINE_BYTES = 100_000
_PATH_BYTES = 107
_CREDENTIALS = struct.Struct("iII")
_SCM_CREDENTIALS = 2


class Op(IntEnum):
    PING = 1
    EXEC = 2
    KILL = 3
    OPEN = 4
    STAT = 5
    WRITE = 6
    LISTEN = 7
    SHUTDOWN = 8


class Flag(IntFlag):
    NONE = 0
    PAYLOAD = 1
    STDIN = 2
    DETACHED = 4
    NOFOLLOW = 8
    DIRECTORY = 16
    MODE = 32
    GROUP = 64
    TELL = 128


class Stage(IntEnum):
    NONE = 0
    FORK = 1
    CWD = 2
    SETUP = 3


@dataclass(frozen=True, slots=True)
class Request:
    op: Op
    flags: Flag = Flag.NONE
    strings: bytes = b""
    descriptors: Sequence[int] = ()
    argc: int = 0
    envc: int = 0
    id: int = 0
    a: int = 0


@dataclass(slots=True)
class Reply:
    kind: int
    error: int
    values: tuple[int, ...]
    #: The caller's to close.
    descriptors: list[int] = field(default_factory=list)
    #: The answering process as this machine's kernel knows it, where that was asked for.
    pid: int | None = None

    OK = 0
    ERROR = 1
    EXIT = 2


class AgentRefusedError(Exception):
    """The first process answered that it could not do it."""

    def __init__(self, error: int, stage: int) -> None:
        super().__init__(os.strerror(error))
        self.errno = error
        self.stage = stage


class AgentLostError(Exception):
    """Nobody answers: the sandbox has stopped, is stopping, or is deleted."""


async def send(path: Path, request: Request, *, credentials: bool = False) -> socket.socket:
    """Connect and put the question; the answer comes on the returned socket, which the caller closes."""
    descriptors = list(request.descriptors)
    flags, strings, payload = request.flags, request.strings, None
    try:
        if len(strings) > _INLINE_BYTES:
            payload = await _in_memory(strings)
            descriptors.insert(0, payload)
            flags, strings = flags | Flag.PAYLOAD, b""
        head = _REQUEST.pack(request.op, flags, request.argc, request.envc, request.id, request.a, 0)
        connection = await _connect(path)
        try:
            if credentials:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            socket.send_fds(connection, [head + strings], descriptors)
        except OSError as error:
            connection.close()
            raise AgentLostError from error
        return connection
    finally:
        if payload is not None:
            os.close(payload)


async def ask(path: Path, request: Request, *, credentials: bool = False) -> Reply:
    """One question, one answer. Raises `AgentRefusedError` and `AgentLostError`."""
    connection = await send(path, request, credentials=credentials)
    try:
        reply = await receive(connection)
    finally:
        connection.close()
    if reply.kind == Reply.ERROR:
        raise AgentRefusedError(reply.error, reply.values[0])
    return reply


async def receive(connection: socket.socket) -> Reply:
    """Wait for an answer. `AgentLostError` when the other side is gone."""
    loop = asyncio.get_running_loop()
    got: asyncio.Future[Reply] = loop.create_future()

    def on_readable() -> None:
        if got.done():
            return
        try:
            got.set_result(take(connection))
        except BlockingIOError:
            return
        except AgentLostError as error:
            got.set_exception(error)

    number = connection.fileno()
    loop.add_reader(number, on_readable)
    try:
        return await got
    except asyncio.CancelledError:
        if got.done() and not got.cancelled() and got.exception() is None:
            for descriptor in got.result().descriptors:
                os.close(descriptor)
        raise
    finally:
        loop.remove_reader(number)


def take(connection: socket.socket) -> Reply:
    """What is there now; `BlockingIOError` when nothing is."""
    room = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(_CREDENTIALS.size)
    try:
        data, ancillary, _, _ = connection.recvmsg(_REPLY.size, room, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise
    except OSError as error:
        raise AgentLostError from error
    descriptors: list[int] = []
    pid = None
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors += struct.unpack(f"{len(content) // 4}i", content[: len(content) // 4 * 4])
        elif level == socket.SOL_SOCKET and kind == _SCM_CREDENTIALS:
            pid = _CREDENTIALS.unpack(content)[0]
    if len(data) != _REPLY.size:
        for descriptor in descriptors:
            os.close(descriptor)
        raise AgentLostError
    kind, error_number, *values = _REPLY.unpack(data)
    return Reply(kind, error_number, tuple(values), descriptors, pid)


def listen(path: Path) -> socket.socket:
    """A listening socket at a path of any length, to be handed to a sandbox that starts."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _short(path) as address:
            path.unlink(missing_ok=True)
            listener.bind(address)
        listener.listen(4096)
    except BaseException:
        listener.close()
        raise
    return listener


async def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                with _short(path) as address:
                    connection.connect(address)
            except BlockingIOError:
                await asyncio.sleep(0.001)  # its queue is full
            else:
                return connection
    except (ConnectionRefusedError, FileNotFoundError, NotADirectoryError, ConnectionResetError) as error:
        connection.close()
        raise AgentLostError from error
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def _short(path: Path) -> Iterator[bytes]:
    """The kernel takes 108 bytes of address; a longer one goes by its directory's descriptor."""
    text = os.fsencode(path)
    if len(text) <= _PATH_BYTES:
        yield text
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield b"/proc/self/fd/%d/%b" % (directory, os.fsencode(path.name))
    finally:
        os.close(directory)


async def _in_memory(data: bytes) -> int:
    try:
        if len(data) < 1_000_000:
            return sealed_copy("payload", data)
        return await asyncio.to_thread(sealed_copy, "payload", data)
    except OSError as error:
        raise SandboxFailedError(f"no memory to pass {len(data)} bytes on") from error
