"""The disk of a sandbox of the memory provider: a directory of the host that file methods do not leave.

Links are resolved against that directory, step by step. This holds against honest tests, not against a
program that swaps a directory for a link meanwhile.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fermata.kit.errors import SandboxFailedError, SandboxPathError
from fermata.sandboxes.contract import DirectoryEntry, FileKind, FileStat

_LINKS_AT_MOST = 40
_PATH_AT_MOST = 4095
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE}


@contextlib.contextmanager
def told_of(path: str) -> Iterator[None]:
    """Turn what the host says about its own path into what is true of `path` inside."""
    try:
        yield
    except ValueError:
        raise SandboxPathError(f"{path!r} holds a NUL byte") from None
    except OSError as error:
        words = f"{path}: {os.strerror(error.errno or 0).lower()}"
        raise (SandboxFailedError if error.errno in _FULL else SandboxPathError)(words) from error


class Disk:
    def __init__(self, root: Path, working_directory: str) -> None:
        self.root = root
        self._working_directory = working_directory

    def locate(self, path: str, *, follow_last: bool = True) -> str:
        """The host's path for one inside. Only the last step may be missing; `OSError` otherwise."""
        if "\0" in path:
            raise ValueError("embedded NUL byte")
        if not path:
            raise FileNotFoundError(errno.ENOENT, "empty path")
        if len(os.fsencode(path)) > _PATH_AT_MOST:
            raise OSError(errno.ENAMETOOLONG, "too long")
        start = "" if path.startswith("/") else self._working_directory
        waiting = [step for step in reversed(f"{start}/{path}".split("/")) if step not in ("", ".")]
        here: list[str] = []
        links = 0
        while waiting:
            step = waiting.pop()
            if step == "..":
                here = here[:-1]
                continue
            there = os.path.join(self.root, *here, step)
            found = self._look(there, last=not waiting)
            if found is None or not stat.S_ISLNK(found.st_mode) or (not waiting and not follow_last):
                if waiting and not (found and stat.S_ISDIR(found.st_mode)):
                    raise NotADirectoryError(errno.ENOTDIR, "not a directory")
                here.append(step)
                continue
            links += 1
            if links > _LINKS_AT_MOST:
                raise OSError(errno.ELOOP, "too many links")
            # A command that made the link was told /workspace by its place on the host.
            target = os.readlink(there).removeprefix(str(self.root))
            if target.startswith("/"):
                here = []
            waiting += [step for step in reversed(target.split("/")) if step not in ("", ".")]
        located = os.path.join(self.root, *here)
        if path.endswith(("/", "/.")) and not os.path.isdir(located):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        return located

    @staticmethod
    def _look(there: str, *, last: bool) -> os.stat_result | None:
        try:
            return os.lstat(there)
        except FileNotFoundError:
            if not last:
                raise
            return None

    def read(self, path: str, offset: int, limit: int) -> bytes:
        with told_of(path):
            descriptor = os.open(self.locate(path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise SandboxPathError(f"{path}: not a regular file")
                file.seek(offset)
                return file.read(limit)

    def write(self, path: str, data: bytes, mode: int | None) -> None:
        with told_of(path):
            try:
                target = self.locate(path)
            except FileNotFoundError:
                self._make_parents(path)
                target = self.locate(path)
            found = self._look(target, last=True)
            if found is not None and not stat.S_ISREG(found.st_mode):
                raise SandboxPathError(f"{path}: not a regular file")
            if found is not None and mode is None:
                mode = stat.S_IMODE(found.st_mode)
            fresh = f"{target.rpartition('/')[0]}/.{secrets.token_hex(8)}"
            try:
                with open(fresh, "xb") as file:
                    file.write(data)
                if found is not None:
                    os.chown(fresh, found.st_uid, found.st_gid)
                os.chmod(fresh, 0o644 if mode is None else mode)
                os.replace(fresh, target)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(fresh)
                raise

    def _make_parents(self, path: str) -> None:
        parent = path.rstrip("/").rpartition("/")[0]
        if not parent:
            return
        try:
            self.locate(f"{parent}/")
        except (FileNotFoundError, NotADirectoryError) as error:
            self._make_parents(parent)
            there = self.locate(parent)
            if os.path.lexists(there) and not os.path.isdir(there):
                raise NotADirectoryError(errno.ENOTDIR, "not a directory") from error
            with contextlib.suppress(FileExistsError):  # Another writer may have made it just now.
                os.mkdir(there, 0o755)

    def stat(self, path: str, *, follow_symlinks: bool) -> FileStat:
        with told_of(path):
            found = os.lstat(self.locate(path, follow_last=follow_symlinks))
        return FileStat(
            kind=_kind(found.st_mode),
            size=found.st_size,
            modified_at=datetime.fromtimestamp(found.st_mtime, UTC),
            mode=stat.S_IMODE(found.st_mode),
        )

    def entries(self, path: str, limit: int) -> list[DirectoryEntry]:
        with told_of(path), os.scandir(self.locate(path)) as found:
            entries = sorted(found, key=lambda entry: entry.name)[:limit]
            return [
                DirectoryEntry(entry.name, _kind(entry.stat(follow_symlinks=False).st_mode))
                for entry in entries
            ]


def _kind(mode: int) -> FileKind:
    if stat.S_ISREG(mode):
        return FileKind.FILE
    if stat.S_ISDIR(mode):
        return FileKind.DIRECTORY
    return FileKind.SYMLINK if stat.S_ISLNK(mode) else FileKind.OTHER
