"""Real sandboxes for tools: plain processes, and the walled ones of this machine where it can have them."""

import itertools
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from fermata.sandboxes.contract import Sandbox, SandboxProvider, SandboxSpec
from fermata.sandboxes.egress import EgressProxy
from fermata.sandboxes.providers.local import LocalProvider
from fermata.sandboxes.providers.local.base import BaseStore
from fermata.sandboxes.providers.memory import MemoryProvider

_names = (f"turn-{number}" for number in itertools.count())


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["memory", "local"])
async def provider(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SandboxProvider]:
    directory = tmp_path_factory.mktemp("sandboxes")
    made: SandboxProvider = MemoryProvider(directory)
    if request.param == "local":
        made = LocalProvider(
            data_dir=directory,
            installation=f"turns-{directory.name}",
            egress=EgressProxy(),
            base=BaseStore(builds=False),
        )
    report = await made.open()
    try:
        if not report.usable:
            pytest.skip(report.summary)
        yield made
    finally:
        await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def sandbox(provider: SandboxProvider) -> AsyncIterator[Sandbox]:
    """A sandbox of its own for each test; the test's module shares one event loop."""
    made = await provider.create(SandboxSpec(name=next(_names)))
    yield made
    await provider.destroy(made.name)
