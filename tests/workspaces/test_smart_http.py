import asyncio
import base64
import gzip
import os
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fermata.kit.errors import BodyTooLargeError, InvalidRequestError, NotFoundError
from fermata.workspaces import smart_http
from fermata.workspaces.contract import GitRequest
from fermata.workspaces.model import RepositoryName
from fermata.workspaces.providers.builtin import BuiltinHost

RunGit = Callable[..., Awaitable[str]]


@pytest.fixture
async def clone(
    served: Any, host: BuiltinHost, name: RepositoryName, tmp_path: Path, run_git: RunGit
) -> Path:
    await host.ensure(name)
    await run_git("clone", "--quiet", served.url(name), "clone")
    return tmp_path / "clone"


async def commit(run_git: RunGit, clone: Path, file: str, data: bytes = b"x\n") -> str:
    (clone / file).write_bytes(data)
    await run_git("add", ".", cwd=clone)
    await run_git("commit", "--quiet", "-m", f"Add {file}", cwd=clone)
    return await run_git("rev-parse", "HEAD", cwd=clone)


@pytest.mark.parametrize("protocol", ["0", "1", "2"])
async def test_a_person_clones_commits_and_pushes(
    served: Any,
    host: BuiltinHost,
    name: RepositoryName,
    tmp_path: Path,
    run_git: RunGit,
    protocol: str,
) -> None:
    await host.ensure(name)
    await run_git("clone", "--quiet", served.url(name), "clone", protocol=protocol)
    clone = tmp_path / "clone"
    assert (clone / "README.md").exists()
    pushed = await commit(run_git, clone, "a.txt")
    await run_git("push", "--quiet", "origin", "main", "main:side/one", cwd=clone, protocol=protocol)
    assert (await host.head(name)).commit == pushed
    assert (await host.head(name, "side/one")).commit == pushed
    await run_git("clone", "--quiet", served.url(name), "again", protocol=protocol)
    assert (tmp_path / "again/a.txt").read_text() == "x\n"
    # For a push git knows no version 2, and says nothing instead.
    sent = {headers.get("Git-Protocol") for _, path, headers in served.requests if "upload" in path}
    assert sent == {None if protocol == "0" else f"version={protocol}"}


async def test_without_a_key_nothing_is_given(
    served: Any, host: BuiltinHost, name: RepositoryName, run_git: RunGit
) -> None:
    await host.ensure(name)
    with pytest.raises(Exception, match="Authentication failed"):
        await run_git("clone", served.url(name, key="wrong"), "clone")


async def test_an_unknown_repository_is_not_found_by_git(
    served: Any, name: RepositoryName, run_git: RunGit
) -> None:
    with pytest.raises(Exception, match="not found"):
        await run_git("clone", served.url(name), "clone")


async def test_a_large_push_is_streamed_and_comes_back_whole(
    served: Any, host: BuiltinHost, name: RepositoryName, clone: Path, tmp_path: Path, run_git: RunGit
) -> None:
    data = os.urandom(5_000_000)
    pushed = await commit(run_git, clone, "large", data)
    await run_git("push", "--quiet", "origin", "main", cwd=clone)
    assert (await host.head(name)).commit == pushed
    # Over 1 MB git sends a probe and then a body without a length.
    assert any(headers.get("Transfer-Encoding") == "chunked" for _, _, headers in served.requests)
    await run_git("clone", "--quiet", served.url(name), "again")
    assert (tmp_path / "again/large").read_bytes() == data


async def test_a_fetch_with_a_compressed_request_is_understood(
    served: Any, name: RepositoryName, clone: Path, tmp_path: Path, run_git: RunGit
) -> None:
    for number in range(30):
        await run_git("commit", "--quiet", "--allow-empty", "-m", f"Number {number}", cwd=clone)
        await run_git("branch", f"b{number}", cwd=clone)
    await run_git("push", "--quiet", "--all", "origin", cwd=clone)
    await run_git("clone", "--quiet", served.url(name), "again")
    for branch in ("b0", "b29"):
        wanted = await run_git("rev-parse", branch, cwd=clone)
        assert await run_git("rev-parse", f"origin/{branch}", cwd=tmp_path / "again") == wanted
    assert any(headers.get("Content-Encoding") == "gzip" for _, _, headers in served.requests)


async def test_a_partial_clone_fetches_blobs_when_they_are_needed(
    served: Any, name: RepositoryName, clone: Path, tmp_path: Path, run_git: RunGit
) -> None:
    await commit(run_git, clone, "a.txt")
    await run_git("push", "--quiet", "origin", "main", cwd=clone)
    await run_git("clone", "--quiet", "--no-checkout", "--filter=blob:none", served.url(name), "partial")
    partial = tmp_path / "partial"
    missing = await run_git("rev-list", "--objects", "--missing=print", "HEAD", cwd=partial)
    assert "?" in missing
    assert await run_git("show", "HEAD:a.txt", cwd=partial) == "x"


async def test_of_concurrent_pushes_to_one_branch_one_wins_and_nothing_is_lost(
    served: Any, host: BuiltinHost, name: RepositoryName, clone: Path, tmp_path: Path, run_git: RunGit
) -> None:
    clones = []
    for number in range(4):
        await run_git("clone", "--quiet", served.url(name), f"c{number}")
        clones.append(tmp_path / f"c{number}")
    tips = [await commit(run_git, path, f"{path.name}.txt") for path in clones]
    pushes = [run_git("push", "--quiet", "origin", "main", cwd=path) for path in clones]
    results = await asyncio.gather(*pushes, return_exceptions=True)
    winners = [tip for tip, result in zip(tips, results, strict=True) if result == ""]
    assert len(winners) == 1
    assert (await host.head(name)).commit == winners[0]
    await run_git("fsck", "--strict", "--full", cwd=host.path_of(name))


async def test_concurrent_pushes_to_different_branches_all_arrive(
    served: Any, host: BuiltinHost, name: RepositoryName, clone: Path, tmp_path: Path, run_git: RunGit
) -> None:
    clones = []
    for number in range(4):
        await run_git("clone", "--quiet", served.url(name), f"c{number}")
        clones.append(tmp_path / f"c{number}")
    tips = [await commit(run_git, path, f"{path.name}.txt") for path in clones]
    await asyncio.gather(
        *(run_git("push", "--quiet", "origin", f"HEAD:{path.name}", cwd=path) for path in clones)
    )
    for path, tip in zip(clones, tips, strict=True):
        assert (await host.head(name, path.name)).commit == tip


async def test_a_push_that_would_delete_the_default_branch_is_refused(
    served: Any, host: BuiltinHost, name: RepositoryName, clone: Path, run_git: RunGit
) -> None:
    with pytest.raises(Exception, match="deletion of the current branch prohibited"):
        await run_git("push", "origin", ":main", cwd=clone)
    assert (await host.head(name)).branch == "main"


async def test_a_push_of_a_malicious_tree_is_refused(
    served: Any, host: BuiltinHost, name: RepositoryName, clone: Path, run_git: RunGit
) -> None:
    blob = await run_git("hash-object", "-w", "README.md", cwd=clone)
    (clone / "tree").write_bytes(b"100644 .git\0" + bytes.fromhex(blob))
    tree = await run_git("hash-object", "-w", "-t", "tree", "--literally", "tree", cwd=clone)
    evil = await run_git("commit-tree", "-m", "Evil", tree, cwd=clone)
    with pytest.raises(Exception, match="hasDotgit"):
        await run_git("push", "origin", f"{evil}:refs/heads/evil", cwd=clone)
    with pytest.raises(NotFoundError):
        await host.head(name, "evil")


async def test_hooks_in_a_repository_do_not_run(
    host: BuiltinHost, name: RepositoryName, clone: Path, tmp_path: Path, run_git: RunGit
) -> None:
    hooks = host.path_of(name) / "hooks"
    hooks.mkdir()
    (hooks / "post-receive").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (hooks / "post-receive").chmod(0o755)
    await commit(run_git, clone, "a.txt")
    await run_git("push", "--quiet", "origin", "main", cwd=clone)
    assert not (tmp_path / "ran").exists()


async def test_a_lock_that_a_killed_push_left_does_not_block_the_branch_for_ever(
    host: BuiltinHost, name: RepositoryName, clone: Path, run_git: RunGit
) -> None:
    lock = host.path_of(name) / "refs/heads/main.lock"
    lock.touch()
    pushed = await commit(run_git, clone, "a.txt")
    with pytest.raises(Exception, match="failed to update ref"):
        await run_git("push", "origin", "main", cwd=clone)
    assert lock.exists()
    long_ago = time.time() - 3600
    os.utime(lock, (long_ago, long_ago))
    await run_git("push", "--quiet", "origin", "main", cwd=clone)
    assert (await host.head(name)).commit == pushed


async def test_what_git_tells_the_client_names_no_path_of_the_server(
    host: BuiltinHost, name: RepositoryName, clone: Path, run_git: RunGit, tmp_path: Path
) -> None:
    (host.path_of(name) / "refs/heads/main.lock").touch()
    await commit(run_git, clone, "a.txt")
    with pytest.raises(Exception, match="remote") as caught:
        await run_git("push", "origin", "main", cwd=clone)
    assert str(tmp_path) not in str(caught.value)
    assert "/refs/heads/main.lock': File exists" in str(caught.value)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
async def test_a_path_is_hidden_wherever_the_output_is_cut(size: int) -> None:
    text = b"a /srv/x b /srv /srv/srv/x/ /srv/"

    async def pieces() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(text), size):
            yield text[start : start + size]

    shown = b"".join([piece async for piece in smart_http._hide(pieces(), b"/srv/x")])
    assert shown == b"a .///// b /srv /srv.////// /srv/"


def processes_in(directory: Path) -> int:
    count = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            count += (entry / "cwd").readlink() == directory
        except OSError:
            continue
    return count


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_push_that_is_cut_off_changes_nothing_and_leaves_no_process(
    served: Any, host: BuiltinHost, name: RepositoryName, clone: Path
) -> None:
    before = await host.head(name)
    path = host.path_of(name)
    sent = asyncio.Event()

    async def half_a_push() -> AsyncIterator[bytes]:
        line = f"{before.commit} {'1' * 40} refs/heads/main\0 report-status\n".encode()
        yield b"%04x%s0000PACK\0\0\0\2\0\0\0\3" % (len(line) + 4, line)
        sent.set()
        await asyncio.sleep(60)

    key = base64.b64encode(b"x:key-of-a-person").decode()
    headers = {"content-type": "application/x-git-receive-pack-request", "authorization": f"Basic {key}"}
    async with aiohttp.ClientSession() as session:
        url = f"{served.base}/{name}.git/git-receive-pack"
        request = asyncio.ensure_future(session.post(url, data=half_a_push(), headers=headers))
        await sent.wait()
        await until(lambda: processes_in(path) > 0)
        request.cancel()
        await asyncio.wait([request])
    await until(lambda: processes_in(path) == 0)
    assert await host.head(name) == before
    assert list(path.rglob("*.lock")) == []


async def test_a_client_that_stops_reading_a_clone_leaves_no_process(
    host: BuiltinHost, name: RepositoryName, clone: Path, run_git: RunGit
) -> None:
    pushed = await commit(run_git, clone, "large", os.urandom(8_000_000))
    await run_git("push", "--quiet", "origin", "main", cwd=clone)
    line = f"want {pushed}\n".encode()
    body = b"%04x%s00000009done\n" % (len(line) + 4, line)
    response = await host.answer(name, read_request(body))
    assert await anext(response.body)
    assert processes_in(host.path_of(name)) > 0
    await response.body.aclose()
    assert processes_in(host.path_of(name)) == 0


def read_request(body: bytes, encoding: str | None = None, **other: Any) -> GitRequest:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    given = {
        "method": "POST",
        "tail": "git-upload-pack",
        "content_type": "application/x-git-upload-pack-request",
        "content_encoding": encoding,
        "body": pieces(),
    }
    return GitRequest(**{**given, **other})


async def test_a_compressed_body_that_expands_without_end_is_refused(
    host: BuiltinHost, name: RepositoryName
) -> None:
    await host.ensure(name)
    bomb = gzip.compress(bytes(smart_http.READ_BODY_LIMIT + 1))
    with pytest.raises(BodyTooLargeError, match="larger than 16777216 bytes"):
        await host.answer(name, read_request(bomb, "gzip"))


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"not gzip", "gzip"),
        (gzip.compress(b"0000")[:-5], "gzip"),
        (gzip.compress(b"0000") * 2, "gzip"),
        (b"", "gzip"),
        (zlib.compress(b"0000"), "deflate"),
        (b"0000", "br"),
    ],
)
async def test_a_body_that_cannot_be_decoded_is_refused(
    host: BuiltinHost, name: RepositoryName, body: bytes, encoding: str
) -> None:
    await host.ensure(name)
    with pytest.raises(InvalidRequestError):
        await host.answer(name, read_request(body, encoding))


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "GET"},
        {"tail": "HEAD"},
        {"tail": "objects/info/packs"},
        {"tail": "../../x/git-upload-pack"},
        {"tail": "git-upload-archive"},
        {"method": "GET", "tail": "info/refs"},
        {"method": "GET", "tail": "info/refs", "service": "git-upload-archive"},
        {"method": "POST", "tail": "info/refs", "service": "git-upload-pack"},
    ],
)
async def test_only_the_smart_protocol_is_served(
    host: BuiltinHost, name: RepositoryName, changed: dict[str, str]
) -> None:
    await host.ensure(name)
    with pytest.raises(NotFoundError):
        await host.answer(name, read_request(b"0000", **changed))


async def test_a_body_of_another_type_is_refused(host: BuiltinHost, name: RepositoryName) -> None:
    await host.ensure(name)
    with pytest.raises(
        InvalidRequestError, match="content type must be application/x-git-upload-pack-request"
    ):
        await host.answer(name, read_request(b"0000", content_type="text/plain"))


async def test_a_strange_protocol_header_is_not_passed_on(host: BuiltinHost, name: RepositoryName) -> None:
    await host.ensure(name)
    for header in ("version=2\nx", "version=9", "x=version=2", ""):
        request = GitRequest("GET", "info/refs", service="git-upload-pack", protocol=header)
        response = await host.answer(name, request)
        assert (await anext(response.body)).startswith(b"001e# service=git-upload-pack\n0000")


@pytest.mark.parametrize(
    ("request_", "writes"),
    [
        (GitRequest("GET", "info/refs", service="git-upload-pack"), False),
        (GitRequest("GET", "info/refs", service="git-receive-pack"), True),
        (GitRequest("POST", "git-upload-pack"), False),
        (GitRequest("POST", "git-receive-pack"), True),
    ],
)
def test_a_request_says_whether_it_writes(request_: GitRequest, writes: bool) -> None:
    assert request_.writes is writes
