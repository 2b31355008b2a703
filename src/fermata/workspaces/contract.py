"""What a host of repositories must do. The docstrings are the specification.

Rules that hold for every method:

- *Errors.* `NotFoundError` when the repository (or the branch asked for) does not exist, `ConflictError`
  when a branch moved in between, `RepositoryError` when the host failed or refused, `TimedOutError` when
  a time limit passed. Messages never hold a path of this machine or a credential.
- *Cancellation* ends the processes that a call started.
- *Concurrency.* Every method may run many times at once, in many processes, on one repository.
"""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from fermata.workspaces.model import BranchUpdate, Head, RepositoryName

#: The two services of git's protocol.
READ = "git-upload-pack"
WRITE = "git-receive-pack"


class RepositoryHost(Protocol):
    async def ensure(self, name: RepositoryName) -> None:
        """Make sure that the repository exists. Idempotent, also for two callers at once.

        A new one has one commit on `main`: a README with the repository's name. A death in the middle
        leaves the repository whole or absent.
        """
        ...

    async def exists(self, name: RepositoryName) -> bool: ...

    async def head(self, name: RepositoryName, branch: str | None = None) -> Head:
        """The tip of `branch`, or of the default branch. Asks the host, transfers no objects.

        A repository without a commit has no default branch yet: `NotFoundError`.
        """
        ...

    def bundle(
        self, name: RepositoryName, *, have: Sequence[str] = (), branch: str | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """A git bundle (version 2) as a stream of pieces, current when the block is entered.

        It holds every branch, every tag and `HEAD`; with `branch` only that branch, and `HEAD` is its tip.
        Objects reachable from the commits in `have` are left out, and those commits become prerequisites;
        ids that the repository does not know are ignored. References are always listed, even if no object
        is new. A stream that ended without an error is complete. Errors of the repository are raised on
        entry, those of the transfer by the iterator.
        """
        ...

    async def receive(
        self, name: RepositoryName, bundle: AsyncIterable[bytes], updates: Sequence[BranchUpdate]
    ) -> None:
        """Take the objects of a bundle from an untrusted place and move branches, all of them or none.

        The objects are checked and must be complete. A branch that is at `new` already stays as it is, so
        this can be repeated. `ConflictError` when a branch is at neither, when `new` does not descend from
        `old`, or when the bundle builds on commits that are not here; `InvalidRequestError` when it is no
        bundle of version 2 or does not say what `updates` say; `BodyTooLargeError` over 2 GiB.
        """
        ...


@dataclass(frozen=True, slots=True)
class GitRequest:
    """What an HTTP request for `<repository>.git/<tail>` says. Header values as sent, or None."""

    method: str
    #: `info/refs`, `git-upload-pack` or `git-receive-pack`.
    tail: str
    #: The query parameter `service`.
    service: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    #: The header `Git-Protocol`.
    protocol: str | None = None
    body: AsyncIterable[bytes] | None = None

    @property
    def writes(self) -> bool:
        """Whether it belongs to a push. Its announcement does too, so that a reader is refused at once."""
        return WRITE in (self.tail, self.service)


@dataclass(frozen=True, slots=True)
class GitResponse:
    """Always status 200: everything else is raised. The body starts git when it is first read and ends it
    when it is closed, so close it (`aclose`) when the client goes away.

    A push's request body is read while this body is: nobody else may read from that client meanwhile, not
    even to see whether it is still there. A clone's has been read to its end.
    """

    headers: Mapping[str, str]
    body: AsyncGenerator[bytes, None]


class GitServer(Protocol):
    """A host that answers git's own protocol, so that people can clone and push."""

    async def answer(self, name: RepositoryName, request: GitRequest) -> GitResponse:
        """Answer a request about `name`. Authentication and permission were checked before.

        `NotFoundError` for an unknown repository and for anything that is not the smart protocol,
        `InvalidRequestError` for a body of another kind, `BodyTooLargeError` for an oversized one.
        """
        ...
