"""Which sandbox providers there are. Only wiring asks; a provider's SDK is imported only then.

The memory provider is not here on purpose: it isolates nothing, so no setting can choose it.
"""

from importlib import import_module
from typing import cast

from fermata.kit.errors import SettingsError
from fermata.sandboxes.contract import SandboxProvider

_PROVIDERS = {
    "local": "fermata.sandboxes.providers.local:LocalProvider",
}


def list_providers() -> tuple[str, ...]:
    return tuple(sorted(_PROVIDERS))


def load_provider_class(name: str) -> type[SandboxProvider]:
    """The class of the provider `name`, imported now. `SettingsError` when no provider has this name."""
    if name not in _PROVIDERS:
        raise SettingsError(
            f"there is no sandbox provider {name[:64]!r}; there are: {', '.join(list_providers())}",
            field=("FERMATA_SANDBOX_PROVIDER",),
        )
    module, _, attribute = _PROVIDERS[name].partition(":")
    return cast(type[SandboxProvider], getattr(import_module(module), attribute))
