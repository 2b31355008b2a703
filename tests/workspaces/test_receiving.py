import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from fermata.kit.errors import BodyTooLargeError, ConflictError, InvalidRequestError, NotFoundError
from fermata.workspaces import receiving
from fermata.workspaces.model import BranchUpdate, RepositoryName
from fermata.workspaces.providers.builtin import BuiltinHost

RunGit = Callable[..., Awaitable[str]]


async def pieces_of(path: Path) -> AsyncIterator[bytes]:
    data = path.read_bytes()
    for start in range(0, len(data), 7):
        yield data[start : start + 7]


@pytest.fixture
async def sandbox(host: BuiltinHost, name: RepositoryName, tmp_path: Path, run_git: RunGit) -> Path:
    """What a sandbox has: a clone made from a bundle, without a way back."""
    await host.ensure(name)
    async with host.bundle(name) as pieces:
        (tmp_path / "given.bundle").write_bytes(b"".join([piece async for piece in pieces]))
    await run_git("clone", "--quiet", "given.bundle", "sandbox")
    return tmp_path / "sandbox"


async def commit(run_git: RunGit, sandbox: Path, file: str) -> str:
    (sandbox / file).write_text(file)
    await run_git("add", ".", cwd=sandbox)
    await run_git("commit", "--quiet", "-m", f"Add {file}", cwd=sandbox)
    return await run_git("rev-parse", "HEAD", cwd=sandbox)


async def make_bundle(run_git: RunGit, sandbox: Path, *revisions: str) -> AsyncIterator[bytes]:
    await run_git("bundle", "create", "--quiet", "../out.bundle", *revisions, cwd=sandbox)
    return pieces_of(sandbox.parent / "out.bundle")


async def test_work_of_a_sandbox_comes_back_without_a_credential(
    host: BuiltinHost, name: RepositoryName, sandbox: Path, run_git: RunGit, root: Path
) -> None:
    old = await host.head(name)
    new = await commit(run_git, sandbox, "a.txt")
    bundle = await make_bundle(run_git, sandbox, f"{old.commit}..main")
    await host.receive(name, bundle, [BranchUpdate("main", old.commit, new)])
    assert (await host.head(name)).commit == new
    assert await run_git("show", "main:a.txt", cwd=host.path_of(name)) == "a.txt"
    await run_git("fsck", "--strict", "--full", cwd=host.path_of(name))
    assert list((root / ".staging").iterdir()) == []


async def test_a_new_branch_can_be_received(
    host: BuiltinHost, name: RepositoryName, sandbox: Path, run_git: RunGit
) -> None:
    await run_git("checkout", "--quiet", "-b", "ab/12cd34ef", cwd=sandbox)
    new = await commit(run_git, sandbox, "a.txt")
    bundle = await make_bundle(run_git, sandbox, "ab/12cd34ef")
    await host.receive(name, bundle, [BranchUpdate("ab/12cd34ef", None, new)])
    assert (await host.head(name, "ab/12cd34ef")).commit == new
    assert (await host.head(name)).commit != new


async def test_receiving_the_same_twice_is_receiving_it_once(
    host: BuiltinHost, name: RepositoryName, sandbox: Path, run_git: RunGit
) -> None:
    old = await host.head(name)
    new = await commit(run_git, sandbox, "a.txt")
    for _ in range(2):
        bundle = await make_bundle(run_git, sandbox, f"{old.commit}..main")
        await host.receive(name, bundle, [BranchUpdate("main", old.commit, new)])
        assert (await host.head(name)).commit == new


async def test_a_branch_that_has_moved_on_is_a_conflict(
    host: BuiltinHost, name: RepositoryName, sandbox: Path, run_git: RunGit
) -> None:
    old = await host.head(name)
    first = await commit(run_git, sandbox, "a.txt")
    await host.receive(
        name, await make_bundle(run_git, sandbox, "main"), [BranchUpdate("main", old.commit, first)]
    )
    second = await commit(run_git, sandbox, "b.txt")
    bundle = await make_bundle(run_git, sandbox, "main")
    with pytest.raises(ConflictError, match="has moved in the meantime"):
        await host.receive(name, bundle, [BranchUpdate("main", old.commit, second)])
    assert (await host.head(name)).commit == first


async def test_a_lock_that_a_killed_push_left_does_not_block_the_branch_for_ever(
    host: BuiltinHost, name: RepositoryName, sandbox: Path, run_git: RunGit
) -> None:
    old = await host.head(name)
    new = await commit(run_git, sandbox, "a.txt")
    lock = host.path_of(name) / "refs/heads/main.lock"
    lock.touch()
    update = BranchUpdate("main", old.commit, new)
    with pytest.raises(ConflictError):
        await host.receive(name, await make_bundle(run_git, sandbox, "main"), [update])
    long_ago = time.time() - 3600
    os.utime(lock, (long_ago, long_ago))
    await host.receive(name, await make_bundle(run_git, sandbox, "main"), [update])
    assert (await host.head(name)).commit == new


async def test_a_bundle_that_names_a_commit_without_holding_it_is_refused(
    host: BuiltinHost, name: RepositoryName, sandbox: Path
) -> None:
    old = await host.head(name)
    async with host.bundle(name, have=[old.commit]) as pieces:
        data = b"".join([piece async for piece in pieces])
    invented = "1" * 40
    header = f"# v2 git bundle\n{invented} refs/heads/side\n\n".encode()
    (sandbox.parent / "hollow").write_bytes(header + data.partition(b"\n\n")[2])
    with pytest.raises(InvalidRequestError, match="The bundle is incomplete"):
        await host.receive(name, pieces_of(sandbox.parent / "hollow"), [BranchUpdate("side", None, invented)])


async def test_a_branch_at_a_commit_that_is_here_already_needs_no_objects(
    host: BuiltinHost, name: RepositoryName, sandbox: Path
) -> None:
    old = await host.head(name)
    async with host.bundle(name, have=[old.commit]) as pieces:
        data = b"".join([piece async for piece in pieces])
    (sandbox.parent / "empty").write_bytes(data.replace(b"refs/heads/main", b"refs/heads/side"))
    await host.receive(name, pieces_of(sandbox.parent / "empty"), [BranchUpdate("side", None, old.commit)])
    assert (await host.head(name, "side")).commit == old.commit


async def test_of_two_who_move_one_branch_at_once_one_wins(
    host: BuiltinHost, name: RepositoryName, sandbox: Path, tmp_path: Path, run_git: RunGit
) -> None:
    old = await host.head(name)
    bundles, updates = [], []
    for number in range(3):
        await run_git("checkout", "--quiet", "-B", "main", old.commit, cwd=sandbox)
        updates.append(BranchUpdate("main", old.commit, await commit(run_git, sandbox, f"{number}.txt")))
        await run_git("bundle", "create", "--quiet", f"../{number}.bundle", "main", cwd=sandbox)
        bundles.append(pieces_of(tmp_path / f"{number}.bundle"))
    calls = [host.receive(name, bundle, [update]) for bundle, update in zip(bundles, updates, strict=True)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    won = [update.new for update, result in zip(updates, results, strict=True) if result is None]
    assert [type(result) for result in results if result is not None] == [ConflictError] * 2
    assert (await host.head(name)).commit == won[0]


async def test_several_branches_move_together_or_not_at_all(
    host: BuiltinHost, name: RepositoryName, sandbox: Path, run_git: RunGit
) -> None:
    old = await host.head(name)
    new = await commit(run_git, sandbox, "a.txt")
    await run_git("branch", "other", cwd=sandbox)
    stale = BranchUpdate("main", old.commit, new)
    with pytest.raises(ConflictError):
        await host.receive(
            name,
            await make_bundle(run_git, sandbox, "main", "other"),
            [stale, BranchUpdate("other", old.commit, new)],
        )
    assert await host.head(name) == old
    with pytest.raises(NotFoundError):
        await host.head(name, "other")


async def test_history_cannot_be_rewritten(
    host: BuiltinHost, name: RepositoryName, sandbox: Path, run_git: RunGit
) -> None:
    old = await host.head(name)
    await run_git("commit", "--quiet", "--amend", "-m", "Another beginning", cwd=sandbox)
    new = await run_git("rev-parse", "HEAD", cwd=sandbox)
    bundle = await make_bundle(run_git, sandbox, "main")
    with pytest.raises(ConflictError, match="would lose commits"):
        await host.receive(name, bundle, [BranchUpdate("main", old.commit, new)])
    assert await host.head(name) == old


async def test_a_bundle_that_holds_another_commit_than_announced_is_refused(
    host: BuiltinHost, name: RepositoryName, sandbox: Path, run_git: RunGit
) -> None:
    old = await host.head(name)
    first = await commit(run_git, sandbox, "a.txt")
    await commit(run_git, sandbox, "b.txt")
    with pytest.raises(InvalidRequestError, match="another commit for the branch 'main'"):
        await host.receive(
            name, await make_bundle(run_git, sandbox, "main"), [BranchUpdate("main", old.commit, first)]
        )
    with pytest.raises(InvalidRequestError, match="lacks the branch 'side'"):
        await host.receive(
            name, await make_bundle(run_git, sandbox, "main"), [BranchUpdate("side", None, first)]
        )
    assert await host.head(name) == old


async def test_a_bundle_on_commits_that_are_not_here_is_a_conflict(
    host: BuiltinHost, name: RepositoryName, sandbox: Path, run_git: RunGit
) -> None:
    old = await host.head(name)
    middle = await commit(run_git, sandbox, "a.txt")
    new = await commit(run_git, sandbox, "b.txt")
    bundle = await make_bundle(run_git, sandbox, f"{middle}..main")
    with pytest.raises(ConflictError, match="builds on commits that the repository does not have"):
        await host.receive(name, bundle, [BranchUpdate("main", old.commit, new)])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#",
        b"# v2 git bundle\n",
        b"# v2 git bundle\n\nPACK",
        b"# v2 git bundle\n" + b"1" * 40 + b" refs/heads/main\n\nPACK",
        b"# v3 git bundle\n" + b"1" * 40 + b" refs/heads/main\n\nPACK",
        b"nonsense" * 100,
        b"# v2 git bundle\n" + b"x" * 3_000_000,
    ],
)
async def test_what_is_no_bundle_is_refused(
    host: BuiltinHost, name: RepositoryName, sandbox: Path, data: bytes
) -> None:
    path = sandbox.parent / "data"
    path.write_bytes(data)
    with pytest.raises(InvalidRequestError):
        await host.receive(name, pieces_of(path), [BranchUpdate("main", None, "1" * 40)])


async def test_a_bundle_with_gaps_in_its_history_is_refused(
    host: BuiltinHost, name: RepositoryName, sandbox: Path, run_git: RunGit
) -> None:
    old = await host.head(name)
    new = await commit(run_git, sandbox, "a.txt")
    bundle = await make_bundle(run_git, sandbox, "--filter=blob:none", "main")
    with pytest.raises(InvalidRequestError, match="not a git bundle of version 2"):
        await host.receive(name, bundle, [BranchUpdate("main", old.commit, new)])
    # The same gaps behind the header of version 2, which cannot announce them.
    out = sandbox.parent / "out.bundle"
    pack = out.read_bytes().partition(b"\n\n")[2]
    out.write_bytes(f"# v2 git bundle\n{new} refs/heads/main\n\n".encode() + pack)
    with pytest.raises(InvalidRequestError, match=r"incomplete|damaged"):
        await host.receive(name, pieces_of(out), [BranchUpdate("main", old.commit, new)])
    assert await host.head(name) == old


async def test_a_bundle_with_a_malicious_tree_is_refused(
    host: BuiltinHost, name: RepositoryName, sandbox: Path, run_git: RunGit
) -> None:
    old = await host.head(name)
    blob = await run_git("hash-object", "-w", "README.md", cwd=sandbox)
    (sandbox / "tree").write_bytes(b"100644 .git\0" + bytes.fromhex(blob))
    tree = await run_git("hash-object", "-w", "-t", "tree", "--literally", "tree", cwd=sandbox)
    evil = await run_git("commit-tree", "-p", "HEAD", "-m", "Evil", tree, cwd=sandbox)
    await run_git("update-ref", "refs/heads/main", evil, cwd=sandbox)
    bundle = await make_bundle(run_git, sandbox, "main")
    with pytest.raises(InvalidRequestError, match="damaged or refused"):
        await host.receive(name, bundle, [BranchUpdate("main", old.commit, evil)])


async def test_a_bundle_that_is_too_large_is_not_kept(
    host: BuiltinHost,
    name: RepositoryName,
    sandbox: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = await host.head(name)
    monkeypatch.setattr(receiving, "BUNDLE_LIMIT", 20)
    with pytest.raises(BodyTooLargeError, match="larger than 20 bytes"):
        await host.receive(
            name, pieces_of(sandbox.parent / "given.bundle"), [BranchUpdate("main", None, head.commit)]
        )
    assert list((root / ".staging").iterdir()) == []


async def test_updates_must_be_there_and_name_each_branch_once(
    host: BuiltinHost, name: RepositoryName, sandbox: Path
) -> None:
    update = BranchUpdate("main", None, "1" * 40)
    for updates in ([], [update, update]):
        with pytest.raises(InvalidRequestError):
            await host.receive(name, pieces_of(sandbox.parent / "given.bundle"), updates)
