"""The one place that starts git: a clean environment, a time limit, no prompt, and nothing left behind."""

import asyncio
import os
import re
import shutil
import signal
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path

import structlog

from fermata.kit.errors import (
    FermataError,
    NotFoundError,
    RepositoryError,
    TimedOutError,
    UnavailableError,
)

_log = structlog.get_logger(__name__)

CHUNK = 65536
_CONFIG = Path(__file__).with_name("server.gitconfig")
_STDERR_LIMIT = 16_384
#: A git that is asked to end removes its lock files; one that is killed leaves them.
_GRACE = 2.0
#: Of the server's own environment git gets only what decides how it reaches the network.
_NETWORK_VARIABLES = (
    "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO",
)  # fmt: skip

#: What git writes to stderr, and what a person is told. The first match counts.
_SENTENCES: tuple[tuple[re.Pattern[str], type[FermataError], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), error, sentence)
    for pattern, error, sentence in (
        (r"no space left|disk quota", RepositoryError, "The disk of the server is full."),
        (r"repository .* not found|returned error: 404|does not appear to be a git repo",
         NotFoundError, "The repository was not found."),
        (r"could not read (username|password)|authentication failed|returned error: 40[13]",
         RepositoryError, "The host refused access to the repository; check the token and its permissions."),
        (r"returned error: 429", RepositoryError, "The host's rate limit is used up; try again later."),
        (r"returned error: 5\d\d", RepositoryError, "The host of the repository failed; try again later."),
        (r"returned error: 30\d|redirect",
         RepositoryError, "The repository has moved; use its present owner and name."),
        (r"could not resolve|couldn't connect|failed to connect|connection (refused|reset)|timed out",
         RepositoryError, "The host of the repository cannot be reached."),
        (r"early eof|unexpected disconnect|hung up|transfer closed",
         RepositoryError, "The connection to the host of the repository was lost."),
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Credential:
    """An `Authorization` header for one host, handed to git in its environment: never an argument, never
    part of a URL, never on disk."""

    base_url: str
    header: str

    def environment(self) -> dict[str, str]:
        return {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.{self.base_url.rstrip('/')}/.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: {self.header}",
        }

    def __repr__(self) -> str:
        return f"Credential(base_url={self.base_url!r})"


@dataclass(frozen=True, slots=True)
class Completed:
    exit_code: int
    stdout: bytes
    stderr: str


@cache
def _program() -> str:
    found = shutil.which("git")
    if found is None:
        raise UnavailableError("git is not installed on the server.")
    return found


def _environment(protocols: str, extra: Mapping[str, str] | None) -> dict[str, str]:
    kept = {key: os.environ[key] for key in _NETWORK_VARIABLES if key in os.environ}
    return {
        **kept,
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": str(_CONFIG),
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "GIT_ALLOW_PROTOCOL": protocols,
        **(extra or {}),
    }


class Git:
    """One running git. Made by `start`, which also ends it."""

    def __init__(self, process: asyncio.subprocess.Process, verb: str, time_limit_for: timedelta) -> None:
        self._process = process
        self._verb = verb
        self._stderr: deque[bytes] = deque()
        self._drain = asyncio.ensure_future(self._read_stderr())
        self._feed: asyncio.Future[None] | None = None
        self._timed_out = False
        self._timer = asyncio.get_running_loop().call_later(time_limit_for.total_seconds(), self._expire)

    async def _read_stderr(self) -> None:
        """Keep the end of what git says: the last lines name the failure."""
        assert self._process.stderr is not None
        kept = 0
        while piece := await self._process.stderr.read(4096):
            self._stderr.append(piece)
            kept += len(piece)
            while kept > _STDERR_LIMIT and len(self._stderr) > 1:
                kept -= len(self._stderr.popleft())

    def feed(self, source: AsyncIterable[bytes]) -> None:
        """Copy `source` to git's input beside everything else. If the source fails, git is ended and
        the failure is raised by `read` or `wait`."""
        self._feed = asyncio.ensure_future(self._copy(source))

    async def _copy(self, source: AsyncIterable[bytes]) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            # Git may stop reading early; why is on its stderr and in its exit status.
            with suppress(BrokenPipeError, ConnectionResetError):
                async for piece in source:
                    stdin.write(piece)
                    await stdin.drain()
            stdin.close()
        except BaseException:
            self._ask_to_end()
            raise

    async def read(self) -> bytes:
        """The next piece of output, empty at its end. A slow reader slows git."""
        assert self._process.stdout is not None
        return await self._process.stdout.read(CHUNK)

    async def wait(self) -> tuple[int, str]:
        """Exit status and the end of stderr, once the output has been read. A failed input is raised."""
        await self._drain
        code = await self._process.wait()
        if self._timed_out:
            raise TimedOutError(f"git {self._verb} took too long and was ended.")
        if self._feed is not None:
            self._feed.cancel()
            await asyncio.wait([self._feed])
            if not self._feed.cancelled():
                self._feed.result()
        return code, b"".join(self._stderr).decode("utf-8", "replace")

    async def expect_success(self) -> None:
        code, stderr = await self.wait()
        if code != 0:
            raise failure(self._verb, code, stderr)

    def _ask_to_end(self) -> None:
        # Once git itself has been waited for, its number could belong to another process.
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _expire(self) -> None:
        """End the group because its time is up; `wait` says so."""
        self._timed_out = True
        self._ask_to_end()
        # A child may hold the output open after git itself has ended.
        self._timer = asyncio.get_running_loop().call_later(_GRACE, self._signal, signal.SIGKILL)

    async def _finish(self) -> None:
        assert self._process.stdout is not None
        # The pipe must be read to its end, or the process's transport stays open.
        while await self._process.stdout.read(CHUNK):
            pass
        await self._drain
        await self._process.wait()

    async def end(self) -> None:
        """End the whole process group, first politely; nothing of it is left when this returns."""
        if self._feed is not None and not self._feed.done():
            self._feed.cancel()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._timer.cancel()
        self._ask_to_end()
        try:
            async with asyncio.timeout(_GRACE):
                await self._finish()
        except (TimeoutError, asyncio.CancelledError) as error:
            # Somebody of the group still holds a pipe open, so its number is still the group's.
            self._signal(signal.SIGKILL)
            await self._finish()
            if isinstance(error, asyncio.CancelledError):
                raise
        if self._feed is not None:
            await asyncio.wait([self._feed])


@asynccontextmanager
async def start(
    *arguments: str,
    cwd: Path,
    time_limit_for: timedelta = timedelta(minutes=1),
    protocols: str = "file",
    environment: Mapping[str, str] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> AsyncIterator[Git]:
    """A git process in a group of its own. Leaving the block, also by cancellation, ends the group.

    `protocols` are the transports git may use, separated by colons; it inherits `pass_fds`.
    """
    process = await asyncio.create_subprocess_exec(
        _program(),
        *arguments,
        cwd=cwd,
        env=_environment(protocols, environment),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        pass_fds=pass_fds,
    )
    git = Git(process, next(word for word in arguments if not word.startswith("-")), time_limit_for)
    try:
        yield git
    finally:
        await git.end()


async def run(
    *arguments: str,
    cwd: Path,
    stdin: bytes = b"",
    time_limit_for: timedelta = timedelta(minutes=1),
    protocols: str = "file",
    environment: Mapping[str, str] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> Completed:
    """Run git to its end, whatever its exit status. For output that fits in memory."""
    async with start(
        *arguments,
        cwd=cwd,
        time_limit_for=time_limit_for,
        protocols=protocols,
        environment=environment,
        pass_fds=pass_fds,
    ) as git:
        pieces: list[bytes] = []
        git.feed(one_piece(stdin))
        while piece := await git.read():
            pieces.append(piece)
        code, stderr = await git.wait()
    return Completed(code, b"".join(pieces), stderr)


def failure(verb: str, exit_code: int, stderr: str) -> FermataError:
    """The error for a failed git: a sentence without paths. What git said goes to the log."""
    _log.warning("git failed", verb=verb, exit_code=exit_code, stderr=stderr[-2000:])
    for pattern, error, sentence in _SENTENCES:
        if pattern.search(stderr):
            return error(sentence)
    return RepositoryError(f"git {verb} failed (exit status {exit_code}).")


async def one_piece(data: bytes) -> AsyncGenerator[bytes, None]:
    """`data` as an input for `Git.feed` or a body."""
    if data:
        yield data
