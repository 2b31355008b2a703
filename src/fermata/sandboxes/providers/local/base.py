"""The base file system: the lowest layer of every sandbox, shared by all and never written.

Three kinds: *custom*, which the operator named; *debian*, built once in the background; *host*, the
machine's own programs, used until there is a better one. A base is immutable and known by its id: a sandbox
keeps the one it was made with, also when later sandboxes get another.

    <data_dir>/bases/<id>/base.json   name, binds, and a mark of what it was made from
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

import structlog

from fermata.kit.errors import SandboxGoneError, SandboxUnsupportedError
from fermata.sandboxes.providers.local import base_debian
from fermata.sandboxes.providers.local.base_host import LAYOUT, build_host_root
from fermata.sandboxes.providers.local.base_image import Tree, copy_into, identify
from fermata.sandboxes.providers.local.base_tree import content_mark, furnish, make_inert
from fermata.sandboxes.providers.local.ids import first_id as own_first_id

_log = structlog.get_logger(__name__)
_ID = re.compile(r"(host|debian|custom)-[0-9a-f]{16}")
#: How often it is looked whether another process has finished building, in seconds.
_LOOK_EVERY = 2.0

_HOST = "host programs, read-only"


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

    `setting` names a root file system to copy; `builds` lets the default one be built, which takes minutes
    and the network. `first_id` is the host's user and group id that is root inside, when the server runs as
    root and maps a range; None when root inside is whoever runs the server, who then owns every file of a
    base. Left out, it is what sandboxes of this process have.
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
        """The base for new sandboxes from now on; starts the build of a better one where that is wanted.

        Copying a base that the operator named is waited for: no sandbox gets another one. `SettingsError`
        when it cannot be used.
        """
        self._bases = await asyncio.to_thread(_make_home, data_dir)
        if self._setting is not None:
            self._current = await asyncio.to_thread(self._open_custom, Path(self._setting))
            self._status = "the root file system named in FERMATA_SANDBOX_BASE"
            return self._current
        debian = self._find("debian", self._debian_mark()) if self._builds else None
        self._use(debian if debian is not None else await asyncio.to_thread(self._open_host))
        if debian is None and self._builds:
            missing = base_debian.missing_tool()
            if missing is None:
                self._status = f"{_HOST}; a Debian base is being built"
                self._build = self._build or asyncio.create_task(self._build_debian())
            else:
                self._status = f"{_HOST}; no Debian base, because {missing}"
        return self.current()

    def current(self) -> Base:
        """The base that a new sandbox gets now. It may be another one than a moment ago."""
        if self._current is None:
            raise RuntimeError("BaseStore.open has not been called")
        return self._current

    async def get(self, base_id: str) -> Base:
        """A base by its id. `SandboxGoneError` when it is missing: its sandboxes cannot be brought back."""
        base = self._read(base_id) if _ID.fullmatch(base_id) else None
        if base is None:
            raise SandboxGoneError(
                f"the base file system {base_id[:64]!r} that this sandbox was made with is missing"
            )
        return base

    def status(self) -> str:
        """A line without a path: which base new sandboxes get, and why not a better one."""
        return self._status

    async def settle(self) -> None:
        """Wait until no build is under way, whatever came of it."""
        if self._build is not None:
            await asyncio.wait([self._build])

    async def close(self) -> None:
        """End a build that is under way. Bases stay."""
        if self._build is not None:
            self._build.cancel()
            await asyncio.wait([self._build])
            self._build = None

    def _use(self, base: Base) -> None:
        self._current = base
        self._status = _HOST if base.name == "host" else "Debian, built on this machine"

    def _open_host(self) -> Base:
        with self._locked("host"), self._working("host") as work:
            (work / "root").mkdir()
            binds = build_host_root(work / "root", work / "empty")
            mark = content_mark(work / "root", repr((binds, LAYOUT, self._first_id)))
            return self._find("host", mark) or self._keep(work, "host", mark, binds)

    def _open_custom(self, source: Path) -> Base:
        mark = f"{identify(source)} {LAYOUT} {self._first_id}"
        found = self._find("custom", mark)
        if found is not None:
            return found
        with self._locked("custom"), self._working("custom") as work:
            (work / "root").mkdir()
            tree = Tree(work / "root", owners=self._first_id is not None)
            copy_into(tree, source)
            furnish(tree)
            return self._find("custom", mark) or self._keep(work, "custom", mark)

    async def _build_debian(self) -> None:
        """Build the default base, or wait for the process that builds it, and use it from then on."""
        try:
            while (base := self._find("debian", self._debian_mark())) is None:
                with self._locked("debian", wait=False) as lock:
                    if lock is not None:
                        with self._working("debian") as work:
                            _log.info("base_build_started")
                            await base_debian.build(work, lock)
                            await asyncio.to_thread(self._finish_debian, work)
                        continue
                await asyncio.sleep(_LOOK_EVERY)
        except (SandboxUnsupportedError, TimeoutError) as error:
            self._status = f"{_HOST}; no Debian base, because {str(error) or 'building it took too long'}"
        except Exception:  # noqa: BLE001 - a task of its own has nobody to raise to.
            _log.exception("base_build_failed")
            self._status = f"{_HOST}; no Debian base, because building it failed"
        else:
            self._use(base)

    def _finish_debian(self, work: Path) -> None:
        furnish(Tree(work / "root", owners=self._first_id is not None))
        self._keep(work, "debian", self._debian_mark())

    def _debian_mark(self) -> str:
        packages = hashlib.sha256(repr(base_debian.PACKAGES).encode()).hexdigest()
        return f"{base_debian.suite()} {packages} {LAYOUT} {self._first_id}"

    def _home(self) -> Path:
        if self._bases is None:
            raise RuntimeError("BaseStore.open has not been called")
        return self._bases

    def _read(self, base_id: str) -> Base | None:
        home = self._home() / base_id
        try:
            kept = json.loads((home / "base.json").read_bytes())
        except FileNotFoundError:
            return None
        binds = tuple((os.path.join(home, outside), inside) for outside, inside in kept["binds"])
        return Base(name=kept["name"], id=base_id, root=home / "root", binds=binds)

    def _find(self, name: str, mark: str) -> Base | None:
        for record in sorted(self._home().glob(f"{name}-*/base.json")):
            if json.loads(record.read_bytes())["mark"] == mark:
                return self._read(record.parent.name)
        return None

    @contextlib.contextmanager
    def _locked(self, kind: str, *, wait: bool = True) -> Iterator[int | None]:
        """Hold the lock for making one kind of base. None when it is taken and not waited for; else its
        descriptor: a child that inherits it holds the lock too, though this process may be killed."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._home() / f".{kind}.lock", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _working(self, kind: str) -> Iterator[Path]:
        """A directory to make a base in, which is gone afterwards unless it was kept. Under the lock."""
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

    def _keep(self, work: Path, name: str, mark: str, binds: tuple[tuple[str, str], ...] = ()) -> Base:
        """Give what lies in `work` its owners and an id, and let it appear under that id."""
        (work / "root").chmod(0o755)
        make_inert(work / "root", self._first_id)
        record = {"name": name, "mark": mark, "binds": binds}
        (work / "base.json").write_text(json.dumps(record))
        os.sync()
        base_id = f"{name}-{secrets.token_hex(8)}"
        work.rename(self._home() / base_id)
        _log.info("base_made", base=base_id)
        base = self._read(base_id)
        assert base is not None
        return base


def _make_home(data_dir: Path) -> Path:
    home = data_dir.absolute() / "bases"
    home.mkdir(parents=True, exist_ok=True)
    # Root inside is another user out here: it may pass through to its layer, and list nothing.
    home.chmod(0o711)
    return home
