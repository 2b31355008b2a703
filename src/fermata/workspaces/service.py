"""The verbs of the room: which host keeps a repository, and what to ask of it.

Who may use a repository is decided by the caller; this only knows where it is.
"""

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

from fermata.kit.errors import NotFoundError
from fermata.workspaces.contract import GitRequest, GitResponse, GitServer, RepositoryHost
from fermata.workspaces.model import BranchUpdate, Head, RepositoryName


class WorkspaceService:
    """`own` keeps every repository under `owner`, the workspaces that Fermata makes itself; `others`, if any,
    is asked for all the rest. One GitHub host may be both."""

    def __init__(
        self,
        *,
        owner: str,
        own: RepositoryHost,
        others: RepositoryHost | None = None,
        server: GitServer | None = None,
    ) -> None:
        """`server` is `own` again, when it is a host that people clone from through this server."""
        self._owner = owner
        self._own = own
        self._others = others
        self._server = server

    def name_workspace(self, holder: str) -> RepositoryName:
        """The workspace of an account or an organization, by the holder's id."""
        return RepositoryName(self._owner, holder)

    def is_own(self, name: RepositoryName) -> bool:
        """Whether the repository is under the owner that workspaces are made for."""
        return name.owner.lower() == self._owner.lower()

    def get_host(self, name: RepositoryName) -> RepositoryHost:
        host = self._own if self.is_own(name) else self._others
        if host is None:
            raise NotFoundError(f"No host of this server keeps the repository {name}.")
        return host

    async def ensure_workspace(self, name: RepositoryName) -> None:
        """Make sure that a workspace exists. Only under our own owner: a repository elsewhere is its
        owner's to make, and `NotFoundError` when it is missing."""
        if self.is_own(name):
            await self._own.ensure(name)
        elif not await self.get_host(name).exists(name):
            raise NotFoundError(f"There is no repository {name}.")

    async def head(self, name: RepositoryName, branch: str | None = None) -> Head:
        return await self.get_host(name).head(name, branch)

    def bundle(
        self, name: RepositoryName, *, have: Sequence[str] = (), branch: str | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self.get_host(name).bundle(name, have=have, branch=branch)

    async def receive(
        self, name: RepositoryName, bundle: AsyncIterable[bytes], updates: Sequence[BranchUpdate]
    ) -> None:
        await self.get_host(name).receive(name, bundle, updates)

    async def answer(self, name: RepositoryName, request: GitRequest) -> GitResponse:
        """Serve git's smart HTTP. `NotFoundError` for repositories that live on another host."""
        if self._server is None or not self.is_own(name):
            raise NotFoundError(f"The repository {name} is not served here.")
        return await self._server.answer(name, request)
