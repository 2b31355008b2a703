"""The built-in host: bare repositories at `<root>/<owner>/<name>.git`, in lower case, mode 0700.

Names are unique without regard to case, as on GitHub; the README keeps the spelling of whoever came
first. Files and directories that start with a dot belong to the host: no owner's name can.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from fermata.kit.clock import Clock
from fermata.kit.errors import NotFoundError, RepositoryError
from fermata.workspaces import bare, receiving, smart_http
from fermata.workspaces.contract import GitRequest, GitResponse
from fermata.workspaces.model import BranchUpdate, Head, RepositoryName, check_branch

#: Git holds a lock on a reference for milliseconds, or for seconds while it packs all of them.
_LOCK_STALE_AFTER = timedelta(minutes=10)


class BuiltinHost:
    def __init__(self, *, root: Path, clock: Clock) -> None:
        self._root = root
        self._staging = root / ".staging"
        self._clock = clock

    def path_of(self, name: RepositoryName) -> Path:
        owner, repository = name.key
        return self._root / owner / f"{repository}.git"

    def _has(self, name: RepositoryName) -> bool:
        return (self.path_of(name) / "HEAD").is_file()

    def _get_path(self, name: RepositoryName) -> Path:
        if not self._has(name):
            raise NotFoundError(f"There is no repository {name}.")
        return self.path_of(name)

    async def ensure(self, name: RepositoryName) -> None:
        if self._has(name):
            return
        try:
            await asyncio.to_thread(
                bare.create,
                self.path_of(name),
                bare.initial_commit(name.name, self._clock.now()),
                staging=self._staging,
            )
        except OSError as error:
            raise RepositoryError(f"The repository {name} could not be made: {error.strerror}.") from error

    async def exists(self, name: RepositoryName) -> bool:
        return self._has(name)

    async def head(self, name: RepositoryName, branch: str | None = None) -> Head:
        path = self._get_path(name)
        head = await bare.find_head(path, None if branch is None else check_branch(branch))
        if head is None:
            raise NotFoundError(
                f"The repository {name} has no {f'branch {branch!r}' if branch else 'commits'}."
            )
        return head

    @asynccontextmanager
    async def bundle(
        self, name: RepositoryName, *, have: Sequence[str] = (), branch: str | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        path = self._get_path(name)
        wanted = None if branch is None else check_branch(branch)
        async with bare.open_bundle(path, have=have, branch=wanted) as pieces:
            yield pieces

    async def receive(
        self, name: RepositoryName, bundle: AsyncIterable[bytes], updates: Sequence[BranchUpdate]
    ) -> None:
        path = self._get_path(name)
        await asyncio.to_thread(bare.remove_locks, path, older_than=_LOCK_STALE_AFTER)
        destination = receiving.Destination(str(path.absolute()))
        await receiving.receive(path, destination, staging=self._staging, bundle=bundle, updates=updates)

    async def answer(self, name: RepositoryName, request: GitRequest) -> GitResponse:
        path = self._get_path(name)
        if request.writes:
            await asyncio.to_thread(bare.remove_locks, path, older_than=_LOCK_STALE_AFTER)
        return await smart_http.answer(path, request)
