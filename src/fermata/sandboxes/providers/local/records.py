"""What is kept of a sandbox on disk, and where. Every file appears by one rename.

<data_dir>/sandboxes/<name>/
    sandbox.json   the record
    disk/upper     what the sandbox wrote; disk/work belongs to overlayfs
    lock           held (flock) by the running machine itself, so that no process id has to be believed
    gate           held by whoever starts, stops or deletes it
    agent.sock     where the machine's first process listens
    processes      which processes of the host it is, and whose, for whoever has to end it
    detached/<id>  output and status of a command that nobody waits for
<data_dir>/staging/<random>/   a sandbox that is being made
<data_dir>/trash/<random>/     what is being deleted
<data_dir>/layers/<id>/        disks that became snapshots, never written again
<data_dir>/snapshots/<name>.json
"""

import contextlib
import json
import os
import secrets
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fermata.kit.errors import SandboxGoneError
from fermata.sandboxes.contract import Limits, NetworkPolicy, SandboxSpec


@dataclass(frozen=True, slots=True)
class Record:
    name: str
    #: Names the sandbox's control groups, and its directory while it is made; never used again.
    id: str
    created_at: datetime
    network: NetworkPolicy
    limits: Limits
    environment: dict[str, str]
    labels: dict[str, str]
    base: str
    #: Frozen disks below `upper`, the youngest first.
    layers: tuple[str, ...] = ()
    #: The layer that `upper` is about to become: written before the move, taken back after it.
    freezing: str | None = None

    def dump(self) -> bytes:
        values = asdict(self)
        values["created_at"] = self.created_at.isoformat()
        return json.dumps(values, indent=1).encode()


def load_record(data: bytes) -> Record:
    values: dict[str, Any] = json.loads(data)
    values["created_at"] = datetime.fromisoformat(values["created_at"])
    values["network"] = NetworkPolicy(values["network"])
    values["limits"] = Limits(**values["limits"])
    values["layers"] = tuple(values["layers"])
    return Record(**values)


def write_file(path: Path, data: bytes) -> None:
    """Replace a file's content so that it is the old or the new, also after the machine loses power."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Home:
    """One sandbox's directory."""

    path: Path
    disk: Path = field(init=False)
    upper: Path = field(init=False)
    lock: Path = field(init=False)
    gate: Path = field(init=False)
    socket: Path = field(init=False)
    processes: Path = field(init=False)
    detached: Path = field(init=False)
    record: Path = field(init=False)

    def __post_init__(self) -> None:
        for name, file in (
            ("disk", "disk"),
            ("upper", "disk/upper"),
            ("lock", "lock"),
            ("gate", "gate"),
            ("socket", "agent.sock"),
            ("processes", "processes"),
            ("detached", "detached"),
            ("record", "sandbox.json"),
        ):
            object.__setattr__(self, name, self.path / file)

    def read(self) -> Record:
        try:
            return load_record(self.record.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise SandboxGoneError(f"there is no sandbox {self.path.name!r}") from None

    def write(self, record: Record) -> None:
        write_file(self.record, record.dump())


class Layout:
    """The data directory. Closed to everybody but the user that the server runs as."""

    def __init__(self, data_dir: Path) -> None:
        self.root = data_dir
        self.sandboxes = data_dir / "sandboxes"
        self.staging = data_dir / "staging"
        self.trash = data_dir / "trash"
        self.layers = data_dir / "layers"
        self.snapshots = data_dir / "snapshots"

    def make(self) -> None:
        for path in (self.sandboxes, self.staging, self.trash, self.layers, self.snapshots):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.chmod(0o700)

    def home(self, name: str) -> Home:
        return Home(self.sandboxes / name)

    def names(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.sandboxes) if entry.is_dir())

    def discard(self, path: Path) -> Path | None:
        """Move to the trash, in one step; None when it is not there. What is in the trash does not exist."""
        target = self.trash / secrets.token_hex(12)
        with contextlib.suppress(FileNotFoundError):
            path.rename(target)
            return target
        return None

    def new_staging(self) -> Home:
        home = Home(self.staging / secrets.token_hex(8))
        home.path.mkdir(mode=0o700)
        return home


def new_record(home: Home, spec: SandboxSpec, base: str, layers: tuple[str, ...]) -> Record:
    return Record(
        name=spec.name,
        id=home.path.name,
        created_at=datetime.now(UTC),
        network=spec.network,
        limits=spec.limits,
        environment=dict(spec.environment),
        labels=dict(spec.labels),
        base=base,
        layers=layers,
    )


def make_disk(home: Home, record: Record, first_id: int | None, etc: dict[str, str]) -> None:
    """An empty disk with the sandbox's own names in /etc. Only ever called on a directory of our own making:
    below a used `upper`, a path may lead anywhere."""
    places = (home.disk, home.upper, home.disk / "work", home.upper / "etc")
    for place in places:
        place.mkdir(mode=0o755 if place.name == "etc" else 0o700)
    home.upper.chmod(0o755)
    home.detached.mkdir(mode=0o700)
    files = []
    for name, text in etc.items():
        path = home.upper / "etc" / name
        path.write_text(text)
        files.append(path)
    if first_id is not None:
        for path in (*places, *files):
            os.chown(path, first_id, first_id)


def frozen(record: Record, layer: str) -> Record:
    return replace(record, layers=(layer, *record.layers), freezing=None)
