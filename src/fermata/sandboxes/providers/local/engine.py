"""What has to be found, built or tried on this machine before a sandbox can run, and the words for what is
not there. Probing is doing: the proof is a sandbox that ran a command behind all its walls."""

import asyncio
import hashlib
import os
import re
import resource
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from fermata.kit.errors import SandboxUnsupportedError
from fermata.sandboxes.contract import Limits
from fermata.sandboxes.providers.local import walls
from fermata.sandboxes.providers.local.base import Base
from fermata.sandboxes.providers.local.cgroups import ControlGroups, Group, find_control_groups
from fermata.sandboxes.providers.local.ids import Mapping, Mode, own_mapping, single_mapping
from fermata.sandboxes.providers.local.launcher import Launcher, Plan
from fermata.sandboxes.providers.local.native import build
from fermata.sandboxes.providers.local.records import Home, Layout, Record
from fermata.sandboxes.providers.local.seccomp import build_filter

_log = structlog.get_logger(__name__)
_SHIPPED = Path(__file__).parent / "bin"
_DOCKER = "docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined"


@dataclass(slots=True)
class Engine:
    """All that is needed to start sandboxes, found once."""

    launcher: Launcher
    groups: ControlGroups
    mapping: Mapping
    defaults: Limits
    hidden: frozenset[str]
    layout: Layout
    hints: list[str] = field(default_factory=list)

    def limits(self, asked: Limits) -> Limits:
        return Limits(
            cpus=asked.cpus if asked.cpus is not None else self.defaults.cpus,
            memory_bytes=asked.memory_bytes if asked.memory_bytes is not None else self.defaults.memory_bytes,
            processes=asked.processes if asked.processes is not None else self.defaults.processes,
            file_bytes=asked.file_bytes if asked.file_bytes is not None else self.defaults.file_bytes,
        )

    def plan(self, home: Home, record: Record, base: Base) -> Plan:
        limits = self.limits(record.limits)
        enforced = self.groups.enforced
        layers = [self.layout.layers / layer for layer in record.layers]
        return Plan(
            disk=home.disk,
            layers=[*layers, base.root],
            binds=walls.bound(base),
            mount_points=walls.mount_points(base),
            arguments=walls.bubblewrap_arguments(
                record.name, base, self.hidden, self.mapping, limits.memory_bytes
            ),
            file_bytes=limits.file_bytes or 0,
            data_bytes=0 if "memory" in enforced else limits.memory_bytes or 0,
            processes=0 if "pids" in enforced else limits.processes or 0,
        )

    def new_group(self, record: Record) -> Group:
        return self.groups.create(record.id, self.limits(record.limits))

    def use_one_user(self, hint: str) -> None:
        """Go on without a range of users, which this machine refused."""
        self.mapping = single_mapping()
        self.launcher.use(self.mapping)
        self.hints.append(hint)

    def missing(self) -> tuple[str, ...]:
        """What would make sandboxes here better, though they run."""
        hints = list(self.hints)
        if self.groups.enforced != {"cpu", "memory", "pids"}:
            hints.append(
                "limits of all kinds need control groups: start the server with "
                "systemd-run --user --scope -p Delegate=yes, or as root"
            )
        return tuple(hints)

    def describe(self) -> str:
        """How this machine isolates and limits, in a phrase."""
        users = {
            Mode.RANGE: "65,536 users of its own in each",
            Mode.SUBID: "a user range of its own in each",
            Mode.SELF: "one user in each",
        }[self.mapping.mode]
        enforced = self.groups.enforced
        words = {"cpu": "processor", "memory": "memory", "pids": "processes"}
        if enforced == set(words):
            limits = "limits by control groups"
        elif enforced:
            named = " and ".join(words[name] for name in sorted(enforced))
            limits = f"limits of {named} by control groups, the rest per process only"
        else:
            limits = "processes per sandbox and memory per process limited by rlimits, processor time not"
        return f"Linux namespaces, bubblewrap, overlayfs and seccomp, {users}; {limits}"


async def prepare(layout: Layout, installation: str, defaults: Limits) -> Engine:
    """Find and build everything. Raises `SandboxUnsupportedError` with all that is missing, one a line."""
    missing = []
    bubblewrap = shutil.which("bwrap") or shutil.which("bwrap", path="/usr/bin:/bin:/usr/local/bin")
    if bubblewrap is None:
        missing.append("bubblewrap is not installed: apt-get install bubblewrap")
    if not _exists("/proc/self/ns/user"):
        missing.append("the kernel has no user namespaces: boot one with CONFIG_USER_NS=y")
    rules = b""
    try:
        rules = build_filter()
    except SandboxUnsupportedError as error:
        missing.append(error.message)
    programs = await asyncio.to_thread(_programs, layout)
    if programs is None:
        missing.append(
            "the sandbox programs are not built and no C compiler works here: apt-get install gcc libc6-dev"
        )
    if missing or bubblewrap is None or programs is None:
        raise SandboxUnsupportedError("\n".join(missing))
    _raise_descriptor_limit()
    mapping = own_mapping()
    launcher = Launcher(
        program=programs / "launcher",
        init=programs / "init",
        bubblewrap=bubblewrap,
        seccomp=rules,
        mapping=mapping,
    )
    hidden = frozenset(path for path in walls.hideable() if _exists(path))
    # Two data directories of one installation are strangers to each other.
    name = f"fermata-{installation}-{hashlib.sha256(os.fsencode(layout.root)).hexdigest()[:8]}"
    groups = await asyncio.to_thread(find_control_groups, name, mapping.first_id)
    return Engine(launcher, groups, mapping, defaults, hidden, layout)


def _programs(layout: Layout) -> Path | None:
    """Where the C programs are: as shipped, or built here at the first start from a checkout."""
    places = (_SHIPPED, layout.root / "programs")
    for place in places:
        if build.is_built(place):
            return place
    for place in places:
        try:
            compiler = build.build(place)
        except (build.BuildError, OSError) as error:
            _log.warning("programs_not_built", error=str(error))
        else:
            _log.info("programs_built", compiler=compiler)
            return place
    return None


def _raise_descriptor_limit() -> None:
    """Every command takes four descriptors of ours while it runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or soft < hard):
        wanted = 65_536 if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def explain(said: str) -> str:
    """What a machine that refused a sandbox lacks, with the command that repairs it."""
    if _reads("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" and os.geteuid() != 0:
        return (
            "AppArmor forbids user namespaces to ordinary programs: "
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        )
    if _reads("/proc/sys/kernel/unprivileged_userns_clone") == "0" and os.geteuid() != 0:
        return "user namespaces are switched off: sudo sysctl -w kernel.unprivileged_userns_clone=1"
    if "unshare: No space left" in said or _reads("/proc/sys/user/max_user_namespaces") == "0":
        return "no user namespace is left: sudo sysctl -w user.max_user_namespaces=65536"
    if "newuidmap" in said:
        return "newuidmap refused this user's range: sudo usermod --add-subuids 100000-165535 $USER"
    if re.search(r"overlay: (Operation not permitted|No such device|Invalid argument)", said):
        return (
            "overlayfs does not work in a user namespace here: boot kernel 5.11 or newer, and put the data "
            "directory on ext4, xfs or btrfs with FERMATA_DATA_DIR"
        )
    if re.search(r"unshare: Operation not permitted|No permissions to creat", said, re.IGNORECASE):
        return f"this container refuses new namespaces: start it with {_DOCKER}"
    if re.search(r"proc.*(Operation not permitted|too revealing)", said, re.IGNORECASE | re.DOTALL):
        return f"this container hides parts of /proc, so that none can be mounted: start it with {_DOCKER}"
    if re.search(r"Unknown option", said):
        return "bubblewrap is older than 0.6: apt-get install bubblewrap, from a newer release"
    return f"a sandbox did not start: {said or 'no reason was given'}"


def _exists(path: str) -> bool:
    return os.path.exists(path)


def _reads(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
