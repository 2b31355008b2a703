"""A real sandbox for tools."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from fermata.sandboxes.contract import Sandbox, SandboxSpec
from fermata.sandboxes.providers.memory import MemoryProvider


@pytest_asyncio.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    provider = MemoryProvider(tmp_path)
    await provider.open()
    try:
        yield await provider.create(SandboxSpec(name="turn"))
    finally:
        await provider.close()
