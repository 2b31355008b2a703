"""What every base is given, and what is taken from it, before the first sandbox sees it."""

import hashlib
import io
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from fermata.sandboxes.providers.local.base_image import Tree, refuse

_MOUNT_POINTS = {
    "dev": 0o755,
    "etc": 0o755,
    "proc": 0o755,
    "root": 0o700,
    "run": 0o755,
    "sys": 0o755,
    "tmp": 0o1777,
    "var/tmp": 0o1777,
    "workspace": 0o755,
}
#: A sandbox has no resolver, and no name of the machine that its base was made on.
_FILES = {
    "etc/hostname": b"sandbox\n",
    "etc/hosts": b"127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/machine-id": b"",
    "etc/resolv.conf": b"",
}


def furnish(tree: Tree) -> None:
    """Add what a root file system from elsewhere may lack. `SettingsError` when it has no shell."""
    for name, mode in _MOUNT_POINTS.items():
        place = tree.locate(name, make=True)
        if os.path.islink(place) or not os.path.isdir(place):
            tree.directory(name, mode)
    shutil.rmtree(tree.root / "dev")
    tree.directory("dev", 0o755)
    for name, content in _FILES.items():
        tree.file(name, 0o644, len(content), io.BytesIO(content))
    tree.finish()
    if not tree.has_program("/bin/sh"):
        raise refuse("it has no /bin/sh")


def make_inert(root: Path, first_id: int | None) -> None:
    """Turn ids as they are inside into ids of the host; take away setuid and setgid bits of files, and
    everything that is no file, directory or link."""
    for path in walk(root):
        found = os.lstat(path)
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            os.unlink(path)
            continue
        if first_id is not None and found.st_uid < first_id:  # A hard link is met twice.
            os.lchown(path, first_id + found.st_uid, first_id + found.st_gid)
        if stat.S_ISREG(found.st_mode) and found.st_mode & 0o6000:
            os.chmod(path, stat.S_IMODE(found.st_mode) & 0o1777)


def content_mark(root: Path, also: str) -> str:
    """A hash of names, kinds, modes, link targets and contents below `root`, and of `also`."""
    digest = hashlib.sha256(also.encode())
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
