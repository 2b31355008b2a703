"""Every provider that can run here keeps the contract."""

from pathlib import Path

import pytest

from fermata.sandboxes.contract import SandboxProvider
from fermata.sandboxes.providers.memory import MemoryProvider
from fermata.testing.provider_checks_support import MakeProvider
from fermata.testing.provider_kit import ProviderKit


def make_memory(directory: Path) -> SandboxProvider:
    return MemoryProvider(directory)


class TestMemory(ProviderKit):
    @pytest.fixture(scope="class")
    @classmethod
    def make_provider(cls) -> MakeProvider:
        return make_memory
