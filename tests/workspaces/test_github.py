import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web

from fermata.kit.clock import SystemClock
from fermata.kit.errors import ConflictError, FermataError, NotFoundError, RepositoryError, TimedOutError
from fermata.workspaces.contract import GitRequest
from fermata.workspaces.git import one_piece
from fermata.workspaces.locks import hold_lock
from fermata.workspaces.model import BranchUpdate, Head, RepositoryName
from fermata.workspaces.providers.builtin import BuiltinHost
from fermata.workspaces.providers.github import GitHubHost

RunGit = Callable[..., Awaitable[str]]
TOKEN = "ghp_s3cr3tT0kenThatMustNotLeak"
BASIC = "Basic " + base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()


@dataclass
class FakeGitHub:
    """GitHub's REST for repositories and its git over HTTP, over real repositories and a real socket."""

    store: BuiltinHost
    base: str = ""
    organizations: set[str] = field(default_factory=lambda: {"recoupable"})
    user: str = "ada"
    public: set[RepositoryName] = field(default_factory=set)
    #: Answers given instead of the real ones, by method and path: status, headers, body.
    canned: dict[tuple[str, str], tuple[int, dict[str, str], Any]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    secrets_in_urls: int = 0
    #: A creation waits here, so that two can be under way at once.
    together: asyncio.Barrier | None = None
    creating: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: Packs are not sent before this is set.
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    fetching: asyncio.Event = field(default_factory=asyncio.Event)

    async def rest(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        if canned := self.canned.get((request.method, request.path)):
            status, headers, body = canned
            return web.json_response(body, status=status, headers=headers)
        if request.headers.get("authorization") not in (f"Bearer {TOKEN}", None):
            return web.json_response({"message": "Bad credentials"}, status=401)
        path = request.match_info["path"].split("/")
        match request.method, path:
            case "GET", ["repos", owner, name]:
                return await self.show(request, RepositoryName(owner, name))
            case "GET", ["user"]:
                return web.json_response({"login": self.user})
            case "POST", ["orgs", owner, "repos"] if owner in self.organizations:
                return await self.create(owner, await request.json())
            case "POST", ["user", "repos"]:
                return await self.create(self.user, await request.json())
        return web.json_response({"message": "Not Found"}, status=404)

    def may_read(self, request: web.Request, name: RepositoryName) -> bool:
        return name in self.public or "authorization" in request.headers

    async def show(self, request: web.Request, name: RepositoryName) -> web.Response:
        if await self.store.exists(name) and self.may_read(request, name):
            return web.json_response({"full_name": str(name), "private": name not in self.public})
        return web.json_response({"message": "Not Found"}, status=404)

    async def create(self, owner: str, body: dict[str, Any]) -> web.Response:
        assert body == {"name": body["name"], "private": True, "auto_init": True}
        if self.together is not None:
            await self.together.wait()
        name = RepositoryName(owner, body["name"])
        async with self.creating:
            existed = await self.store.exists(name)
            await self.store.ensure(name)
        if existed:
            errors = [{"resource": "Repository", "message": "name already exists on this account"}]
            message = {"message": "Repository creation failed.", "errors": errors}
            return web.json_response(message, status=422)
        return web.json_response({"full_name": str(name)}, status=201)

    async def git(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        self.secrets_in_urls += TOKEN in request.path_qs
        if canned := self.canned.get((request.method, request.path)):
            return web.Response(status=canned[0], headers=canned[1])
        name = RepositoryName(request.match_info["owner"], request.match_info["name"])
        asked = GitRequest(
            method=request.method,
            tail=request.match_info["tail"],
            service=request.query.get("service"),
            content_type=request.headers.get("content-type"),
            content_encoding=request.headers.get("content-encoding"),
            protocol=request.headers.get("git-protocol"),
        )
        allowed = request.headers.get("authorization") == BASIC
        if not allowed and (asked.writes or name not in self.public):
            return web.Response(status=401, headers={"www-authenticate": 'Basic realm="GitHub"'})
        body = await request.read()
        if b"command=fetch" in body:
            self.fetching.set()
            await self.gate.wait()
        asked = replace(asked, body=one_piece(body))
        try:
            answer = await self.store.answer(name, asked)
        except NotFoundError:
            return web.Response(status=404)
        response = web.StreamResponse(headers=dict(answer.headers))
        await response.prepare(request)
        async with aclosing(answer.body) as pieces:
            async for piece in pieces:
                await response.write(piece)
        return response


@pytest.fixture
async def github(tmp_path: Path) -> AsyncIterator[FakeGitHub]:
    fake = FakeGitHub(BuiltinHost(root=tmp_path / "on-github", clock=SystemClock()))
    fake.gate.set()
    application = web.Application(client_max_size=0)
    application.router.add_route("*", "/{owner}/{name}.git/{tail:.*}", fake.git)
    application.router.add_route("*", "/api/{path:.*}", fake.rest)
    runner = web.AppRunner(application, auto_decompress=False, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield fake
    await runner.cleanup()


MakeHost = Callable[..., GitHubHost]


@pytest.fixture
async def make_host(github: FakeGitHub, tmp_path: Path) -> AsyncIterator[MakeHost]:
    hosts: list[GitHubHost] = []

    def make(token: str | None = TOKEN, **changed: Any) -> GitHubHost:
        given = {"cache": tmp_path / "cache", "api_url": f"{github.base}/api", "clone_base": github.base}
        hosts.append(GitHubHost(token=token, **{**given, **changed}))
        return hosts[-1]

    yield make
    for host in hosts:
        await host.close()


@pytest.fixture
def hub(make_host: MakeHost) -> GitHubHost:
    return make_host()


async def bundle_to(host: GitHubHost, name: RepositoryName, path: Path, **options: Any) -> Path:
    async with host.bundle(name, **options) as pieces:
        path.write_bytes(b"".join([piece async for piece in pieces]))
    return path


async def test_a_missing_repository_is_made_in_the_organization(
    github: FakeGitHub, hub: GitHubHost, name: RepositoryName
) -> None:
    assert not await hub.exists(name)
    await hub.ensure(name)
    assert await hub.exists(name)
    assert ("POST", "/api/orgs/recoupable/repos") in github.requests
    assert await hub.head(name) == await github.store.head(name)


async def test_a_missing_repository_of_the_tokens_user_is_made_there(
    github: FakeGitHub, hub: GitHubHost
) -> None:
    await hub.ensure(RepositoryName("Ada", "notes"))
    assert await github.store.exists(RepositoryName("ada", "notes"))


async def test_a_repository_under_somebody_elses_name_cannot_be_made(hub: GitHubHost) -> None:
    with pytest.raises(RepositoryError, match="refused making grace/notes: the token does not permit it"):
        await hub.ensure(RepositoryName("grace", "notes"))


async def test_an_existing_repository_is_left_alone_and_asked_for_once(
    github: FakeGitHub, hub: GitHubHost, name: RepositoryName
) -> None:
    await github.store.ensure(name)
    before = await github.store.head(name)
    for _ in range(3):
        await hub.ensure(name)
    assert github.requests == [("GET", f"/api/repos/{name}")]
    assert await github.store.head(name) == before


async def test_who_loses_the_race_to_make_a_repository_succeeds_too(
    github: FakeGitHub, make_host: MakeHost, name: RepositoryName
) -> None:
    github.together = asyncio.Barrier(2)
    await asyncio.gather(make_host().ensure(name), make_host().ensure(name))
    assert [request[0] for request in github.requests].count("POST") == 2
    assert await github.store.exists(name)


@pytest.mark.parametrize(
    ("status", "headers", "body", "sentence"),
    [
        (401, {}, {"message": "Bad credentials"}, "does not accept the token"),
        (403, {}, {"message": "Resource not accessible"}, "the token does not permit it"),
        (403, {"x-ratelimit-remaining": "0"}, {"message": "API rate limit exceeded"}, "rate limit"),
        (403, {"retry-after": "60"}, {"message": "secondary rate limit"}, "rate limit"),
        (429, {}, {}, "rate limit"),
        (500, {}, {}, r"failed while reading .* \(status 500\); try again later"),
        (503, {}, "<html>", "try again later"),
        (418, {}, {"message": "I am a teapot"}, r"\(status 418\): I am a teapot"),
        (418, {}, [], "no reason given"),
    ],
)
async def test_what_github_refuses_becomes_a_sentence(
    github: FakeGitHub,
    hub: GitHubHost,
    name: RepositoryName,
    status: int,
    headers: dict[str, str],
    body: Any,
    sentence: str,
) -> None:
    github.canned["GET", f"/api/repos/{name}"] = (status, headers, body)
    with pytest.raises(RepositoryError, match=sentence) as caught:
        await hub.ensure(name)
    assert TOKEN not in str(caught.value)
    # A failure is not remembered.
    github.canned.clear()
    await hub.ensure(name)


async def test_a_creation_that_is_refused_for_another_reason_says_it(
    github: FakeGitHub, hub: GitHubHost, name: RepositoryName
) -> None:
    body = {"message": "Repository creation failed.", "errors": [{"message": "quota"}, "odd"]}
    github.canned["POST", "/api/orgs/recoupable/repos"] = (422, {}, body)
    with pytest.raises(RepositoryError, match=r"\(status 422\): Repository creation failed."):
        await hub.ensure(name)


async def test_a_host_that_is_down_cannot_be_reached(make_host: MakeHost, name: RepositoryName) -> None:
    host = make_host(api_url="http://127.0.0.1:9", clone_base="http://127.0.0.1:9")
    with pytest.raises(RepositoryError, match="GitHub cannot be reached"):
        await host.ensure(name)
    with pytest.raises(RepositoryError, match="cannot be reached"):
        await host.head(name)


async def test_the_head_of_a_branch_is_asked_of_github(
    github: FakeGitHub, hub: GitHubHost, name: RepositoryName, tmp_path: Path, run_git: RunGit
) -> None:
    await hub.ensure(name)
    stored = github.store.path_of(name)
    main = await github.store.head(name)
    await run_git("branch", "side/main", cwd=stored)
    assert await hub.head(name) == main
    assert await hub.head(name, "side/main") == Head("side/main", main.commit)
    # A pattern of ls-remote matches the end of a name; the branch must be this very one.
    with pytest.raises(NotFoundError, match="has no branch 'side'"):
        await hub.head(name, "side")
    await run_git("update-ref", "refs/other/refs/heads/odd", main.commit, cwd=stored)
    with pytest.raises(NotFoundError, match="has no branch 'odd'"):
        await hub.head(name, "odd")
    assert not (tmp_path / "cache/recoupable").exists()


async def test_an_empty_repository_has_no_head_and_no_bundle(
    github: FakeGitHub, hub: GitHubHost, name: RepositoryName, run_git: RunGit
) -> None:
    await hub.ensure(name)
    await run_git("update-ref", "-d", "refs/heads/main", cwd=github.store.path_of(name))
    with pytest.raises(NotFoundError, match="has no commits"):
        await hub.head(name)
    with pytest.raises(NotFoundError, match="has no commits"):
        async with hub.bundle(name):
            pass


async def test_a_bundle_follows_what_happens_on_github(
    github: FakeGitHub, hub: GitHubHost, name: RepositoryName, tmp_path: Path, run_git: RunGit
) -> None:
    await hub.ensure(name)
    first = await bundle_to(hub, name, tmp_path / "first.bundle")
    await run_git("clone", "--quiet", str(first), "clone")
    clone = tmp_path / "clone"
    old = await run_git("rev-parse", "HEAD", cwd=clone)

    stored = github.store.path_of(name)
    await run_git("clone", "--quiet", str(stored), "person")
    person = tmp_path / "person"
    (person / "a.txt").write_text("a")
    await run_git("add", ".", cwd=person)
    await run_git("commit", "--quiet", "-m", "Person", cwd=person)
    await run_git("push", "--quiet", "origin", "main:trunk", "main:a", cwd=person)
    await run_git("symbolic-ref", "HEAD", "refs/heads/trunk", cwd=stored)

    second = await bundle_to(hub, name, tmp_path / "second.bundle", have=[old])
    assert f"-{old}" in second.read_bytes().split(b"\n\n")[0].decode().split()
    heads = (await run_git("bundle", "list-heads", str(second))).splitlines()
    new = await run_git("rev-parse", "HEAD", cwd=person)
    assert set(heads) == {
        f"{new} HEAD",
        f"{new} refs/heads/a",
        f"{new} refs/heads/trunk",
        f"{old} refs/heads/main",
    }
    await run_git("fetch", "--quiet", str(second), "refs/heads/*:refs/remotes/origin/*", cwd=clone)

    # A branch that was deleted may stand in the way of one below its name.
    await run_git("push", "--quiet", "origin", ":a", "main:a/b", cwd=person)
    third = await bundle_to(hub, name, tmp_path / "third.bundle")
    names = {line.split()[1] for line in (await run_git("bundle", "list-heads", str(third))).splitlines()}
    assert names == {"HEAD", "refs/heads/a/b", "refs/heads/trunk", "refs/heads/main"}


async def test_a_bundle_of_what_has_not_changed_transfers_nothing(
    github: FakeGitHub, hub: GitHubHost, name: RepositoryName, tmp_path: Path
) -> None:
    await hub.ensure(name)
    await bundle_to(hub, name, tmp_path / "first.bundle")
    github.requests.clear()
    await bundle_to(hub, name, tmp_path / "second.bundle")
    # One announcement and one list of references; no pack.
    assert [tail for _, path in github.requests if (tail := path.rpartition("/")[2])] == [
        "refs",
        "git-upload-pack",
    ]


async def test_many_bundles_at_once_share_one_mirror(
    github: FakeGitHub, make_host: MakeHost, name: RepositoryName, tmp_path: Path, run_git: RunGit
) -> None:
    hosts = [make_host() for _ in range(3)]
    await hosts[0].ensure(name)
    paths = await asyncio.gather(
        *(
            bundle_to(host, name, tmp_path / f"{index}{turn}.bundle")
            for index, host in enumerate(hosts)
            for turn in range(2)
        )
    )
    for path in paths:
        assert "refs/heads/main" in await run_git("bundle", "list-heads", str(path))
    await run_git("fsck", cwd=tmp_path / f"cache/{name}.git")


async def test_a_lock_that_a_killed_fetch_left_does_not_block_the_mirror(
    github: FakeGitHub, hub: GitHubHost, name: RepositoryName, tmp_path: Path, run_git: RunGit
) -> None:
    await hub.ensure(name)
    await bundle_to(hub, name, tmp_path / "first.bundle")
    (tmp_path / f"cache/{name}.git/refs/heads/side.lock").touch()
    (tmp_path / f"cache/{name}.git/HEAD.lock").touch()
    await run_git("branch", "side", "main", cwd=github.store.path_of(name))
    second = await bundle_to(hub, name, tmp_path / "second.bundle", branch="side")
    assert "refs/heads/side" in await run_git("bundle", "list-heads", str(second))


_FETCHER = """
import asyncio, sys
from pathlib import Path
from fermata.workspaces.model import RepositoryName
from fermata.workspaces.providers.github import GitHubHost

async def main():
    host = GitHubHost(token=sys.argv[1], cache=Path(sys.argv[2]), clone_base=sys.argv[3])
    async with host.bundle(RepositoryName(*sys.argv[4].split("/"))) as pieces:
        pass

asyncio.run(main())
"""


async def test_a_fetch_that_outlives_its_server_keeps_others_from_the_mirror(
    github: FakeGitHub, hub: GitHubHost, name: RepositoryName, tmp_path: Path
) -> None:
    await github.store.ensure(name)
    github.gate.clear()
    arguments = (TOKEN, str(tmp_path / "cache"), github.base, str(name))
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", _FETCHER, *arguments)
    await github.fetching.wait()
    server.kill()
    await server.wait()
    lock = tmp_path / f"cache/{name}.lock"
    with pytest.raises(TimedOutError):
        async with hold_lock(lock, time_limit_for=timedelta(milliseconds=50)):
            pass
    github.gate.set()
    await bundle_to(hub, name, tmp_path / "out.bundle")


async def test_work_of_a_sandbox_is_pushed_to_github_by_the_server(
    github: FakeGitHub, hub: GitHubHost, name: RepositoryName, tmp_path: Path, run_git: RunGit
) -> None:
    await hub.ensure(name)
    old = await hub.head(name)
    given = await bundle_to(hub, name, tmp_path / "given.bundle")
    await run_git("clone", "--quiet", str(given), "sandbox")
    sandbox = tmp_path / "sandbox"
    tips = []
    for file in ("a.txt", "b.txt"):
        (sandbox / file).write_text(file)
        await run_git("add", ".", cwd=sandbox)
        await run_git("commit", "--quiet", "-m", file, cwd=sandbox)
        tips.append(await run_git("rev-parse", "HEAD", cwd=sandbox))
    await run_git("bundle", "create", "--quiet", "../out.bundle", "main", cwd=sandbox)

    async def pieces() -> AsyncIterator[bytes]:
        yield (tmp_path / "out.bundle").read_bytes()

    await hub.receive(name, pieces(), [BranchUpdate("main", old.commit, tips[1])])
    assert await github.store.head(name) == Head("main", tips[1])
    await run_git("update-ref", "refs/heads/main", tips[0], cwd=github.store.path_of(name))
    with pytest.raises(ConflictError, match="moved in the meantime"):
        await hub.receive(name, pieces(), [BranchUpdate("main", old.commit, tips[1])])


async def test_without_a_token_public_repositories_can_be_read_and_nothing_else(
    github: FakeGitHub, make_host: MakeHost, name: RepositoryName, tmp_path: Path
) -> None:
    host = make_host(token=None)
    public = RepositoryName("recoupable", "public")
    for repository in (name, public):
        await github.store.ensure(repository)
    github.public.add(public)
    assert await host.exists(public)
    assert (await host.head(public)).branch == "main"
    await bundle_to(host, public, tmp_path / "public.bundle")
    assert not await host.exists(name)
    with pytest.raises(RepositoryError, match="refused access"):
        await host.head(name)
    with pytest.raises(RepositoryError, match="without a GitHub token"):
        await host.ensure(name)
    with pytest.raises(RepositoryError, match="without a GitHub token"):
        await host.receive(public, github.store.bundle, [])  # type: ignore[arg-type]


async def test_a_wrong_token_is_named_as_the_cause(
    github: FakeGitHub, make_host: MakeHost, name: RepositoryName
) -> None:
    host = make_host(token="ghp_wrong")
    with pytest.raises(RepositoryError, match="does not accept the token"):
        await host.ensure(name)
    with pytest.raises(RepositoryError, match="check the token"):
        await host.head(name)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(404, "was not found"), (403, "check the token"), (429, "rate limit"), (503, "failed; try again later")],
)
async def test_what_github_refuses_to_git_becomes_a_sentence(
    github: FakeGitHub, hub: GitHubHost, name: RepositoryName, status: int, sentence: str
) -> None:
    github.canned["GET", f"/{name}.git/info/refs"] = (status, {}, None)
    with pytest.raises(FermataError, match=sentence):
        await hub.head(name)


async def test_a_repository_that_vanished_is_made_again(
    github: FakeGitHub, hub: GitHubHost, name: RepositoryName
) -> None:
    await hub.ensure(name)
    stored = github.store.path_of(name)
    stored.rename(stored.with_name("elsewhere"))
    with pytest.raises(NotFoundError):
        await hub.head(name)
    await hub.ensure(name)
    assert (await hub.head(name)).branch == "main"


async def test_the_token_is_not_carried_along_by_a_redirect(
    github: FakeGitHub, hub: GitHubHost, name: RepositoryName
) -> None:
    seen: list[dict[str, str]] = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:]
        seen.append(dict(line.split(": ", 1) for line in lines if line))
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(elsewhere, "127.0.0.1", 0)
    async with server:
        target = (
            f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x.git/info/refs?service=git-upload-pack"
        )
        github.canned["GET", f"/{name}.git/info/refs"] = (301, {"location": target}, None)
        github.canned["GET", f"/api/repos/{name}"] = (301, {"location": target}, {})
        with pytest.raises(RepositoryError, match="has moved"):
            await hub.head(name)
        assert await hub.exists(name)
    assert seen == []


async def test_the_token_appears_nowhere_outside_the_requests(
    github: FakeGitHub, make_host: MakeHost, name: RepositoryName, tmp_path: Path
) -> None:
    encoded = BASIC.partition(" ")[2]
    command_lines: list[str] = []

    async def watch() -> None:
        while True:
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    command_lines.append(entry.read_text(errors="replace"))
                except OSError:
                    continue
            await asyncio.sleep(0.002)

    host = make_host()
    watching = asyncio.ensure_future(watch())
    with structlog.testing.capture_logs() as logs:
        await host.ensure(name)
        data = (await bundle_to(host, name, tmp_path / "out.bundle")).read_bytes()
        github.canned["GET", f"/{name}.git/info/refs"] = (403, {}, None)
        with pytest.raises(RepositoryError) as caught:
            await host.head(name)
    watching.cancel()
    await asyncio.wait([watching])
    assert any("ls-remote" in line for line in command_lines)
    assert any(log["event"] == "git failed" for log in logs)
    texts = [*command_lines, json.dumps(logs, default=str), repr(vars(host)), str(caught.value), repr(caught)]
    files = [path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    for secret in (TOKEN, encoded):
        assert not any(secret in text for text in texts)
        assert not any(secret.encode() in content for content in (data, *files))
    assert github.secrets_in_urls == 0
    assert TOKEN not in str(os.environ)
