"""How bubblewrap is told to wall a sandbox off, and what a command finds around it. Pure.

The filter of system calls is not bubblewrap's business: the first process puts it around each command.
"""
# ruff: noqa: S108 - the paths are a sandbox's, or in a mount namespace of the launcher's own

from collections.abc import Mapping

from fermata.sandboxes.contract import NetworkPolicy
from fermata.sandboxes.providers.local.base import Base
from fermata.sandboxes.providers.local.ids import Mapping as Ids

WORKING_DIRECTORY = "/workspace"
PROXY_PORT = 3128
#: The program that becomes the first process, on a descriptor of native/wire.h.
_INIT = "/proc/self/fd/7"

#: What tells of the host, or reaches it.
_HIDDEN_FILES = (
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/mdstat",
    "/proc/sched_debug",
    "/proc/slabinfo",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/vmallocinfo",
)
_HIDDEN_DIRECTORIES = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/driver",
    "/proc/dynamic_debug",
    "/proc/fs",
    "/proc/irq",
    "/proc/pressure",
    "/proc/scsi",
)
#: What the first process needs to give up all others for good, which it does first.
_FOR_GIVING_UP = "CAP_SETPCAP"
#: What package managers need of a system administrator, over the sandbox's own users only.
_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETUID",
)
_RUN_BYTES = 64 * 1024 * 1024
_SHARED_MEMORY_BYTES = 256 * 1024 * 1024


def mount_points(base: Base) -> tuple[str, ...]:
    """Directories of the root that must be directories of the disk, not links that code inside put there."""
    tops = {inside.split("/")[1] for _, inside in base.binds}
    return ("proc", "dev", "run", *sorted(tops))


def bound(base: Base) -> list[str]:
    """Paths of the host that are bound, without those of the base's own directory: these are empty covers,
    for which the launcher has one whose path tells nothing."""
    own = f"{base.root.parent}/"
    return [outside for outside, _ in base.binds if not outside.startswith(own)]


def bubblewrap_arguments(
    name: str, base: Base, hidden: frozenset[str], ids: Ids, memory_bytes: int | None
) -> list[str]:
    """`hidden` are those paths of /proc that this kernel has. Files in memory may take half of the memory, so
    that a full one can still be deleted."""
    shared = min(_SHARED_MEMORY_BYTES, (memory_bytes or 2 * _SHARED_MEMORY_BYTES) // 2)
    arguments = [
        *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
        *("--die-with-parent", "--as-pid-1", "--new-session"),
        *("--hostname", host_name(name)),
        *("--bind", "/tmp/root", "/"),
    ]
    sources = bound(base)
    for outside, inside in base.binds:
        what = f"/tmp/bind{sources.index(outside)}" if outside in sources else "/tmp/none"
        arguments += ["--ro-bind", what, inside]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    arguments += ["--perms", "1777", "--size", str(shared), "--tmpfs", "/dev/shm"]
    arguments += ["--perms", "0755", "--size", str(min(_RUN_BYTES, shared // 4)), "--tmpfs", "/run"]
    for path in sorted(hidden):
        what = "/tmp/none" if path in _HIDDEN_DIRECTORIES else "/tmp/empty"
        arguments += ["--ro-bind", what, path]
    arguments += ["--cap-drop", "ALL", "--cap-add", _FOR_GIVING_UP]
    for capability in _CAPABILITIES:
        if ids.has_users or capability not in ("CAP_SETGID", "CAP_SETUID", "CAP_CHOWN", "CAP_SETFCAP"):
            arguments += ["--cap-add", capability]
    return [*arguments, "--chdir", "/", "--", _INIT]


def hideable() -> tuple[str, ...]:
    return _HIDDEN_FILES + _HIDDEN_DIRECTORIES


def host_name(name: str) -> str:
    cleaned = "".join(letter if letter.isalnum() else "-" for letter in name)[:63].strip("-")
    return cleaned or "sandbox"


def own_files(name: str, sandbox_id: str) -> dict[str, str]:
    """The names of this machine, as files of its /etc."""
    own = host_name(name)
    return {
        "hostname": f"{own}\n",
        "hosts": f"127.0.0.1 localhost {own}\n::1 localhost ip6-localhost ip6-loopback\n",
        "resolv.conf": "# No resolver: names are looked up by the proxy that http_proxy names.\n",
        "machine-id": f"{sandbox_id:0<32}\n",
    }


def command_environment(network: NetworkPolicy, extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of every command; nothing of the server's own gets in."""
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
        "TMPDIR": "/tmp",
        "DEBIAN_FRONTEND": "noninteractive",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "GIT_TERMINAL_PROMPT": "0",
    }
    if network is NetworkPolicy.OPEN:
        proxy = f"http://127.0.0.1:{PROXY_PORT}"
        for key in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            environment[key] = proxy
        environment["no_proxy"] = environment["NO_PROXY"] = "localhost,127.0.0.1,::1"
        environment["npm_config_proxy"] = environment["npm_config_https_proxy"] = proxy
        environment["NODE_USE_ENV_PROXY"] = "1"
        environment["PIP_PROXY"] = proxy
    return {**environment, **extra}
