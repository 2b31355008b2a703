"""Control groups: what a sandbox may use of processor, memory and processes, and the sure way to kill.

Version 1, version 2 and the mixture of both exist in the wild. Controllers are taken wherever they are; a
version 2 tree, with or without controllers, also gives `cgroup.kill`. All groups lie below the group that
this process is in, so that limits set on the server hold for its sandboxes as well.
"""

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from fermata.sandboxes.contract import Limits

_log = structlog.get_logger(__name__)
_CONTROLLERS = ("cpu", "memory", "pids")
#: Where this process itself moves, because a group with controllers may hold groups or processes, not both.
_SERVER = "fermata-server"
_PERIOD_MICROSECONDS = 100_000


@dataclass(frozen=True, slots=True)
class _Tree:
    """One mounted hierarchy, and the group in it that holds the sandboxes of this installation."""

    version: int
    top: Path
    controllers: frozenset[str]

    @property
    def can_kill(self) -> bool:
        return self.version == 2

    def make(self) -> None:
        """The group that holds the others. Whoever closes last removes it, so it is made again if need be."""
        self.top.mkdir(exist_ok=True)
        if self.version == 2:
            _enable(self.top, self.controllers)


@dataclass(slots=True)
class Group:
    """The groups of one sandbox, one in each hierarchy."""

    paths: tuple[Path, ...]
    #: Where commands get a group of their own, so that one write kills all of one.
    commands: Path | None
    owner: int | None
    _next: int = 0
    #: Groups of commands that left something running.
    _left: list[Path] = field(default_factory=list)

    def move_in(self, pid: int) -> None:
        """Move a process. The first move after a while waits for every processor of the machine: 10 ms."""
        for path in self.paths:
            (path / "cgroup.procs").write_text(str(pid))

    def new_command(self) -> "CommandGroup | None":
        if self.commands is None:
            return None
        while True:
            self._next += 1
            path = self.commands / f"command-{os.getpid()}-{self._next}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            self.admit(path)
            return CommandGroup(path, self)

    def admit(self, path: Path) -> None:
        """Let the first process, which is `owner` on the host, start processes in the group. The group's
        files are not to be seen inside, so nobody else can."""
        if self.owner is not None:
            os.chown(path / "cgroup.procs", self.owner, -1)

    def leave(self, path: Path) -> None:
        """Remove an emptied group; what is not empty yet is tried again with the next one."""
        still = [left for left in (*self._left, path) if not _removed(left)]
        self._left = still


@dataclass(frozen=True, slots=True)
class CommandGroup:
    path: Path
    group: Group

    def open(self) -> int:
        """A descriptor that stands for the group, to start a process in. The caller closes it."""
        return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def kill(self) -> None:
        """Everything in it, at once."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / "cgroup.kill").write_text("1")

    def leave(self) -> None:
        self.group.leave(self.path)


class ControlGroups:
    """The groups of one installation. Empty where this process may not make any."""

    def __init__(self, trees: tuple[_Tree, ...], owner: int | None) -> None:
        self._trees = trees
        self._owner = owner

    @property
    def enforced(self) -> frozenset[str]:
        """What the kernel limits: of `cpu`, `memory`, `pids`."""
        return frozenset().union(*(tree.controllers for tree in self._trees)) & set(_CONTROLLERS)

    @property
    def can_kill(self) -> bool:
        return any(tree.can_kill for tree in self._trees)

    def create(self, sandbox_id: str, limits: Limits) -> Group:
        """Make the groups of a sandbox and set its limits."""
        paths = []
        for tree in self._trees:
            path = tree.top / sandbox_id
            while not path.exists():
                tree.make()
                with contextlib.suppress(FileNotFoundError, FileExistsError):
                    path.mkdir()
            for name, value in _settings(tree, limits):
                _set(path / name, value)
            paths.append(path)
        group = self._group(tuple(paths))
        if group.commands is not None:
            group.admit(group.commands)
        return group

    def find(self, sandbox_id: str) -> Group:
        """The groups of a sandbox that another process may have started."""
        return self._group(tuple(tree.top / sandbox_id for tree in self._trees))

    def _group(self, paths: tuple[Path, ...]) -> Group:
        killing = [path for path, tree in zip(paths, self._trees, strict=True) if tree.can_kill]
        return Group(paths, killing[0] if killing and killing[0].exists() else None, self._owner)

    def ids(self) -> set[str]:
        found: set[str] = set()
        for tree in self._trees:
            with contextlib.suppress(FileNotFoundError):
                found.update(entry.name for entry in os.scandir(tree.top) if entry.is_dir())
        return found

    def close(self) -> None:
        """Remove what holds the groups, if there are none of another server."""
        for tree in self._trees:
            _removed(tree.top)

    async def remove(self, sandbox_id: str) -> None:
        """Remove the groups of a sandbox that has ended; what is left in them is killed."""
        for tree in self._trees:
            path = tree.top / sandbox_id
            for pause in (0.0, 0.001, 0.004, 0.02, 0.1, 0.5):
                if pause:
                    if tree.can_kill:
                        with contextlib.suppress(OSError):
                            (path / "cgroup.kill").write_text("1")
                    await asyncio.sleep(pause)
                if _removed_tree(path):
                    break
            else:
                _log.warning("control_group_left", sandbox_id=sandbox_id)


def _settings(tree: _Tree, limits: Limits) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if limits.processes is not None and "pids" in tree.controllers:
        found.append(("pids.max", str(limits.processes)))
    if limits.memory_bytes is not None and "memory" in tree.controllers:
        amount = str(limits.memory_bytes)
        if tree.version == 2:
            found += [("memory.max", amount), ("memory.swap.max", "0")]
        else:
            found += [("memory.limit_in_bytes", amount), ("memory.memsw.limit_in_bytes", amount)]
    if limits.cpus is not None and "cpu" in tree.controllers:
        quota = max(1000, int(limits.cpus * _PERIOD_MICROSECONDS))
        if tree.version == 2:
            found.append(("cpu.max", f"{quota} {_PERIOD_MICROSECONDS}"))
        else:
            found.append(("cpu.cfs_quota_us", str(quota)))
    return found


def _set(path: Path, value: str) -> None:
    try:
        path.write_text(value)
    except FileNotFoundError:
        if "sw" not in path.name:  # a kernel that counts no swap has no limit for it
            raise


def _removed(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _removed_tree(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(path):
            if entry.is_dir(follow_symlinks=False):
                _removed_tree(Path(entry.path))
    return _removed(path)


def find_control_groups(name: str, owner: int | None) -> ControlGroups:
    """Try what this process may do; keep what worked.

    `name` is of the group that holds all others; nobody else may use it: what is found in it and belongs
    to no sandbox is removed. `owner` is the host's id of root inside.
    """
    own = _own_groups()
    trees = []
    for mount, root, version, controllers in _mounts():
        key = "" if version == 2 else next((name for name in controllers if name in own), None)
        if key is None or (version == 1 and not set(controllers) & set(_CONTROLLERS)):
            continue
        inside = os.path.relpath(own.get(key, "/"), root)
        here = mount if inside.startswith("..") else mount / inside
        tree = _try_tree(here, version, controllers, name)
        if tree is not None:
            trees.append(tree)
    return ControlGroups(tuple(trees), owner)


def _try_tree(here: Path, version: int, controllers: frozenset[str], name: str) -> _Tree | None:
    try:
        if version == 2:
            if here.name == _SERVER:
                here = here.parent
            try:
                controllers = _delegate(here)
            except OSError:
                controllers = frozenset()  # it still can kill
        tree = _Tree(version, here / name, controllers)
        tree.make()
        probe = tree.top / f"probe-{os.getpid()}"
        probe.mkdir(exist_ok=True)
        with (probe / "cgroup.procs").open("w"):
            pass
        probe.rmdir()
    except OSError:
        return None
    return tree


def _delegate(here: Path) -> frozenset[str]:
    """Make our own group's controllers usable for groups below it."""
    wanted = frozenset((here / "cgroup.controllers").read_text().split()) & set(_CONTROLLERS)
    if not wanted:
        return wanted
    try:
        _enable(here, wanted)
    except OSError:
        server = here / _SERVER
        server.mkdir(exist_ok=True)
        for pid in (here / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (server / "cgroup.procs").write_text(pid)
        _enable(here, wanted)
    return wanted


def _enable(path: Path, controllers: frozenset[str]) -> None:
    if controllers:
        (path / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(controllers)))


def _own_groups() -> dict[str, str]:
    """Controller to this process's group; the empty name is version 2."""
    found = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            found[name] = path
    return found


def _mounts() -> list[tuple[Path, str, int, frozenset[str]]]:
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words, _, rest = line.partition(" - ")
        fields, kind = words.split(), rest.split()
        if kind[0] == "cgroup2":
            found.append((Path(fields[4]), fields[3], 2, frozenset[str]()))
        elif kind[0] == "cgroup":
            found.append((Path(fields[4]), fields[3], 1, frozenset(kind[2].split(","))))
    return found
