"""Taking a bundle that was made in a sandbox, where anybody may have written it.

The bundle is unpacked and checked in a repository of its own that borrows the objects of the real
one, and only what passed is pushed on: locally or to GitHub, by the same command. A refused bundle
leaves nothing behind.
"""

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

from fermata.kit.errors import BodyTooLargeError, ConflictError, InvalidRequestError, RepositoryError
from fermata.workspaces import bare, git
from fermata.workspaces.model import BranchUpdate

BUNDLE_LIMIT = 2 * 1024**3
TIME_LIMIT = timedelta(minutes=30)
#: Version 3 can announce a partial history, and git would trust the gaps. Version 2 cannot.
_SIGNATURE = b"# v2 git bundle\n"
_BUNDLE = "incoming.bundle"
#: What git reports for a branch that is not where it was expected, before or while it was being moved.
_MOVED = ("stale info", "cannot lock ref", "failed to update ref", "fetch first", "non-fast-forward")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where checked objects are pushed: a path or a URL, with what git needs to get there."""

    location: str
    protocols: str = "file"
    environment: Mapping[str, str] = field(default_factory=dict)


async def receive(
    base: Path,
    destination: Destination,
    *,
    staging: Path,
    bundle: AsyncIterable[bytes],
    updates: Sequence[BranchUpdate],
) -> None:
    """As `RepositoryHost.receive`; `base` holds the objects that the bundle builds on."""
    if not updates:
        raise InvalidRequestError("There is no branch to move.")
    if len({update.branch for update in updates}) != len(updates):
        raise InvalidRequestError("A branch is named twice.")
    async with _draft(base, staging) as draft:
        await _store(bundle, draft / _BUNDLE)
        await _unpack(draft, updates)
        for update in updates:
            await _check_descent(draft, update)
        await _push(draft, destination, updates)


@asynccontextmanager
async def _draft(base: Path, staging: Path) -> AsyncIterator[Path]:
    """An empty repository that sees the objects of `base`, and its references under `refs/base/`."""
    references = await bare.list_references(base)
    path = staging / uuid.uuid4().hex

    def build() -> None:
        bare.make_private(staging)
        bare.sweep(staging)
        bare.write_repository(path, {}, durable=False)
        (path / "objects/info").mkdir()
        (path / "objects/info/alternates").write_text(f"{(base / 'objects').absolute()}\n")
        lines = (f"{commit} refs/base/{number}\n" for number, commit in enumerate(references.values()))
        (path / "packed-refs").write_text("".join(lines))

    try:
        await asyncio.to_thread(build)
        yield path
    finally:
        await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)


async def _store(bundle: AsyncIterable[bytes], path: Path) -> None:
    start = b""
    size = 0
    with _new_file(path) as file:
        async for piece in bundle:
            size += len(piece)
            if size > BUNDLE_LIMIT:
                raise BodyTooLargeError(f"The bundle is larger than {BUNDLE_LIMIT} bytes.")
            if len(start) < len(_SIGNATURE):
                start += piece
            file.write(piece)
    if not start.startswith(_SIGNATURE):
        raise InvalidRequestError("This is not a git bundle of version 2.")


def _new_file(path: Path) -> BinaryIO:
    return path.open("xb")


async def _unpack(draft: Path, updates: Sequence[BranchUpdate]) -> None:
    """Fetch from the bundle what `updates` name; git checks every object and that none is missing."""
    done = await git.run(
        "-c",
        "fetch.fsckObjects=true",
        "fetch",
        "--quiet",
        "--no-tags",
        "--no-write-fetch-head",
        _BUNDLE,
        *(f"{bare.HEADS}{update.branch}:{_incoming(update)}" for update in updates),
        cwd=draft,
        time_limit_for=TIME_LIMIT,
    )
    if done.exit_code != 0:
        error = git.failure("fetch", done.exit_code, done.stderr)
        if "lacks these prerequisite" in done.stderr:
            raise ConflictError("The bundle builds on commits that the repository does not have.") from error
        raise InvalidRequestError("The bundle is damaged, refused or lacks a branch.") from error
    for update in updates:
        done = await git.run("rev-parse", "--verify", f"{_incoming(update)}^{{commit}}", cwd=draft)
        if done.exit_code != 0 or done.stdout.decode().strip() != update.new:
            raise InvalidRequestError(f"The bundle has another commit for the branch '{update.branch}'.")


def _incoming(update: BranchUpdate) -> str:
    return f"refs/incoming/{update.branch}"


async def _check_descent(draft: Path, update: BranchUpdate) -> None:
    if update.old is None:
        return
    done = await git.run("merge-base", "--is-ancestor", update.old, update.new, cwd=draft)
    # 1: no ancestor; 128: the old commit is not in the repository at all.
    if done.exit_code != 0:
        raise ConflictError(
            f"The branch '{update.branch}' would lose commits: the new one does not descend from the old one."
        )


async def _push(draft: Path, destination: Destination, updates: Sequence[BranchUpdate]) -> None:
    done = await git.run(
        "push",
        "--porcelain",
        "--atomic",
        *(f"--force-with-lease={bare.HEADS}{update.branch}:{update.old or ''}" for update in updates),
        destination.location,
        *(f"{update.new}:{bare.HEADS}{update.branch}" for update in updates),
        cwd=draft,
        time_limit_for=TIME_LIMIT,
        protocols=destination.protocols,
        environment=destination.environment,
    )
    if done.exit_code == 0:
        return
    report = done.stdout.decode("utf-8", "replace")
    error = git.failure("push", done.exit_code, f"{report}\n{done.stderr}")
    if any(reason in report for reason in _MOVED):
        raise ConflictError("A branch has moved in the meantime; nothing was changed.") from error
    if "[remote rejected]" in report:
        raise RepositoryError(
            "The host refused the push, perhaps because the branch is protected."
        ) from error
    raise error
