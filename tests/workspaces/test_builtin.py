import asyncio
import os
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from fermata.kit.clock import SystemClock
from fermata.kit.errors import NotFoundError, RepositoryError
from fermata.workspaces.model import Head, RepositoryName
from fermata.workspaces.providers.builtin import BuiltinHost

RunGit = Callable[..., Awaitable[str]]


async def collect(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def write_bundle(host: BuiltinHost, name: RepositoryName, path: Path, **options: object) -> Path:
    async with host.bundle(name, **options) as pieces:  # type: ignore[arg-type]
        path.write_bytes(await collect(pieces))
    return path


@pytest.fixture
async def worked_on(host: BuiltinHost, name: RepositoryName, tmp_path: Path, run_git: RunGit) -> Path:
    """A clone of a repository with a second branch, an annotated tag and three commits, all pushed."""
    await host.ensure(name)
    clone = tmp_path / "worked-on"
    await run_git("clone", "--quiet", str(host.path_of(name)), str(clone))
    (clone / "a.txt").write_text("one\n")
    await run_git("add", ".", cwd=clone)
    await run_git("commit", "--quiet", "-m", "Second", cwd=clone)
    await run_git("tag", "-a", "v1", "-m", "First release", cwd=clone)
    await run_git("checkout", "--quiet", "-b", "side/branch", cwd=clone)
    (clone / "b.txt").write_text("two\n" * 1000)
    await run_git("add", ".", cwd=clone)
    await run_git("commit", "--quiet", "-m", "Third", cwd=clone)
    await run_git("push", "--quiet", "origin", "main", "side/branch", "v1", cwd=clone)
    return clone


async def test_a_new_repository_has_a_readme_in_one_commit_on_main(
    host: BuiltinHost, name: RepositoryName, tmp_path: Path, run_git: RunGit
) -> None:
    await host.ensure(name)
    await run_git("clone", "--quiet", str(host.path_of(name)), "clone")
    clone = tmp_path / "clone"
    assert (clone / "README.md").read_text() == f"# {name.name}\n"
    assert await run_git("branch", "--all", cwd=clone) == (
        "* main\n  remotes/origin/HEAD -> origin/main\n  remotes/origin/main"
    )
    log = await run_git("log", "--format=%an <%ae>|%cn <%ce>|%s", cwd=clone)
    assert log == "Fermata <fermata@localhost>|Fermata <fermata@localhost>|Initial commit"
    await run_git("fsck", "--strict", "--full", cwd=host.path_of(name))


async def test_ensuring_a_repository_again_changes_nothing(
    host: BuiltinHost, name: RepositoryName, worked_on: Path, run_git: RunGit
) -> None:
    before = await host.head(name)
    await host.ensure(name)
    await host.ensure(RepositoryName(name.owner.upper(), name.name.upper()))
    assert await host.head(name) == before
    assert before.commit == await run_git("rev-parse", "main", cwd=worked_on)


async def test_two_spellings_are_one_repository(host: BuiltinHost, root: Path) -> None:
    await host.ensure(RepositoryName("Recoupable", "Notes"))
    await host.ensure(RepositoryName("recoupable", "NOTES"))
    assert await host.exists(RepositoryName("RECOUPABLE", "notes"))
    assert [path.name for path in (root / "recoupable").iterdir()] == ["notes.git"]


async def test_nobody_else_on_the_machine_can_read_a_repository(
    host: BuiltinHost, name: RepositoryName, root: Path
) -> None:
    mask = os.umask(0)
    try:
        await host.ensure(name)
    finally:
        os.umask(mask)
    for path in (root, *root.rglob("*")):
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        else:
            assert stat.S_IMODE(path.stat().st_mode) in (0o400, 0o600)


async def test_many_callers_at_once_make_one_repository(host: BuiltinHost, root: Path) -> None:
    name = RepositoryName("recoupable", "race")
    heads = []

    async def ensure_and_look() -> None:
        await host.ensure(name)
        heads.append(await host.head(name))

    await asyncio.gather(*(ensure_and_look() for _ in range(20)))
    assert len(set(heads)) == 1
    assert list((root / ".staging").iterdir()) == []


_RACER = """
import asyncio, sys
from pathlib import Path
from fermata.kit.clock import SystemClock
from fermata.workspaces.model import RepositoryName
from fermata.workspaces.providers.builtin import BuiltinHost

async def main():
    host = BuiltinHost(root=Path(sys.argv[1]), clock=SystemClock())
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(sys.argv[2])):
        name = RepositoryName("recoupable", f"r{number}")
        await host.ensure(name)
        print((await host.head(name)).commit, flush=True)

asyncio.run(main())
"""


def start_racer(root: Path, count: int) -> subprocess.Popen[bytes]:
    racer = subprocess.Popen(
        [sys.executable, "-c", _RACER, root, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert racer.stdout is not None
    assert racer.stdout.readline() == b"ready\n"
    return racer


def test_two_processes_that_race_see_the_same_repositories(root: Path) -> None:
    racers = [start_racer(root, 40) for _ in range(2)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(b"\n")
        racer.stdin.flush()
    commits = [racer.communicate()[0].split() for racer in racers]
    assert commits[0] == commits[1]
    assert len(commits[0]) == 40


async def test_a_killed_process_leaves_only_whole_repositories(
    root: Path, host: BuiltinHost, run_git: RunGit
) -> None:
    racer = start_racer(root, 100_000)
    assert racer.stdin is not None
    assert racer.stdout is not None
    racer.stdin.write(b"\n")
    racer.stdin.flush()
    for _ in range(40):
        racer.stdout.readline()
    racer.kill()
    racer.communicate()
    made = sorted((root / "recoupable").iterdir())
    assert len(made) >= 40
    for path in (made[0], made[-1]):
        await run_git("fsck", "--strict", "--full", cwd=path)
    for number in range(len(made) + 2):
        repository = RepositoryName("recoupable", f"r{number}")
        await host.ensure(repository)
        assert (await host.head(repository)).branch == "main"


async def test_drafts_of_dead_processes_are_swept_and_those_of_living_ones_kept(
    host: BuiltinHost, root: Path, name: RepositoryName
) -> None:
    staging = root / ".staging"
    for draft in ("dead", "alive"):
        (staging / draft / "objects").mkdir(parents=True)
    long_ago = time.time() - 7200
    os.utime(staging / "dead", (long_ago, long_ago))
    await host.ensure(name)
    assert [path.name for path in staging.iterdir()] == ["alive"]


async def test_a_disk_that_refuses_gives_a_sentence_without_paths(
    tmp_path: Path, name: RepositoryName
) -> None:
    (tmp_path / "file").write_text("")
    host = BuiltinHost(root=tmp_path / "file" / "below", clock=SystemClock())
    with pytest.raises(RepositoryError, match="could not be made: File exists") as caught:
        await host.ensure(name)
    assert str(tmp_path) not in caught.value.message


async def test_an_unknown_repository_is_not_found(host: BuiltinHost, name: RepositoryName) -> None:
    assert not await host.exists(name)
    with pytest.raises(NotFoundError, match=f"^There is no repository {name}.$"):
        await host.head(name)
    with pytest.raises(NotFoundError):
        async with host.bundle(name):
            pass


@pytest.mark.parametrize("packed", [False, True])
async def test_the_head_of_a_branch_is_its_tip(
    host: BuiltinHost, name: RepositoryName, worked_on: Path, run_git: RunGit, packed: bool
) -> None:
    if packed:
        await run_git("pack-refs", "--all", cwd=host.path_of(name))
    main = await run_git("rev-parse", "main", cwd=worked_on)
    side = await run_git("rev-parse", "side/branch", cwd=worked_on)
    assert await host.head(name) == Head("main", main)
    assert await host.head(name, "main") == Head("main", main)
    assert await host.head(name, "side/branch") == Head("side/branch", side)
    for missing in ("other", "side", "main/x", "v1"):
        with pytest.raises(NotFoundError, match=f"has no branch '{missing}'"):
            await host.head(name, missing)


async def test_a_clone_from_a_bundle_has_every_branch_and_tag(
    host: BuiltinHost, name: RepositoryName, worked_on: Path, tmp_path: Path, run_git: RunGit
) -> None:
    bundle = await write_bundle(host, name, tmp_path / "all.bundle")
    await run_git("clone", "--quiet", str(bundle), "clone")
    clone = tmp_path / "clone"
    assert await run_git("symbolic-ref", "HEAD", cwd=clone) == "refs/heads/main"
    references = await run_git("for-each-ref", "--format=%(objectname) %(refname:lstrip=-1)", cwd=clone)
    for reference in ("main", "side/branch", "v1"):
        wanted = await run_git("rev-parse", reference, cwd=worked_on)
        assert f"{wanted} {reference.split('/')[-1]}" in references
    await run_git("fsck", "--strict", "--full", cwd=clone)


async def test_a_clone_from_a_bundle_of_one_branch_checks_that_branch_out(
    host: BuiltinHost, name: RepositoryName, worked_on: Path, tmp_path: Path, run_git: RunGit
) -> None:
    bundle = await write_bundle(host, name, tmp_path / "side.bundle", branch="side/branch")
    heads = await run_git("bundle", "list-heads", str(bundle))
    assert [line.split()[1] for line in heads.splitlines()] == ["refs/heads/side/branch", "HEAD"]
    await run_git("clone", "--quiet", str(bundle), "clone")
    assert await run_git("symbolic-ref", "HEAD", cwd=tmp_path / "clone") == "refs/heads/side/branch"
    assert (tmp_path / "clone/b.txt").exists()


async def test_a_bundle_leaves_out_what_the_reader_has(
    host: BuiltinHost, name: RepositoryName, worked_on: Path, tmp_path: Path, run_git: RunGit
) -> None:
    full = await write_bundle(host, name, tmp_path / "full.bundle")
    await run_git("clone", "--quiet", str(full), "clone")
    clone = tmp_path / "clone"
    have = await run_git("rev-parse", "main", cwd=clone)

    (worked_on / "b.txt").write_text("two\n" * 1001)
    await run_git("commit", "--quiet", "-a", "-m", "Fourth", cwd=worked_on)
    await run_git("push", "--quiet", "origin", "side/branch", cwd=worked_on)
    side = await run_git("rev-parse", "side/branch", cwd=worked_on)

    update = await write_bundle(host, name, tmp_path / "new.bundle", have=[have, "f" * 40, "nonsense"])
    assert f"-{have}" in update.read_bytes().split(b"\n\n")[0].decode().split()
    await run_git("fetch", "--quiet", str(update), "refs/heads/*:refs/remotes/origin/*", cwd=clone)
    assert await run_git("rev-parse", "origin/side/branch", cwd=clone) == side
    await run_git("fsck", "--strict", "--full", cwd=clone)
    with pytest.raises(Exception, match="lacks these prerequisite"):
        await run_git("clone", "--quiet", str(update), "other")


async def test_a_small_change_of_a_large_file_makes_a_small_bundle(
    host: BuiltinHost, name: RepositoryName, worked_on: Path, tmp_path: Path, run_git: RunGit
) -> None:
    have = ""
    data = os.urandom(200_000).hex()
    for content in (data, data + "x"):
        (worked_on / "large.txt").write_text(content)
        await run_git("add", ".", cwd=worked_on)
        await run_git("commit", "--quiet", "-m", "Large", cwd=worked_on)
        await run_git("push", "--quiet", "origin", "side/branch", cwd=worked_on)
        have = have or await run_git("rev-parse", "HEAD", cwd=worked_on)
    update = await write_bundle(host, name, tmp_path / "small.bundle", have=[have])
    assert update.stat().st_size < 10_000
    await run_git("fetch", "--quiet", str(update), "refs/heads/*:refs/updated/*", cwd=worked_on)


async def test_a_bundle_with_nothing_new_still_moves_references(
    host: BuiltinHost, name: RepositoryName, worked_on: Path, tmp_path: Path, run_git: RunGit
) -> None:
    full = await write_bundle(host, name, tmp_path / "full.bundle")
    await run_git("clone", "--quiet", str(full), "clone")
    clone = tmp_path / "clone"
    await run_git("push", "--quiet", "origin", "side/branch:refs/heads/again", cwd=worked_on)
    side = await run_git("rev-parse", "side/branch", cwd=worked_on)
    update = await write_bundle(host, name, tmp_path / "none.bundle", have=[side])
    await run_git("fetch", "--quiet", str(update), "refs/heads/*:refs/remotes/origin/*", cwd=clone)
    assert await run_git("rev-parse", "origin/again", cwd=clone) == side


async def test_a_bundle_of_a_missing_branch_is_refused_on_entry(
    host: BuiltinHost, name: RepositoryName
) -> None:
    await host.ensure(name)
    with pytest.raises(NotFoundError, match="no branch 'gone'"):
        async with host.bundle(name, branch="gone"):
            pass


async def test_a_bundle_that_is_not_read_to_its_end_leaves_no_process(
    host: BuiltinHost, name: RepositoryName, worked_on: Path, run_git: RunGit
) -> None:
    (worked_on / "large").write_bytes(os.urandom(4_000_000))
    await run_git("add", ".", cwd=worked_on)
    await run_git("commit", "--quiet", "-m", "Large", cwd=worked_on)
    await run_git("push", "--quiet", "origin", "side/branch", cwd=worked_on)
    async with host.bundle(name) as pieces:
        assert (await anext(pieces)).startswith(b"# v2 git bundle\n")
        await anext(pieces)
        assert processes_in(host.path_of(name))
    assert processes_in(host.path_of(name)) == []


def processes_in(directory: Path) -> list[str]:
    """Command lines of the processes whose working directory is `directory`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == directory:
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found
