"""Real sandboxes. The same tests run as root and, in a process of their own, as an ordinary user."""

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.sandboxes.local.support import fresh_name, make_provider

from fermata.sandboxes.providers.local import LocalProvider

if sys.platform != "linux":
    collect_ignore_glob = ["test_*"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(data_dir: Path) -> AsyncIterator[LocalProvider]:
    provider = make_provider(data_dir)
    report = await provider.open()
    assert report.usable, report.missing
    yield provider
    await provider.close()


@pytest.fixture
def name() -> str:
    return fresh_name()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("as_root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip("needs root"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "as_root: only root can do this")
