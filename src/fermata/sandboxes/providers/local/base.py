"""The base file system: the lowest layer of every sandbox, shared by all and never written.

Three kinds: *custom*, which the operator named; *debian*, built once in the background; *host*, the
machine's own programs, used until there is a better one. A base is immutable and known by its id: a sandbox
keeps the one it was made with, also when later sandboxes get another.

    <data_dir>/bases/<id>/base.json   name, id, binds; its presence makes the base valid
    <data_dir>/bases/<id>/root/       the layer
    <data_dir>/bases/.<kind>-*        being made; what a dead process left is removed under the kind's lock

A base appears by one rename, so a process that dies while it makes one leaves nothing that looks whole.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

import structlog

from fermata.kit.errors import SandboxGoneError
from fermata.sandboxes.providers.local.base_host import LAYOUT, build_host_root
from fermata.sandboxes.providers.local.ids import first_id as own_first_id

_log = structlog.get_logger(__name__)
_ID = re.compile(r"[a-z]{1,16}-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Base:
    #: `host`, `debian` or `custom`.
    name: str
    #: Never reused for other content.
    id: str
    #: The lowest overlay layer. Holds the mount points: /proc /dev /tmp /run /sys /workspace /root.
    root: Path
    #: Read-only binds over it, (host path, path inside), to be made in this order.
    binds: tuple[tuple[str, str], ...] = ()


class BaseStore:
    """Makes and finds bases below one data directory. One per process; processes may share the directory.

    `first_id` is the host's user and group id that is root inside, when the server runs as root and maps
    a range; None when root inside is whoever runs the server, who then owns every file of a base. Left
    out, it is what sandboxes of this process have.
    """

    def __init__(
        self,
        *,
        setting: str | None = None,
        builds: bool = True,
        first_id: int | EllipsisType | None = ...,
    ) -> None:
        self._setting = setting
        self._builds = builds
        self._first_id = own_first_id() if isinstance(first_id, EllipsisType) else first_id
        self._bases: Path | None = None
        self._current: Base | None = None
        self._status = "no base file system yet"
        self._build: asyncio.Task[None] | None = None

    async def open(self, data_dir: Path) -> Base:
        """The base for new sandboxes from now on; starts the build of a better one where that is wanted."""
        self._bases = data_dir / "bases"
        self._bases.mkdir(parents=True, exist_ok=True)
        self._bases.chmod(0o711)
        self._current = await asyncio.to_thread(self._open_host)
        self._status = "programs of this machine, read-only"
        return self._current

    def current(self) -> Base:
        """The base that a new sandbox gets now. It may be another one than a moment ago."""
        if self._current is None:
            raise RuntimeError("BaseStore.open has not been called")
        return self._current

    async def get(self, base_id: str) -> Base:
        """A base by its id. `SandboxGoneError` when it is missing: its sandboxes cannot be brought back."""
        return await asyncio.to_thread(self._read, base_id)

    def status(self) -> str:
        """One sentence without a path: which base new sandboxes get, and why not a better one."""
        return self._status

    async def close(self) -> None:
        """End a build that is under way. Bases stay."""
        if self._build is not None:
            self._build.cancel()
            await asyncio.gather(self._build, return_exceptions=True)
            self._build = None

    def _open_host(self) -> Base:
        with self._making("host") as work:
            root = work / "root"
            root.mkdir()
            return self._keep(work, "host", build_host_root(root, work / "empty"))

    def _read(self, base_id: str) -> Base:
        home = self._home() / base_id
        if not _ID.fullmatch(base_id) or not (home / "base.json").exists():
            raise SandboxGoneError(
                f"the base file system {base_id[:64]!r} that this sandbox was made with is missing"
            )
        kept = json.loads((home / "base.json").read_bytes())
        binds = tuple((os.path.join(home, outside), inside) for outside, inside in kept["binds"])
        return Base(name=kept["name"], id=base_id, root=home / "root", binds=binds)

    def _home(self) -> Path:
        if self._bases is None:
            raise RuntimeError("BaseStore.open has not been called")
        return self._bases

    @contextlib.contextmanager
    def _making(self, kind: str) -> Iterator[Path]:
        """A directory to make a base in, while no other process makes one of this kind."""
        with _locked(self._home() / f".{kind}.lock"):
            for left in self._home().glob(f".{kind}-*"):
                shutil.rmtree(left)
            work = self._home() / f".{kind}-{secrets.token_hex(8)}"
            work.mkdir()
            work.chmod(0o755)
            try:
                yield work
            finally:
                if work.exists():
                    shutil.rmtree(work)

    def _keep(
        self, work: Path, name: str, binds: tuple[tuple[str, str], ...] = (), *, mark: str = ""
    ) -> Base:
        """Give what lies in `work` its owner and its id, and let it appear under that id."""
        shift_owners(work / "root", self._first_id)
        parts = (str(self._first_id), str(LAYOUT), repr(binds), mark or content_mark(work / "root"))
        base_id = f"{name}-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]}"
        if not (self._home() / base_id).exists():
            (work / "base.json").write_text(json.dumps({"name": name, "binds": binds}))
            os.sync()
            work.rename(self._home() / base_id)
            _log.info("base_made", base=base_id)
        return self._read(base_id)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def shift_owners(root: Path, first_id: int | None) -> None:
    """Turn ids as they are inside into ids of the host, and take setuid and setgid from files."""
    for path in walk(root):
        found = os.lstat(path)
        if first_id is not None:
            os.lchown(path, first_id + found.st_uid, first_id + found.st_gid)
        if stat.S_ISREG(found.st_mode) and found.st_mode & 0o6000:
            os.chmod(path, found.st_mode & 0o1777)


def content_mark(root: Path) -> str:
    """A hash of names, kinds, modes, link targets and contents below `root`."""
    digest = hashlib.sha256()
    for path in walk(root):
        found = os.lstat(path)
        digest.update(b"%s\0%o\0" % (os.fsencode(os.path.relpath(path, root)), found.st_mode))
        if stat.S_ISLNK(found.st_mode):
            digest.update(os.fsencode(os.readlink(path)))
        elif stat.S_ISREG(found.st_mode):
            digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return digest.hexdigest()


def walk(root: Path) -> Iterator[str]:
    """Every path below and including `root`, in a fixed order, following no link."""
    yield str(root)
    for place, directories, files in os.walk(root):
        directories.sort()
        yield from (os.path.join(place, name) for name in sorted([*directories, *files]))
