"""GitHub: repositories are made through its REST API and read through a mirror on this machine.

The mirror is a bare repository at `<cache>/<owner>/<name>.git`, fetched with the token before every
bundle, so that nothing that a sandbox is given, and nothing on this disk, holds a credential.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import aiohttp

from fermata.kit.errors import NotFoundError, RepositoryError
from fermata.workspaces import bare, git, receiving
from fermata.workspaces.locks import hold_lock
from fermata.workspaces.model import BranchUpdate, Head, RepositoryName, check_branch, is_object_id
from fermata.workspaces.providers.github_api import GitHubApi

_FETCH_TIME_LIMIT = timedelta(minutes=30)
_LIST_TIME_LIMIT = timedelta(seconds=60)
#: How long a repository that was seen is believed to exist, so that sessions start without asking.
_KNOWN_FOR = 300.0
_KNOWN_MOST = 10_000
_ALL = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")


class GitHubHost:
    """Without a token, public repositories can be read and nothing else can be done."""

    def __init__(
        self,
        *,
        token: str | None,
        cache: Path,
        api_url: str = "https://api.github.com",
        clone_base: str = "https://github.com",
        session_factory: Callable[[], aiohttp.ClientSession] = aiohttp.ClientSession,
    ) -> None:
        self._api = GitHubApi(token=token, base_url=api_url, session_factory=session_factory)
        self._may_write = token is not None
        self._cache = cache
        self._staging = cache / ".staging"
        self._clone_base = clone_base.rstrip("/")
        self._protocol = self._clone_base.partition(":")[0].lower()
        self._credential = None if token is None else _credential(self._clone_base, token)
        self._known: dict[RepositoryName, float] = {}

    async def close(self) -> None:
        await self._api.close()

    async def ensure(self, name: RepositoryName) -> None:
        if self._is_known(name):
            return
        if not await self._api.has_repository(name):
            if not self._may_write:
                raise RepositoryError(f"The repository {name} cannot be made without a GitHub token.")
            await self._api.create_repository(name)
        self._remember(name)

    async def exists(self, name: RepositoryName) -> bool:
        return await self._api.has_repository(name)

    async def head(self, name: RepositoryName, branch: str | None = None) -> Head:
        wanted = "HEAD" if branch is None else bare.HEADS + check_branch(branch)
        tips = await self._list(name, wanted)
        default = tips.get("ref: HEAD")
        tip = Head(branch or (default or "").removeprefix(bare.HEADS), tips.get(wanted, ""))
        if not tip.branch or not tip.commit:
            raise NotFoundError(
                f"The repository {name} has no {f'branch {branch!r}' if branch else 'commits'}."
            )
        return tip

    @asynccontextmanager
    async def bundle(
        self, name: RepositoryName, *, have: Sequence[str] = (), branch: str | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        wanted = None if branch is None else check_branch(branch)
        mirror = await self._refresh(name)
        async with bare.open_bundle(mirror, have=have, branch=wanted) as pieces:
            yield pieces

    async def receive(
        self, name: RepositoryName, bundle: AsyncIterable[bytes], updates: Sequence[BranchUpdate]
    ) -> None:
        if not self._may_write:
            raise RepositoryError(f"Nothing can be pushed to {name} without a GitHub token.")
        mirror = await self._refresh(name)
        destination = receiving.Destination(self._url(name), self._protocol, self._environment())
        await receiving.receive(mirror, destination, staging=self._staging, bundle=bundle, updates=updates)

    async def _refresh(self, name: RepositoryName) -> Path:
        """Bring the mirror up to date and return its path. One at a time for each repository: a second
        caller waits, finds nothing to fetch and goes on."""
        owner, repository = name.key
        mirror = self._cache / owner / f"{repository}.git"
        await asyncio.to_thread(bare.make_private, mirror.parent)
        lock = mirror.with_name(f"{repository}.lock")
        async with hold_lock(lock, time_limit_for=_FETCH_TIME_LIMIT) as descriptor:
            tips = await self._list(name, "HEAD", "refs/heads/*", "refs/tags/*")
            await asyncio.to_thread(bare.create, mirror, {}, staging=self._staging)
            # Whoever held these has died, or this lock would not be ours.
            await asyncio.to_thread(bare.remove_locks, mirror, older_than=timedelta(0))
            default = tips.pop("ref: HEAD", None)
            tips.pop("HEAD", None)
            if tips != await bare.list_references(mirror):
                await self._fetch(name, mirror, descriptor)
            if default is not None:
                await asyncio.to_thread(bare.point_head, mirror, default)
        return mirror

    async def _fetch(self, name: RepositoryName, mirror: Path, lock: int) -> None:
        # Git inherits the lock: should this process die, no other starts before that git has ended.
        await self._git(
            name,
            "fetch",
            "--quiet",
            "--prune",
            "--no-write-fetch-head",
            self._url(name),
            *_ALL,
            cwd=mirror,
            time_limit_for=_FETCH_TIME_LIMIT,
            pass_fds=(lock,),
        )

    async def _list(self, name: RepositoryName, *patterns: str) -> dict[str, str]:
        """References on GitHub that match; what `HEAD` points to is under `ref: HEAD`."""
        await asyncio.to_thread(bare.make_private, self._cache)
        output = await self._git(
            name,
            "ls-remote",
            "--symref",
            self._url(name),
            *patterns,
            cwd=self._cache,
            time_limit_for=_LIST_TIME_LIMIT,
        )
        tips: dict[str, str] = {}
        for line in output.splitlines():
            value, _, reference = line.partition("\t")
            if value.startswith("ref: "):
                tips[f"ref: {reference}"] = value.removeprefix("ref: ")
            elif is_object_id(value) and not reference.endswith("^{}"):
                tips[reference] = value
        return tips

    async def _git(
        self,
        name: RepositoryName,
        *arguments: str,
        cwd: Path,
        time_limit_for: timedelta,
        pass_fds: tuple[int, ...] = (),
    ) -> str:
        done = await git.run(
            *arguments,
            cwd=cwd,
            time_limit_for=time_limit_for,
            protocols=self._protocol,
            environment=self._environment(),
            pass_fds=pass_fds,
        )
        if done.exit_code != 0:
            error = git.failure(arguments[0], done.exit_code, done.stderr)
            if isinstance(error, NotFoundError):
                self._known.pop(name, None)
            raise error
        return done.stdout.decode("utf-8", "surrogateescape")

    def _url(self, name: RepositoryName) -> str:
        return f"{self._clone_base}/{name}.git"

    def _environment(self) -> dict[str, str]:
        return {} if self._credential is None else self._credential.environment()

    def _is_known(self, name: RepositoryName) -> bool:
        return self._known.get(name, 0.0) > time.monotonic()

    def _remember(self, name: RepositoryName) -> None:
        if len(self._known) >= _KNOWN_MOST:
            self._known.clear()
        self._known[name] = time.monotonic() + _KNOWN_FOR


def _credential(clone_base: str, token: str) -> git.Credential:
    encoded = base64.b64encode(f"x-access-token:{token}".encode()).decode()
    return git.Credential(clone_base, f"Basic {encoded}")
