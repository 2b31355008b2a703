"""How git is run: the processes themselves, without a repository's meaning."""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from fermata.kit.errors import NotFoundError, RepositoryError, TimedOutError
from fermata.workspaces import git


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def alias(script: str) -> dict[str, str]:
    """An environment in which `git slow` runs `script`, in a process that git starts."""
    return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "alias.slow", "GIT_CONFIG_VALUE_0": f"!{script}"}


async def all_gone(pids: list[int]) -> bool:
    """Whether they end. A killed process closes its files a moment before it is gone."""
    for _ in range(200):
        if not any(is_alive(pid) for pid in pids):
            return True
        await asyncio.sleep(0.01)
    return False


@pytest.fixture
def slow_alias() -> dict[str, str]:
    """`git slow` writes its process id and that of a child, then waits; neither heeds a polite signal."""
    wait = "while :; do sleep 1; done"
    return alias(f"trap '' TERM; sh -c 'trap \"\" TERM; {wait}' & echo $$ $!; {wait}")


async def test_git_sees_nothing_of_the_servers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".gitconfig").write_text("[user]\n\tname = Somebody\n")
    for key, value in {
        "HOME": str(tmp_path),
        "FERMATA_GITHUB_TOKEN": "secret",
        "GIT_DIR": "/elsewhere",
        "GIT_TRACE": "1",
        "GIT_SSL_NO_VERIFY": "1",
        "https_proxy": "http://proxy:1",
    }.items():
        monkeypatch.setenv(key, value)
    done = await git.run(
        "slow",
        cwd=tmp_path,
        environment=alias("env"),
    )
    seen = dict(line.split("=", 1) for line in done.stdout.decode().splitlines() if "=" in line)
    assert "FERMATA_GITHUB_TOKEN" not in seen
    assert "GIT_DIR" not in seen
    assert "GIT_SSL_NO_VERIFY" not in seen
    assert seen["HOME"] == "/nonexistent"
    assert seen["GIT_TERMINAL_PROMPT"] == "0"
    assert seen["https_proxy"] == "http://proxy:1"
    assert done.stderr == ""
    done = await git.run("config", "--get", "user.name", cwd=tmp_path)
    assert (done.exit_code, done.stdout) == (1, b"")


async def test_a_time_limit_ends_git_and_its_children(tmp_path: Path, slow_alias: dict[str, str]) -> None:
    with pytest.raises(TimedOutError, match="git slow took too long"):
        await git.run(
            "slow", cwd=tmp_path, time_limit_for=timedelta(milliseconds=100), environment=slow_alias
        )


async def test_a_child_that_outlives_git_with_its_output_open_is_ended_at_the_time_limit(
    tmp_path: Path,
) -> None:
    environment = alias("sleep 600 & echo $!; exit 0")
    pids: list[int] = []

    async def work() -> None:
        limit = timedelta(milliseconds=100)
        async with git.start("slow", cwd=tmp_path, time_limit_for=limit, environment=environment) as process:
            pids.append(int(await process.read()))
            await process.read()
            await process.wait()

    with pytest.raises(TimedOutError):
        await work()
    assert await all_gone(pids)


async def test_cancelling_ends_git_and_its_children(tmp_path: Path, slow_alias: dict[str, str]) -> None:
    started: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        async with git.start("slow", cwd=tmp_path, environment=slow_alias) as process:
            started.set_result([int(word) for word in (await process.read()).split()])
            await process.read()

    task = asyncio.ensure_future(work())
    pids = await started
    assert all(is_alive(pid) for pid in pids)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await all_gone(pids)


async def test_cancelling_twice_still_ends_git_and_its_children(
    tmp_path: Path, slow_alias: dict[str, str]
) -> None:
    started: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        async with git.start("slow", cwd=tmp_path, environment=slow_alias) as process:
            started.set_result([int(word) for word in (await process.read()).split()])
            await process.read()

    task = asyncio.ensure_future(work())
    pids = await started
    task.cancel()
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await all_gone(pids)


async def test_an_input_that_fails_ends_git_and_is_raised(tmp_path: Path) -> None:
    class LostError(Exception):
        pass

    async def source() -> AsyncIterator[bytes]:
        yield b"x"
        raise LostError

    async def work() -> None:
        async with git.start("hash-object", "--stdin", cwd=tmp_path) as process:
            process.feed(source())
            while await process.read():
                pass
            await process.wait()

    with pytest.raises(LostError):
        await work()


async def test_an_input_larger_than_the_pipes_is_copied_while_the_output_is_read(tmp_path: Path) -> None:
    count = 20_000
    done = await git.run("init", "--bare", "--quiet", cwd=tmp_path)
    assert done.exit_code == 0
    done = await git.run(
        "cat-file", "--batch-check", cwd=tmp_path, stdin=b"1" * 40 + b"\n" + (b"2" * 40 + b"\n") * count
    )
    assert done.stdout.count(b" missing\n") == count + 1


async def test_git_that_does_not_read_its_input_is_no_error(tmp_path: Path) -> None:
    done = await git.run("version", cwd=tmp_path, stdin=os.urandom(1_000_000))
    assert done.stdout.startswith(b"git version")
    assert done.exit_code == 0


async def test_transports_that_were_not_asked_for_are_refused(tmp_path: Path) -> None:
    for url in ("ext::sh -c touch% x", "ssh://localhost/x", "https://localhost/x", "git://localhost/x"):
        done = await git.run("ls-remote", url, cwd=tmp_path)
        assert done.exit_code == 128
        assert "not allowed" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stderr", "error", "sentence"),
    [
        (
            "fatal: unable to write /srv/x: No space left on device",
            RepositoryError,
            "disk of the server is full",
        ),
        ("fatal: repository 'https://h/x/' not found", NotFoundError, "was not found"),
        (
            "fatal: unable to access 'https://h/': Could not resolve host: h",
            RepositoryError,
            "cannot be reached",
        ),
        ("fatal: early EOF", RepositoryError, "was lost"),
        ("fatal: something in /srv/x", RepositoryError, r"^git fetch failed \(exit status 7\)\.$"),
    ],
)
def test_what_git_says_becomes_a_sentence_without_paths(
    stderr: str, error: type[Exception], sentence: str
) -> None:
    failure = git.failure("fetch", 7, stderr)
    assert type(failure) is error
    with pytest.raises(error, match=sentence):
        raise failure
    assert "/srv" not in failure.message
