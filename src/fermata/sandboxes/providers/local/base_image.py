"""Root file systems from outside: a directory, a tar, or an OCI image layout, copied once into the store.

What is copied may have been made by anybody. Every path is resolved inside the new tree, so no link, `..` or
absolute name leads out; devices, pipes and sockets are left out, setuid bits and extended attributes too;
entries, bytes and header sizes are bounded. The tree being made lies where only this process writes.
"""

import bz2
import contextlib
import gzip
import hashlib
import json
import lzma
import os
import platform
import re
import shutil
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from fermata.kit.errors import SettingsError

_LINKS_AT_MOST = 40
_DEPTH_AT_MOST = 200
_DOCUMENT_AT_MOST = 4 << 20
_HEADER_AT_MOST = 1 << 20
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_EXTENDED = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME}
_EXTENDED |= {tarfile.GNUTYPE_LONGLINK}
_BROKEN_ARCHIVE = (tarfile.TarError, EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error)
_BROKEN_DOCUMENT = (ValueError, KeyError, TypeError, AttributeError)
_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def refuse(words: str) -> SettingsError:
    return SettingsError(f"the root file system cannot be used: {words}", field=("FERMATA_SANDBOX_BASE",))


class Tree:
    """A root file system being made in the empty directory `root`. Ids of owners are kept as they are given
    when `owners` is set (which takes root), else everything belongs to this process."""

    def __init__(
        self, root: Path, *, owners: bool, entries_at_most: int = 2_000_000, bytes_at_most: int = 32 << 30
    ) -> None:
        self.root = root
        self._owners = owners
        self._entries = entries_at_most
        self._bytes = bytes_at_most
        self._modes: dict[str, int] = {}

    def locate(self, path: str, *, make: bool = False) -> str:
        """The place of `path` inside: its parents resolved, and made where missing if `make`; itself not."""
        waiting = [step for step in reversed(path.split("/")) if step not in ("", ".")]
        here: list[str] = []
        links = 0
        while waiting:
            step = waiting.pop()
            if step == "..":
                here = here[:-1]
                continue
            here.append(step)
            if not waiting:
                break
            place = os.path.join(self.root, *here)
            if len(here) > _DEPTH_AT_MOST or len(place) > 3800:
                raise refuse("its directories are too deep")
            try:
                mode = os.lstat(place).st_mode
            except FileNotFoundError:
                if not make:
                    raise
                self._count(0)
                os.mkdir(place)
                self._modes.setdefault(place, 0o755)
                continue
            if stat.S_ISLNK(mode):
                links += 1
                if links > _LINKS_AT_MOST:
                    raise refuse("its links go in a circle")
                target = os.readlink(place)
                here = [] if target.startswith("/") else here[:-1]
                waiting += [step for step in reversed(target.split("/")) if step not in ("", ".")]
            elif not stat.S_ISDIR(mode):
                raise refuse(f"{path[:200]!r} lies below a file")
        return os.path.join(self.root, *here)

    def has_program(self, path: str) -> bool:
        for _ in range(_LINKS_AT_MOST):
            try:
                place = self.locate(path)
                if not os.path.islink(place):
                    return os.path.isfile(place)
            except FileNotFoundError:
                return False
            path = os.path.join(os.path.dirname("/" + os.path.relpath(place, self.root)), os.readlink(place))
        return False

    def directory(self, path: str, mode: int, uid: int = 0, gid: int = 0) -> None:
        place = self._free(path, keep_directory=True)
        if not os.path.isdir(place):
            os.mkdir(place, 0o755)
        self._modes[place] = mode & 0o1777
        self._own(place, uid, gid)

    def file(self, path: str, mode: int, size: int, content: IO[bytes], uid: int = 0, gid: int = 0) -> None:
        self._count(size)
        place = self._free(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(place, flags, 0o600), "wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
            if file.tell() != size:
                raise refuse(f"{path[:200]!r} is cut off")
        self._own(place, uid, gid)
        os.chmod(place, mode & 0o777)

    def symlink(self, path: str, target: str, uid: int = 0, gid: int = 0) -> None:
        place = self._free(path)
        os.symlink(target, place)
        self._own(place, uid, gid)

    def hardlink(self, path: str, target: str) -> None:
        source = self.locate(target)
        if not stat.S_ISREG(os.lstat(source).st_mode):
            raise refuse(f"{path[:200]!r} is a hard link to what is no file")
        place = self._free(path)
        if place != source:
            os.link(source, place, follow_symlinks=False)

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            _remove(self.locate(path))

    def finish(self) -> None:
        """Give directories their modes: not before, or nothing could be put into one that is read-only."""
        for place, mode in self._modes.items():
            if os.path.isdir(place) and not os.path.islink(place):
                os.chmod(place, mode)

    def _free(self, path: str, *, keep_directory: bool = False) -> str:
        """The place for a new entry, with nothing there any more."""
        self._count(0)
        place = self.locate(path, make=True)
        if os.path.lexists(place) and place != str(self.root):
            if not (keep_directory and os.path.isdir(place) and not os.path.islink(place)):
                _remove(place)
        elif place == str(self.root) and not keep_directory:
            raise refuse("its root is no directory")
        return place

    def _own(self, place: str, uid: int, gid: int) -> None:
        if self._owners:
            if not (0 <= uid < 65_536 and 0 <= gid < 65_536):
                raise refuse("it has owners beyond 65,535")
            os.lchown(place, uid, gid)

    def _count(self, size: int) -> None:
        self._entries -= 1
        self._bytes -= size
        if size < 0 or self._entries < 0 or self._bytes < 0:
            raise refuse("it is too large")


def _remove(place: str) -> None:
    if os.path.isdir(place) and not os.path.islink(place):
        shutil.rmtree(place)
    elif os.path.lexists(place):
        os.unlink(place)


def identify(source: Path) -> str:
    """What tells a changed source from the same one: its index, or path, size and time."""
    if not source.exists():
        raise refuse("there is nothing at the path in the setting")
    if (source / "index.json").is_file():
        return hashlib.sha256((source / "index.json").read_bytes()).hexdigest()
    found = source.stat()
    marks = os.fsencode(source.resolve()) + b"|%d|%d" % (found.st_size, found.st_mtime_ns)
    return hashlib.sha256(marks).hexdigest()


def copy_into(tree: Tree, source: Path) -> None:
    """Copy a directory, a tar (plain, gzip, bzip2, xz) or an OCI image layout; `SettingsError` otherwise."""
    try:
        if (source / "oci-layout").is_file():
            for layer in _layers(source):
                _unpack(tree, layer, layered=True)
        elif source.is_dir():
            _copy_directory(tree, source)
        else:
            _unpack(tree, source, layered=False)
    except (*_BROKEN_ARCHIVE, *_BROKEN_DOCUMENT) as error:
        raise refuse(f"it is no proper tar or OCI image layout ({type(error).__name__})") from error
    except FileNotFoundError as error:
        raise refuse("it names a file that it does not hold") from error
    tree.finish()


def _copy_directory(tree: Tree, source: Path) -> None:
    def walk(inside: str) -> None:
        with os.scandir(os.path.join(source, inside)) as entries:
            for entry in entries:
                path = os.path.join(inside, entry.name)
                found = entry.stat(follow_symlinks=False)
                if entry.is_symlink():
                    tree.symlink(path, os.readlink(entry.path), found.st_uid, found.st_gid)
                elif entry.is_dir(follow_symlinks=False):
                    tree.directory(path, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)
                    walk(path)
                elif entry.is_file(follow_symlinks=False):
                    with open(entry.path, "rb") as content:
                        mode = stat.S_IMODE(found.st_mode)
                        tree.file(path, mode, found.st_size, content, found.st_uid, found.st_gid)

    walk("")


class _Header(tarfile.TarInfo):
    """A tar header whose extensions, which are read into memory whole, are bounded."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _EXTENDED and header.size > _HEADER_AT_MOST):
            raise refuse("it has a header that is too large")
        return header


def _unpack(tree: Tree, archive: Path, *, layered: bool) -> None:
    """Apply one archive. In a layer, `.wh.` names take away what the layers below it had."""
    own: set[str] = set()
    with (
        _opened(archive) as stream,
        tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header, encoding="utf-8") as members,
    ):
        for member in members:
            parent, _, name = member.name.rpartition("/")
            if layered and name == ".wh..wh..opq":
                _clear(tree.locate(parent, make=True), own)
            elif layered and name.startswith(".wh."):
                if name[4:] in ("", ".", ".."):
                    raise refuse("it takes away what has no name")
                tree.remove(f"{parent}/{name[4:]}")
            else:
                _add(tree, members, member)
                place = tree.locate(member.name, make=True)
                while layered and len(place) > len(str(tree.root)):
                    own.add(place)
                    place = os.path.dirname(place)


def _clear(place: str, own: set[str]) -> None:
    """Take away what layers below put there: everything that is not this layer's own."""
    if os.path.isdir(place) and not os.path.islink(place):
        for name in os.listdir(place):
            there = os.path.join(place, name)
            if there in own:
                _clear(there, own)
            else:
                _remove(there)


def _add(tree: Tree, members: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    if member.isdir():
        tree.directory(member.name, member.mode, member.uid, member.gid)
    elif member.issym():
        tree.symlink(member.name, member.linkname, member.uid, member.gid)
    elif member.islnk():
        tree.hardlink(member.name, member.linkname)
    elif member.isreg():
        content = members.extractfile(member)
        assert content is not None
        with content:
            tree.file(member.name, member.mode, member.size, content, member.uid, member.gid)


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[IO[bytes]]:
    with archive.open("rb") as raw:
        magic = raw.read(6)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        raise refuse("it is compressed with zstd: use gzip, or nothing")
    opener = next((opener for start, opener in _OPENERS.items() if magic.startswith(start)), Path.open)
    with opener(archive, "rb") as stream:
        yield stream


def _layers(layout: Path) -> list[Path]:
    """The layers of an image for this machine, lowest first, each checked against its digest."""
    document = json.loads(_small(layout / "index.json"))
    for _ in range(4):
        if "manifests" not in document:
            break
        document = json.loads(_small(_blob(layout, _for_this_machine(document["manifests"]))))
    return [_blob(layout, layer) for layer in document["layers"]]


def _for_this_machine(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    for manifest in manifests:
        asked = manifest.get("platform")
        if asked is None or (asked.get("os"), asked.get("architecture")) == ("linux", architecture):
            return manifest
    raise refuse(f"it has no image for linux/{architecture}")


def _blob(layout: Path, descriptor: dict[str, Any]) -> Path:
    match = _DIGEST.fullmatch(descriptor["digest"])
    if match is None:
        raise refuse("it has a digest other than sha256")
    path = layout / "blobs" / "sha256" / match[1]
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != match[1]:
            raise refuse("a part of it does not have the digest that it is named by")
    return path


def _small(path: Path) -> bytes:
    if path.stat().st_size > _DOCUMENT_AT_MOST:
        raise refuse("its index or manifest is too large")
    return path.read_bytes()
