"""Taking a bundle that was made in a sandbox, where anybody may have written it.

The bundle's pack is unpacked and checked in a repository of its own that borrows the objects of the real
one, and only what passed is pushed on: locally or to GitHub, by the same command. A refused bundle
leaves nothing behind.
"""

import asyncio
import shutil
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from fermata.kit.errors import BodyTooLargeError, ConflictError, InvalidRequestError, RepositoryError
from fermata.workspaces import bare, git
from fermata.workspaces.model import BranchUpdate

BUNDLE_LIMIT = 2 * 1024**3
TIME_LIMIT = timedelta(minutes=30)
_SIGNATURE = b"# v2 git bundle\n"
#: Enough for ten thousand references.
_HEADER_LIMIT = 2 * 1024**2
#: As in `server.gitconfig`, which git does not read for this command.
_HARMLESS = "zeroPaddedFilemode=warn,missingSpaceBeforeDate=warn,badTimezone=warn"
#: What git reports for a branch that is not where it was expected, before or while it was being moved.
_MOVED = ("stale info", "cannot lock ref", "failed to update ref", "fetch first", "non-fast-forward")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where checked objects are pushed: a path or a URL, with what git needs to get there."""

    location: str
    protocols: str = "file"
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


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
    header, pack = await _open(bundle)
    _check_names(header, updates)
    async with _draft(base, staging) as draft:
        known = await bare.known_commits(draft, header.prerequisites)
        if set(known) != set(header.prerequisites):
            raise ConflictError("The bundle builds on commits that the repository does not have.")
        await _unpack(draft, pack)
        await _check_complete(draft, updates)
        for update in updates:
            await _check_descent(draft, update)
        await _push(draft, destination, updates)


@dataclass(frozen=True, slots=True)
class _Header:
    prerequisites: tuple[str, ...]
    references: Mapping[str, str]


async def _open(bundle: AsyncIterable[bytes]) -> tuple[_Header, AsyncGenerator[bytes, None]]:
    """Read the header; what is left of the stream is a pack."""
    pieces = aiter(bundle)
    start = bytearray()
    end = -1
    while end < 0:
        if len(start) > _HEADER_LIMIT or not _SIGNATURE.startswith(start[: len(_SIGNATURE)]):
            raise InvalidRequestError("This is not a git bundle of version 2.")
        try:
            piece = await anext(pieces)
        except StopAsyncIteration:
            raise InvalidRequestError("The bundle is cut short.") from None
        start += piece
        end = start.find(b"\n\n", max(0, len(start) - len(piece) - 1))
    if not start.startswith(_SIGNATURE):
        raise InvalidRequestError("This is not a git bundle of version 2.")
    lines = start[len(_SIGNATURE) : end].decode("utf-8", "surrogateescape").split("\n")
    prerequisites = tuple(line[1:].partition(" ")[0] for line in lines if line.startswith("-"))
    pairs = (line.partition(" ") for line in lines if line and not line.startswith("-"))
    header = _Header(prerequisites, {reference: identifier for identifier, _, reference in pairs})
    return header, _rest(bytes(start[end + 2 :]), pieces)


async def _rest(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    size = len(first)
    yield first
    async for piece in pieces:
        size += len(piece)
        if size > BUNDLE_LIMIT:
            raise BodyTooLargeError(f"The bundle is larger than {BUNDLE_LIMIT} bytes.")
        yield piece


def _check_names(header: _Header, updates: Sequence[BranchUpdate]) -> None:
    for update in updates:
        commit = header.references.get(bare.HEADS + update.branch)
        if commit is None:
            raise InvalidRequestError(f"The bundle lacks the branch '{update.branch}'.")
        if commit != update.new:
            raise InvalidRequestError(f"The bundle has another commit for the branch '{update.branch}'.")


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


async def _unpack(draft: Path, pack: AsyncGenerator[bytes, None]) -> None:
    """Store the pack; git checks every object and that those it points to are there."""
    async with (
        aclosing(pack),
        git.start(
            "index-pack",
            "--stdin",
            "--fix-thin",
            f"--strict={_HARMLESS}",
            cwd=draft,
            time_limit_for=TIME_LIMIT,
        ) as process,
    ):
        process.feed(pack)
        while await process.read():
            pass
        code, stderr = await process.wait()
    if code != 0:
        raise InvalidRequestError("The bundle is damaged or refused.") from git.failure(
            "index-pack", code, stderr
        )


async def _check_complete(draft: Path, updates: Sequence[BranchUpdate]) -> None:
    """Walk from the new commits to what the repository had: nothing may be missing on the way."""
    revisions = [f"{update.new}^{{commit}}" for update in updates]
    done = await git.run(
        "rev-list", "--objects", "--quiet", *revisions, "--not", "--glob=refs/base/*", cwd=draft
    )
    if done.exit_code != 0:
        error = git.failure("rev-list", done.exit_code, done.stderr)
        raise InvalidRequestError("The bundle is incomplete.") from error


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
    report = done.stdout.decode("utf-8", "replace") + done.stderr
    error = git.failure("push", done.exit_code, report)
    if any(reason in report for reason in _MOVED):
        raise ConflictError("A branch has moved in the meantime; nothing was changed.") from error
    if "[remote rejected]" in report:
        raise RepositoryError(
            "The host refused the push, perhaps because the branch is protected."
        ) from error
    raise error
