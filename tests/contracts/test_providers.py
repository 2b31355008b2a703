"""Every provider that can run here keeps the contract."""

import os
from pathlib import Path

import pytest

from fermata.sandboxes.contract import SandboxProvider
from fermata.sandboxes.egress import EgressProxy
from fermata.sandboxes.providers.local.base import BaseStore
from fermata.sandboxes.providers.memory import MemoryProvider
from fermata.sandboxes.registry import load_provider_class
from fermata.testing.provider_checks_support import MakeProvider
from fermata.testing.provider_kit import ProviderKit


def make_memory(directory: Path) -> SandboxProvider:
    return MemoryProvider(directory)


def make_local(directory: Path) -> SandboxProvider:
    make = load_provider_class("local")
    return make(  # type: ignore[call-arg]
        data_dir=directory,
        installation=f"test-{directory.name}",
        egress=EgressProxy(),
        base=BaseStore(builds=False),
    )


async def test_the_local_provider_runs_here_or_says_what_is_missing(tmp_path: Path) -> None:
    provider = make_local(tmp_path)
    report = await provider.open()
    await provider.close()
    assert report.usable or report.missing
    if not report.usable and os.environ.get("CI"):
        pytest.fail(f"CI has to run the local provider: {'; '.join(report.missing)}")


class TestMemory(ProviderKit):
    @pytest.fixture(scope="class")
    @classmethod
    def make_provider(cls) -> MakeProvider:
        return make_memory


class TestLocal(ProviderKit):
    @pytest.fixture(scope="class")
    @classmethod
    def make_provider(cls) -> MakeProvider:
        return make_local
