"""The provider on systems that have no Linux namespaces: it says so, and runs nothing."""

import sys
from pathlib import Path
from typing import Any, NoReturn

from fermata.kit.errors import SandboxUnsupportedError
from fermata.sandboxes.contract import Abilities, Limits, ProviderReport, SandboxInfo, SnapshotInfo

_WORDS = (
    f"local sandboxes need Linux, and this is {sys.platform}: run the server in a Linux machine or "
    "container, or choose another provider with FERMATA_SANDBOX_PROVIDER"
)


class LocalProvider:
    def __init__(
        self,
        *,
        data_dir: Path,
        installation: str,
        egress: object,
        base: object,
        defaults: Limits | None = None,
    ) -> None:
        del data_dir, installation, egress, base, defaults

    @property
    def name(self) -> str:
        return "local"

    @property
    def abilities(self) -> Abilities:
        return Abilities()

    async def open(self) -> ProviderReport:
        return ProviderReport(usable=False, summary=f"local: unusable on {sys.platform}", missing=(_WORDS,))

    async def close(self) -> None:
        """Nothing was started."""

    async def create(self, spec: Any) -> NoReturn:
        raise SandboxUnsupportedError(_WORDS)

    async def connect(self, name: str) -> NoReturn:
        raise SandboxUnsupportedError(_WORDS)

    async def resume(self, name: str) -> NoReturn:
        raise SandboxUnsupportedError(_WORDS)

    async def stop(self, name: str) -> NoReturn:
        raise SandboxUnsupportedError(_WORDS)

    async def destroy(self, name: str) -> NoReturn:
        raise SandboxUnsupportedError(_WORDS)

    async def describe(self, name: str) -> NoReturn:
        raise SandboxUnsupportedError(_WORDS)

    async def list_sandboxes(self) -> list[SandboxInfo]:
        return []

    async def snapshot(self, name: str, snapshot: str) -> NoReturn:
        raise SandboxUnsupportedError(_WORDS)

    async def list_snapshots(self) -> list[SnapshotInfo]:
        return []

    async def delete_snapshot(self, snapshot: str) -> NoReturn:
        raise SandboxUnsupportedError(_WORDS)
