"""What stands in a new sandbox: the workspace, from a base snapshot when there is one, else from a bundle.

Neither way gives the sandbox a credential: the server reads the repository and hands over its content.
"""

import hashlib
from datetime import timedelta

import structlog

from fermata.accounts.service import AccountService
from fermata.kit.errors import (
    FermataError,
    NotFoundError,
    RepositoryError,
    SandboxExistsError,
    SandboxGoneError,
    SandboxPathError,
)
from fermata.runs.service import RunService
from fermata.sandboxes.contract import Sandbox, SandboxProvider
from fermata.sandboxes.model import SandboxRecord
from fermata.sandboxes.service import SandboxService
from fermata.workspaces.model import Head, RepositoryName, clone_url
from fermata.workspaces.service import WorkspaceService

log = structlog.get_logger()

#: Kind of the runs that build base snapshots, see `base_snapshot.py`.
BASE_KIND = "base_snapshot"

CLONE_LIMIT = timedelta(minutes=10)

#: $1 clone URL, $2 default branch. Standard input is a bundle. `origin` is set up as after a clone.
_CLONE = """
set -e
bundle=$(mktemp)
trap 'rm -f "$bundle"' EXIT
cat > "$bundle"
git clone --quiet --branch "$2" "$bundle" .
git remote set-url origin "$1"
git config include.path fermata-author
"""

#: Included by `.git/config`, so that a session's author is one file to write and no command to run.
_AUTHOR = ".git/fermata-author"


class Boot:
    def __init__(
        self,
        *,
        sandboxes: SandboxService,
        workspaces: WorkspaceService,
        accounts: AccountService,
        runs: RunService,
    ) -> None:
        self._sandboxes = sandboxes
        self._workspaces = workspaces
        self._accounts = accounts
        self._runs = runs

    async def create(self, record: SandboxRecord) -> str | None:
        """Make the sandbox of `record` with its workspace, and return the branch that is checked out.

        One that an interrupted attempt left is destroyed first: it was never handed to anybody. So is one
        whose workspace could not be made."""
        provider = self._sandboxes.provider(record)
        try:
            return await self._create(provider, record)
        except FermataError:
            await provider.destroy(record.id)
            raise

    async def _create(self, provider: SandboxProvider, record: SandboxRecord) -> str | None:
        name = _repository(record)
        if name is None:
            await self._make(provider, record.id, None)
            return None
        await self._workspaces.ensure_workspace(name)
        head = await self._workspaces.head(name)
        snapshot = base_name(name, head)
        try:
            sandbox = await self._make(provider, record.id, snapshot)
        except SandboxGoneError:
            sandbox = await self._make(provider, record.id, None)
            await self.clone(sandbox, name, head)
            if provider.abilities.snapshots:
                await self._runs.submit(BASE_KIND, str(name), {"provider": provider.name})
        return await self._check_out(sandbox, record, name, head)

    async def _make(self, provider: SandboxProvider, sandbox_id: str, base: str | None) -> Sandbox:
        if base is not None and not provider.abilities.snapshots:
            raise SandboxGoneError("This provider keeps no snapshots.")
        spec = self._sandboxes.spec(sandbox_id, base=base)
        try:
            return await provider.create(spec)
        except SandboxExistsError:
            await provider.destroy(sandbox_id)
            return await provider.create(spec)

    async def clone(self, sandbox: Sandbox, name: RepositoryName, head: Head) -> None:
        """Fill the empty workspace with the repository, its default branch checked out."""
        async with self._workspaces.bundle(name) as pieces:
            done = await sandbox.exec(
                ["sh", "-c", _CLONE, "clone", clone_url(name), head.branch],
                stdin=pieces,
                time_limit_for=CLONE_LIMIT,
            )
        if done.exit_code != 0:
            log.warning("clone failed", repository=str(name), stderr=done.stderr.decode(errors="replace"))
            raise RepositoryError(f"The repository {name} could not be cloned into the sandbox.")

    async def _check_out(
        self, sandbox: Sandbox, record: SandboxRecord, name: RepositoryName, head: Head
    ) -> str:
        """Set the author of commits and check out the session's branch."""
        account = await self._accounts.get_account(record.account_id)
        author = _config_value(account.name or record.account_id)
        mail = _config_value(f"{record.account_id}@users.noreply.fermata.dev")
        await sandbox.write_file(_AUTHOR, f"[user]\n\tname = {author}\n\temail = {mail}\n".encode())
        branch = record.branch or head.branch
        if record.is_new_branch:
            await self._git(sandbox, name, branch, "-b", branch)
        elif branch != head.branch:
            await self._require_branch(name, branch)
            await self._git(sandbox, name, branch, "--track", "-B", branch, f"origin/{branch}")
        return branch

    async def _git(self, sandbox: Sandbox, name: RepositoryName, branch: str, *arguments: str) -> None:
        done = await sandbox.exec(["git", "checkout", "--quiet", *arguments], time_limit_for=CLONE_LIMIT)
        if done.exit_code != 0:
            log.warning("checkout failed", repository=str(name), stderr=done.stderr.decode(errors="replace"))
            raise RepositoryError(f"The branch {branch} of {name} could not be checked out.")

    async def _require_branch(self, name: RepositoryName, branch: str) -> None:
        try:
            await self._workspaces.head(name, branch)
        except NotFoundError as error:
            raise NotFoundError(f"The repository {name} has no branch {branch}.") from error

    async def current_branch(self, sandbox: Sandbox) -> str | None:
        """The branch that is checked out in the workspace, None when there is none or no repository."""
        try:
            head = await sandbox.read_file(".git/HEAD", limit=1000)
        except SandboxPathError:
            return None
        _, found, branch = head.decode(errors="replace").strip().partition("ref: refs/heads/")
        return branch if found else None


def _repository(record: SandboxRecord) -> RepositoryName | None:
    if record.repository is None:
        return None
    owner, name = record.repository.split("/")
    return RepositoryName(owner, name)


def base_name(name: RepositoryName, head: Head) -> str:
    """The snapshot that holds a repository's workspace at one commit. A newer commit has another name."""
    return f"{base_prefix(name)}{head.commit[:20]}"


def base_prefix(name: RepositoryName) -> str:
    return f"base-{hashlib.sha256('/'.join(name.key).encode()).hexdigest()[:24]}-"


def _config_value(text: str) -> str:
    """A value of git's configuration file, quoted: https://git-scm.com/docs/git-config#_syntax."""
    printable = "".join(char for char in text if char.isprintable())
    escaped = printable.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
