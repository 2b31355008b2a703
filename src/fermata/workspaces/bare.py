"""Bare repositories on this machine's disk: made, read and bundled. Both hosts keep their data in them.

A new repository is written here, without git: the format of loose objects is stable, and starting git
would take more time than everything else that creating a session does.
"""

import hashlib
import os
import shutil
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

from fermata.kit.errors import NotFoundError
from fermata.workspaces import git
from fermata.workspaces.model import DEFAULT_BRANCH, Head, is_object_id

HEADS = "refs/heads/"
#: Packing a large repository for the first time takes minutes; hanging for ever helps nobody.
PACK_TIME_LIMIT = timedelta(minutes=30)
_SIGNATURE = "Fermata <fermata@localhost>"
_CONFIG = b"[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"
#: What a dead process left in the staging directory is swept after this time.
_STALE_AFTER = timedelta(hours=1)
_HAVE_LIMIT = 1000


def create(path: Path, files: Mapping[str, bytes], *, staging: Path) -> bool:
    """Make the bare repository `path` with `files` in it, whole or not at all; False when it was there.

    It is built in `staging` (same file system) and renamed, so of many callers at once one wins and all
    find it. On the disk when this returns.
    """
    if path.exists():
        return False
    make_private(staging)
    make_private(path.parent)
    sweep(staging)
    draft = staging / uuid.uuid4().hex
    try:
        write_repository(draft, files)
        try:
            draft.rename(path)
        except OSError:
            if not (path / "HEAD").is_file():
                raise
            return False
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _sync_directory(path.parent)
    return True


def write_repository(path: Path, files: Mapping[str, bytes], *, durable: bool = True) -> None:
    """Write an empty bare repository, with `files` (paths inside it) added, to `path`, which is not there."""
    directories = [path, path / "objects", path / "refs", path / "refs/heads", path / "refs/tags"]
    for directory in directories:
        directory.mkdir(mode=0o700)
    head = f"ref: {HEADS}{DEFAULT_BRANCH}\n".encode()
    for name, data in {"HEAD": head, "config": _CONFIG, **files}.items():
        target = path / name
        if not target.parent.exists():
            target.parent.mkdir(mode=0o700)
            directories.append(target.parent)
        # Git makes objects read-only; so does this.
        mode = 0o400 if name.startswith("objects/") else 0o600
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(descriptor)
    if durable:
        for directory in directories:
            _sync_directory(directory)


def initial_commit(title: str, now: datetime) -> dict[str, bytes]:
    """The files of a repository's first commit, on `main`: a README with `title` as its heading."""
    blob = _object("blob", f"# {title}\n".encode())
    tree = _object("tree", b"100644 README.md\0" + bytes.fromhex(blob[0]))
    stamp = f"{_SIGNATURE} {int(now.timestamp())} +0000"
    text = f"tree {tree[0]}\nauthor {stamp}\ncommitter {stamp}\n\nInitial commit\n"
    commit = _object("commit", text.encode())
    objects = {
        f"objects/{identifier[:2]}/{identifier[2:]}": data for identifier, data in (blob, tree, commit)
    }
    return {**objects, HEADS + DEFAULT_BRANCH: f"{commit[0]}\n".encode()}


def _object(kind: str, content: bytes) -> tuple[str, bytes]:
    """A loose object's id and the content of its file."""
    data = f"{kind} {len(content)}\0".encode() + content
    return hashlib.sha1(data, usedforsecurity=False).hexdigest(), zlib.compress(data, 1)


def make_private(path: Path) -> None:
    """A directory for this server only, with its parents. One that is there is left as it is."""
    if not path.is_dir():
        make_private(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(staging: Path) -> None:
    """Remove what a process that died left in the staging directory."""
    oldest = time.time() - _STALE_AFTER.total_seconds()
    for entry in staging.iterdir():
        with suppress(FileNotFoundError):
            if entry.stat().st_mtime < oldest:
                shutil.rmtree(entry, ignore_errors=True)


async def find_head(path: Path, branch: str | None) -> Head | None:
    """The tip of a (valid) branch or of the default branch; None when there is no such branch.

    A loose reference costs one or two small reads; a packed one a git process.
    """
    branch = branch or _default_branch(path)
    if branch is None:
        return None
    commit = _loose_reference(path, HEADS + branch)
    if commit is None:
        done = await git.run("rev-parse", "--verify", "--quiet", f"{HEADS}{branch}^{{commit}}", cwd=path)
        if done.exit_code == 1:
            return None
        if done.exit_code != 0:
            raise git.failure("rev-parse", done.exit_code, done.stderr)
        commit = done.stdout.decode().strip()
    return Head(branch, commit)


def _default_branch(path: Path) -> str | None:
    text = (path / "HEAD").read_text().strip()
    prefix = f"ref: {HEADS}"
    return text.removeprefix(prefix) if text.startswith(prefix) else None


def _loose_reference(path: Path, reference: str) -> str | None:
    try:
        text = (path / reference).read_text().strip()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    return text if is_object_id(text) else None


async def list_references(path: Path) -> dict[str, str]:
    """Branches and tags with the objects they point to."""
    done = await git.run(
        "for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags", cwd=path
    )
    if done.exit_code != 0:
        raise git.failure("for-each-ref", done.exit_code, done.stderr)
    lines = done.stdout.decode("utf-8", "surrogateescape").splitlines()
    return {name: identifier for identifier, _, name in (line.partition(" ") for line in lines)}


@asynccontextmanager
async def open_bundle(
    path: Path, *, have: Sequence[str], branch: str | None
) -> AsyncIterator[AsyncIterator[bytes]]:
    """As `RepositoryHost.bundle`. The header is written here, because `git bundle` leaves out references
    without new objects and refuses to write a bundle that has none."""
    head = await find_head(path, branch)
    if branch is None:
        references = await list_references(path)
    else:
        references = {} if head is None else {HEADS + head.branch: head.commit}
    if not references:
        raise NotFoundError(
            "The repository has no commits yet." if branch is None else f"There is no branch '{branch}'."
        )
    if head is not None:
        references["HEAD"] = head.commit
    known = await known_commits(path, have)
    lines = ["# v2 git bundle", *(f"-{commit} " for commit in known)]
    lines += [f"{identifier} {name}" for name, identifier in references.items()]
    header = "\n".join(lines).encode("utf-8", "surrogateescape") + b"\n\n"
    wanted = [*dict.fromkeys(references.values()), *(f"^{commit}" for commit in known)]
    arguments = ["pack-objects", "--revs", "--stdout", "--delta-base-offset", "--quiet"]
    if known:
        arguments.append("--thin")
    async with git.start(*arguments, cwd=path, time_limit_for=PACK_TIME_LIMIT) as process:
        process.feed(git.one_piece("".join(f"{line}\n" for line in wanted).encode()))
        yield _pieces(header, process)


async def _pieces(header: bytes, process: git.Git) -> AsyncIterator[bytes]:
    yield header
    while piece := await process.read():
        yield piece
    await process.expect_success()


async def known_commits(path: Path, have: Sequence[str]) -> list[str]:
    """Those of `have` that are commits of this repository."""
    asked = [commit for commit in dict.fromkeys(have) if is_object_id(commit)][:_HAVE_LIMIT]
    if not asked:
        return []
    stdin = "".join(f"{commit}\n" for commit in asked).encode()
    done = await git.run("cat-file", "--batch-check", cwd=path, stdin=stdin)
    if done.exit_code != 0:
        raise git.failure("cat-file", done.exit_code, done.stderr)
    words = (line.split() for line in done.stdout.decode().splitlines())
    return [word[0] for word in words if len(word) > 1 and word[1] == "commit"]


def point_head(path: Path, reference: str) -> None:
    """Make `reference` the default branch, as git does it: a reader sees the old one or the new."""
    text = f"ref: {reference}\n"
    if (path / "HEAD").read_text() != text:
        draft = path / "HEAD.lock"
        draft.write_text(text)
        draft.replace(path / "HEAD")


def remove_locks(path: Path, *, older_than: timedelta) -> None:
    """Remove lock files that a killed git left: they would block their references for ever."""
    oldest = time.time() - older_than.total_seconds()
    for lock in (*path.glob("*.lock"), *(path / "refs").rglob("*.lock")):
        with suppress(FileNotFoundError):
            if lock.stat().st_mtime <= oldest:
                lock.unlink()
