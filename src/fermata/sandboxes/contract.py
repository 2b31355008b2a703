"""What a sandbox provider must do. The docstrings are the specification; the kit in
`fermata.testing.provider_kit` checks them against every provider that can run here.

Rules that hold for every method:

- *Names.* A sandbox is known by its name, unique within the provider: letters, digits, `_ . -`, 1 to 128
  characters, the first a letter or digit, chosen by the caller. Under any other name nothing can be made
  (`InvalidRequestError`) and nothing exists. A name is never reused for other content while the old disk
  exists.
- *Durability.* What a method created or kept before it returned survives `kill -9` of this process: a
  sandbox that was running is then *stopped*, with its disk as the last completed write left it.
- *Idempotence.* `stop`, `resume`, `destroy` may be called twice, or by two processes at once, and have
  the effect of one call. `create` of an existing name raises `SandboxExistsError` and changes nothing.
- *Cancellation.* A cancelled `create` or `resume` leaves nothing running that `list_sandboxes` would not
  show. A cancelled `exec` ends the command and all that it started.
- *Errors.* Only errors of `fermata.kit.errors` leave a provider, mapped at its door: `InvalidRequestError`
  for what the caller may not ask at all (a name or label against its rule, a command without a program, a
  NUL byte in an argument or the environment), `SandboxGoneError`, `SandboxStoppedError`,
  `SandboxExistsError`, `SandboxPathError`, `SandboxUnsupportedError`, `SandboxFailedError`. Messages never
  name a path of the host.
- *Paths* inside a sandbox are POSIX paths; a relative one starts at the working directory. They are
  resolved inside the sandbox, never by the host, so no link, `..` or race leads out. Bytes that are not
  UTF-8 travel as surrogate escapes.
"""

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a provider can do beyond the contract's core. Code asks these, never a provider's name."""

    #: Output of a detached command and its exit status survive the end of this process.
    keeps_detached_output: bool = False
    #: `snapshot` works and new sandboxes can start from what it made.
    snapshots: bool = False
    #: `network=open` works: there is a way out, through a proxy.
    network: bool = False
    #: Processor, memory and process limits are enforced by the kernel, not only by rlimits.
    hard_limits: bool = False
    #: The code inside cannot reach this machine: files, processes, network. False only for test doubles.
    isolated: bool = True


class NetworkPolicy(StrEnum):
    NONE = "none"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings of one sandbox. None leaves the provider's own default in force."""

    cpus: float | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    #: Largest single file that can be written.
    file_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    name: str
    network: NetworkPolicy = NetworkPolicy.OPEN
    limits: Limits = field(default_factory=Limits)
    #: Environment of every command; merged under what a single command is given. Never a secret.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Snapshot to start from, as named in `snapshot`; None is the default base.
    base: str | None = None
    #: Free labels, returned by `list_sandboxes`; at most 16, each key and value at most 200 characters.
    labels: Mapping[str, str] = field(default_factory=dict)


class SandboxStatus(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    name: str
    status: SandboxStatus
    created_at: datetime
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    name: str
    created_at: datetime


class OutputStream(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of a command's output in the order it was read. A piece may end inside a character."""

    stream: OutputStream
    data: bytes


@dataclass(frozen=True, slots=True)
class ExecResult:
    #: 0 to 255; 128 + n when signal n ended the command; None when the time limit ended it.
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    #: True when output was left out: each stream keeps its first and last half of `output_limit`,
    #: with one line between that says how many bytes are missing.
    truncated: bool = False
    timed_out: bool = False


class Process(Protocol):
    """A running command whose output is read while it runs."""

    def output(self) -> AsyncIterator[Output]:
        """Pieces until both streams are closed or the command has ended. A slow reader slows the command."""
        ...

    async def wait(self) -> int | None:
        """The exit status as in `ExecResult.exit_code`. Output that nobody read is dropped."""
        ...

    async def kill(self) -> None:
        """End the command and everything it started, at once. Twice is once."""
        ...


class FileKind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class FileStat:
    kind: FileKind
    size: int
    modified_at: datetime
    #: Permission bits, 0 to 0o7777.
    mode: int


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    name: str
    kind: FileKind


class DetachedStatus(StrEnum):
    RUNNING = "running"
    EXITED = "exited"
    #: The sandbox stopped or its provider died before the command's end was seen.
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class DetachedCommand:
    id: str
    status: DetachedStatus
    exit_code: int | None
    #: stdout and stderr together in the order written, the last 64 KiB.
    output: bytes


class Sandbox(Protocol):
    """A handle on one running sandbox. Cheap to get, safe to share between tasks, needs no closing.

    Every method raises `SandboxStoppedError` once the sandbox is stopped and `SandboxGoneError` once it is
    destroyed, also when that happens in the middle of the call.
    """

    @property
    def name(self) -> str: ...

    @property
    def working_directory(self) -> str:
        """Absolute path inside, where the git workspace lives and relative paths start. Exists."""
        ...

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
        """Run `command` (an argv, no shell) to its end and return what it wrote.

        At the time limit the command and everything it started are killed; what it had written is
        returned with `timed_out`. A background child that keeps the output open does not delay the
        return by more than 0.25 s after the command itself has ended, and lives on until the sandbox
        stops. A program that does not exist is exit status 127, one that cannot be run 126,
        with a line on stderr. `output_limit` bounds each stream in bytes. Raises `SandboxPathError` when
        `cwd` is not a directory.
        """
        ...

    def start(
        self,
        command: Sequence[str],
        *,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: bytes | AsyncIterable[bytes] = b"",
        time_limit_for: timedelta = timedelta(seconds=120),
    ) -> AbstractAsyncContextManager[Process]:
        """As `exec`, with the output streamed. Leaving the block ends the command and all that it started."""
        ...

    async def start_detached(
        self,
        command: Sequence[str],
        *,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Start a command that goes on after this call, and return its id.

        It lives until it ends, is killed, or the sandbox stops.
        """
        ...

    async def get_detached(self, command_id: str) -> DetachedCommand:
        """State and output of a detached command. `SandboxPathError` when no command has this id."""
        ...

    async def kill_detached(self, command_id: str) -> None:
        """End a detached command and all that it started. Twice, or after its end, is no error."""
        ...

    async def read_file(self, path: str, *, offset: int = 0, limit: int = 10_000_000) -> bytes:
        """At most `limit` bytes of a regular file from `offset`. Anything else is `SandboxPathError`."""
        ...

    async def write_file(self, path: str, data: bytes, *, mode: int | None = None) -> None:
        """Replace a regular file's content atomically: a reader sees the old content or the new.

        Missing parents are made. Mode and owner of an existing file are kept unless `mode` is given;
        a new one gets 0644. A symbolic link is followed, its target replaced.
        """
        ...

    async def stat(self, path: str, *, follow_symlinks: bool = True) -> FileStat:
        """`SandboxPathError` when nothing is there."""
        ...

    async def list_directory(self, path: str, *, limit: int = 10_000) -> list[DirectoryEntry]:
        """Entries in the order of their names, without `.` and `..`, at most the first `limit`.

        `SandboxPathError` if it is not a directory."""
        ...


@dataclass(frozen=True, slots=True)
class ProviderReport:
    """What a provider found when it looked at its machine, by doing rather than by reading settings."""

    usable: bool
    #: One line for the start-up text and /healthz: how it isolates, what limits hold, which base.
    summary: str
    #: What is missing, each with the exact command or step that would repair it.
    missing: tuple[str, ...] = ()


class SandboxProvider(Protocol):
    @property
    def name(self) -> str:
        """The word for this provider in settings and on the wire, such as `local`."""
        ...

    @property
    def abilities(self) -> Abilities: ...

    async def open(self) -> ProviderReport:
        """Make ready: start helpers, end what a dead process of this installation left behind (processes,
        mounts, cgroups; never a disk). Called once before any other method. Never raises for what
        the machine lacks: then the report is not usable and `create` and `resume` raise
        `SandboxUnsupportedError` with the same words."""
        ...

    async def close(self) -> None:
        """Stop every sandbox that this process started, keeping the disks, and end the helpers."""
        ...

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """A new sandbox, ready for commands: from the default base with an empty working directory, or from
        the snapshot `spec.base` with everything it held (`SandboxGoneError` when there is none)."""
        ...

    async def connect(self, name: str) -> Sandbox:
        """A handle on a running sandbox. `SandboxStoppedError` or `SandboxGoneError` otherwise.

        Answers from the provider's own knowledge in well under a millisecond where it can; that the machine
        inside answers is only proved by running a command."""
        ...

    async def resume(self, name: str) -> Sandbox:
        """Bring a stopped sandbox back with its disk as it was. A running one is returned as it is."""
        ...

    async def stop(self, name: str) -> None:
        """End everything in it, write its disk out and keep it. `SandboxGoneError` when unknown."""
        ...

    async def destroy(self, name: str) -> None:
        """End everything in it and delete its disk. Unknown is no error."""
        ...

    async def describe(self, name: str) -> SandboxInfo:
        """`SandboxGoneError` when unknown."""
        ...

    async def list_sandboxes(self) -> list[SandboxInfo]:
        """All of this installation, whatever process made them."""
        ...

    async def snapshot(self, name: str, snapshot: str) -> SnapshotInfo:
        """Keep the disk of the *stopped* sandbox `name` as the immutable snapshot `snapshot`.

        Takes constant time. The sandbox stays stopped and can be resumed; later writes do not change the
        snapshot, nor does destroying the sandbox. Names follow the rule for sandboxes. An existing name
        raises `SandboxExistsError`, a running sandbox `SandboxFailedError`."""
        ...

    async def list_snapshots(self) -> list[SnapshotInfo]: ...

    async def delete_snapshot(self, snapshot: str) -> None:
        """Forget a snapshot. Disks that were started from it stay whole. Unknown is no error."""
        ...
