"""The default base, built once on this machine from Debian's archive.

`debootstrap` as root; `mmdebstrap` in its unshare mode as a user. Both check the archive's signatures. The
packages are what an agent reaches for in its first minutes and no more: a compiler alone would double the
download that a fresh machine makes unasked, and is one `apt-get install` away inside.
"""

import asyncio
import contextlib
import os
import platform
import shutil
import signal
import tempfile
from datetime import timedelta
from pathlib import Path

import structlog

from fermata.kit.errors import SandboxUnsupportedError
from fermata.sandboxes.providers.local.base_image import Tree, copy_into

_log = structlog.get_logger(__name__)

PACKAGES = ("ca-certificates", "curl", "git", "less", "procps", "python3")
_WITHIN = timedelta(minutes=45)
_PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_LEFT_OUT = ("var/cache/apt", "var/lib/apt/lists", "var/log", "debootstrap")


def suite() -> str:
    """The release that the host runs, if it is Debian; else the current stable one."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "stable"
    return release.get("VERSION_CODENAME", "stable") if release.get("ID") == "debian" else "stable"


def missing_tool() -> str | None:
    """What has to be installed before a base can be built here, with the step; None when all is there."""
    if os.geteuid() == 0:
        if shutil.which("debootstrap") is None or shutil.which("unshare") is None:
            return "debootstrap is not installed: apt-get install debootstrap"
    elif shutil.which("mmdebstrap") is None or shutil.which("newuidmap") is None:
        return "mmdebstrap is not installed: sudo apt-get install mmdebstrap uidmap"
    return None


async def build(work: Path, lock: int) -> None:
    """Fill the directory `work/root`. `SandboxUnsupportedError` when it fails; cancelling it ends all of it.

    The builder inherits the descriptor `lock`, so that what it writes stays locked though we be killed."""
    root = work / "root"
    packages = ",".join(PACKAGES)
    if os.geteuid() == 0:
        # In namespaces of its own: what it mounts, and what a package starts, goes with it.
        await _run(
            *("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"),
            *("debootstrap", "--force-check-gpg", "--variant=minbase", f"--include={packages}"),
            *(suite(), str(root)),
            lock=lock,
        )
    else:
        archive = work / "base.tar"
        await _run(
            *("mmdebstrap", "--mode=unshare", "--variant=minbase", f"--include={packages}"),
            *(suite(), str(archive)),
            lock=lock,
        )
        root.mkdir()
        await asyncio.to_thread(copy_into, Tree(root, owners=False), archive)
        archive.unlink()
    for name in _LEFT_OUT:
        await asyncio.to_thread(_empty, root / name)


async def _run(*command: str, lock: int) -> None:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            pass_fds=(lock,),
        )
        try:
            async with asyncio.timeout(_WITHIN.total_seconds()):
                status = await process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        if status != 0:
            log.seek(max(0, log.tell() - 2000))
            said = log.read().decode("utf-8", "replace").strip().splitlines()
            _log.warning("base_build_failed", command=command[0], status=status, output=said[-8:])
            raise SandboxUnsupportedError(f"building it failed ({said[-1] if said else f'status {status}'})")


def _empty(directory: Path) -> None:
    """What only the building needed. Directories stay: programs expect them."""
    for place, _, files in os.walk(directory):
        for name in files:
            os.unlink(os.path.join(place, name))
