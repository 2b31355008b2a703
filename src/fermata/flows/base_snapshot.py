"""Build the base snapshot of a repository, so that the next session boots without cloning.

Built in a sandbox of its own, never in a user's. One run per repository, however many sessions miss at once.
"""

import hashlib
from datetime import datetime
from typing import Any

from fermata.flows.boot import BASE_KIND, Boot, base_name, base_prefix
from fermata.kit.database import Connection
from fermata.kit.errors import SandboxExistsError
from fermata.runs.contract import RunHandle
from fermata.runs.model import RetryPolicy, Run
from fermata.sandboxes.contract import SandboxProvider
from fermata.sandboxes.service import SandboxService
from fermata.workspaces.model import RepositoryName
from fermata.workspaces.service import WorkspaceService


class BaseSnapshot:
    """Handler of runs whose key is `owner/name`."""

    kind = BASE_KIND
    at_once = 2
    policy = RetryPolicy(attempts=3)

    def __init__(self, *, sandboxes: SandboxService, workspaces: WorkspaceService, boot: Boot) -> None:
        self._sandboxes = sandboxes
        self._workspaces = workspaces
        self._boot = boot

    async def work(self, handle: RunHandle) -> dict[str, Any]:
        owner, repository = handle.run.key.split("/")
        name = RepositoryName(owner, repository)
        provider = self._sandboxes.provider_named(handle.run.input["provider"])
        head = await self._workspaces.head(name)
        snapshot = base_name(name, head)
        if any(known.name == snapshot for known in await provider.list_snapshots()):
            return {"snapshot": snapshot, "built": False}
        builder = f"build-{hashlib.sha256(snapshot.encode()).hexdigest()[:24]}"
        await provider.destroy(builder)  # of an attempt that died
        sandbox = await provider.create(self._sandboxes.spec(builder))
        try:
            await self._boot.clone(sandbox, name, head)
            await provider.stop(builder)
            try:
                await provider.snapshot(builder, snapshot)
            except SandboxExistsError:
                return {"snapshot": snapshot, "built": False}
        finally:
            await provider.destroy(builder)
        await self._forget_older(provider, name, snapshot)
        return {"snapshot": snapshot, "built": True}

    async def _forget_older(self, provider: SandboxProvider, name: RepositoryName, newest: str) -> None:
        """Keep the newest and the one before it."""
        prefix = base_prefix(name)
        ours = [known for known in await provider.list_snapshots() if known.name.startswith(prefix)]
        ours.sort(key=lambda known: known.created_at, reverse=True)
        for old in ours[2:]:
            if old.name != newest:
                await provider.delete_snapshot(old.name)

    def give_up(self, connection: Connection, run: Run, error: dict[str, Any], now: datetime) -> None:
        """Nobody waits for a base: the next session clones again, and asks for it again."""
