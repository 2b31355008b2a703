"""Real git, a real HTTP server on the loopback, real repositories in a temporary directory."""

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from fermata.kit.clock import SystemClock
from fermata.kit.errors import ErrorKind, FermataError
from fermata.workspaces.contract import GitRequest
from fermata.workspaces.model import RepositoryName, parse_repository_url
from fermata.workspaces.providers.builtin import BuiltinHost

API_KEY = "key-of-a-person"
STATUS = {ErrorKind.NOT_FOUND: 404, ErrorKind.INVALID: 400, ErrorKind.TOO_LARGE: 413, ErrorKind.UPSTREAM: 502}

RunGit = Callable[..., Awaitable[str]]


class GitFailed(Exception):
    pass


@pytest.fixture
def run_git(tmp_path: Path) -> RunGit:
    """git as a person runs it, with a configuration of nobody. Raises what it wrote when it fails."""

    async def run(*arguments: str, cwd: Path = tmp_path, protocol: str = "2") -> str:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_COUNT": "4",
            "GIT_CONFIG_KEY_0": "user.name",
            "GIT_CONFIG_VALUE_0": "Ada",
            "GIT_CONFIG_KEY_1": "user.email",
            "GIT_CONFIG_VALUE_1": "ada@example.org",
            "GIT_CONFIG_KEY_2": "protocol.version",
            "GIT_CONFIG_VALUE_2": protocol,
            "GIT_CONFIG_KEY_3": "init.defaultBranch",
            "GIT_CONFIG_VALUE_3": "main",
        }
        process = await asyncio.create_subprocess_exec(
            "git",
            *arguments,
            cwd=cwd,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        stdout, stderr = await process.communicate()
        if process.returncode != 0:
            raise GitFailed(stderr.decode())
        return stdout.decode().strip()

    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repositories"


@pytest.fixture
def host(root: Path) -> BuiltinHost:
    return BuiltinHost(root=root, clock=SystemClock())


@pytest.fixture
def name() -> RepositoryName:
    return RepositoryName("recoupable", "3c90c3cc-0d44-4b50-8888-8dd25736052a")


@dataclass
class Served:
    """The built-in host behind HTTP, as an edge would put it there."""

    host: BuiltinHost
    base: str = ""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def url(self, name: RepositoryName, key: str = API_KEY) -> str:
        return self.base.replace("http://", f"http://x:{key}@") + f"/{name}.git"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs, dict(request.headers)))
        expected = "Basic " + base64.b64encode(f"x:{API_KEY}".encode()).decode()
        if request.headers.get("authorization") != expected:
            return web.Response(status=401, headers={"www-authenticate": 'Basic realm="Fermata"'})
        name = parse_repository_url(
            f"https://github.com/{request.match_info['owner']}/{request.match_info['name']}"
        )
        asked = GitRequest(
            method=request.method,
            tail=request.match_info["tail"],
            service=request.query.get("service"),
            content_type=request.headers.get("content-type"),
            content_encoding=request.headers.get("content-encoding"),
            protocol=request.headers.get("git-protocol"),
            body=request.content.iter_any(),
        )
        try:
            assert name is not None
            answer = await self.host.answer(name, asked)
        except FermataError as error:
            return web.Response(status=STATUS[error.kind], text=error.message)
        response = web.StreamResponse(headers=dict(answer.headers))
        await response.prepare(request)
        async with aclosing(answer.body) as pieces:
            async for piece in pieces:
                await response.write(piece)
        return response


@pytest.fixture
async def served(host: BuiltinHost) -> AsyncIterator[Served]:
    served = Served(host)
    application = web.Application(client_max_size=0)
    application.router.add_route("*", "/{owner}/{name}/{tail:.*}", served.handle)
    # An aiohttp server decodes gzip bodies itself unless told not to; the decoding under test is ours.
    runner = web.AppRunner(application, auto_decompress=False, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield served
    await runner.cleanup()
