"""The verbs of sandboxes that need no other room: which provider, which times, what a new one looks like."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fermata.kit.clock import Clock
from fermata.kit.database import Connection
from fermata.kit.errors import InvalidRequestError, SandboxUnsupportedError
from fermata.sandboxes import store
from fermata.sandboxes.contract import Limits, NetworkPolicy, SandboxProvider, SandboxSpec
from fermata.sandboxes.model import LifecycleState, SandboxRecord, Timers, session_sandbox_id

#: The word that older clients send, whatever the server runs on.
OLD_TYPE = "vercel"


class SandboxService:
    def __init__(
        self,
        *,
        clock: Clock,
        providers: Mapping[str, SandboxProvider],
        default: str,
        timers: Timers,
        network: NetworkPolicy,
        limits: Limits,
        installation: str,
    ) -> None:
        """`default` names the provider of new sandboxes; `installation` labels them at the provider."""
        self.timers = timers
        self.default = default
        self._clock = clock
        self._providers = providers
        self._network = network
        self._limits = limits
        self._installation = installation

    @property
    def types(self) -> tuple[str, ...]:
        """What `sandboxType` may say."""
        return (*self._providers, *(() if OLD_TYPE in self._providers else (OLD_TYPE,)))

    def resolve_type(self, word: str | None) -> str:
        """The provider that a request's `sandboxType` means."""
        if word is None or (word == OLD_TYPE and word not in self._providers):
            return self.default
        if word not in self._providers:
            raise InvalidRequestError("Invalid sandbox type", field=("sandboxType",))
        return word

    def provider(self, record: SandboxRecord) -> SandboxProvider:
        return self.provider_named(record.provider)

    def provider_named(self, name: str) -> SandboxProvider:
        found = self._providers.get(name)
        if found is None:
            raise SandboxUnsupportedError(f"The sandbox provider {name} is not configured any more.")
        return found

    def new_record(
        self,
        *,
        account_id: str,
        provider: str,
        session_id: str | None = None,
        sandbox_id: str | None = None,
        repository: str | None = None,
        branch: str | None = None,
        is_new_branch: bool = False,
    ) -> SandboxRecord:
        """A sandbox in `provisioning`, not yet written. Its id is derived from the session, if it has one."""
        now = self._clock.now()
        name = session_sandbox_id(session_id) if session_id else sandbox_id
        assert name, "a sandbox has a session or an id"
        return SandboxRecord(
            id=name,
            session_id=session_id,
            account_id=account_id,
            provider=provider,
            state=LifecycleState.PROVISIONING,
            version=0,
            has_disk=False,
            repository=repository,
            branch=branch,
            is_new_branch=is_new_branch,
            run_id=None,
            error=None,
            last_activity_at=None,
            expires_at=None,
            hibernate_after=None,
            snapshot_created_at=None,
            snapshot_size_bytes=None,
            created_at=now,
            updated_at=now,
        )

    def spec(self, name: str, *, base: str | None = None) -> SandboxSpec:
        return SandboxSpec(
            name=name,
            network=self._network,
            limits=self._limits,
            base=base,
            labels={"installation": self._installation},
        )

    def activation(self, now: datetime) -> dict[str, Any]:
        """What a move to `active` sets besides the state."""
        return {
            "has_disk": True,
            "error": None,
            "last_activity_at": now,
            "expires_at": now + self.timers.lifetime,
            "hibernate_after": now + self.timers.idle,
            "snapshot_created_at": None,
        }

    def touch(self, connection: Connection, sandbox_id: str) -> None:
        """Note activity: a running sandbox hibernates later."""
        now = self._clock.now()
        store.touch(connection, sandbox_id, at=now, hibernate_after=now + self.timers.idle)
