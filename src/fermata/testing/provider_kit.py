"""The conformance kit: what `fermata.sandboxes.contract` says, as checks for any provider.

Override one fixture in a class of your own and let pytest (with pytest-asyncio) collect it:

    class TestMyProvider(ProviderKit):
        @pytest.fixture(scope="class")
        @classmethod
        def make_provider(cls):
            return MyProvider

`make_provider` gets a directory and returns a provider that is not open yet. One directory is one
installation: a second provider made for it must find what the first one left. What a provider cannot do it
says in its `abilities`; checks of an absent ability are skipped by name or check the refusal instead.

`make_provider` should be a function or class of a module, not a lambda, so that the check which kills the
provider's process can make one in a process of its own; otherwise that check is skipped.

The sandbox needs a POSIX shell and the usual small tools, `setsid` among them.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from fermata.sandboxes.contract import Sandbox, SandboxProvider, SandboxSpec
from fermata.testing.provider_checks_commands import CommandChecks
from fermata.testing.provider_checks_detached import DetachedChecks
from fermata.testing.provider_checks_files import FileChecks
from fermata.testing.provider_checks_lifecycle import LifecycleChecks
from fermata.testing.provider_checks_restart import RestartChecks
from fermata.testing.provider_checks_snapshots import SnapshotChecks
from fermata.testing.provider_checks_streams import StreamChecks
from fermata.testing.provider_checks_support import MakeProvider, fresh_name
from fermata.testing.provider_checks_walls import WallChecks


@pytest.mark.asyncio(loop_scope="class")
class ProviderKit(
    LifecycleChecks,
    RestartChecks,
    CommandChecks,
    StreamChecks,
    DetachedChecks,
    FileChecks,
    SnapshotChecks,
    WallChecks,
):
    @pytest.fixture(scope="class")
    @classmethod
    def make_provider(cls) -> MakeProvider:
        raise NotImplementedError("override make_provider: directory -> a provider that is not open yet")

    @pytest.fixture(scope="class")
    @classmethod
    def home(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Where everything that the provider keeps on this machine lies."""
        return tmp_path_factory.mktemp("installation")

    @pytest_asyncio.fixture(scope="class", loop_scope="class")
    @classmethod
    async def provider(cls, make_provider: MakeProvider, home: Path) -> AsyncIterator[SandboxProvider]:
        provider = make_provider(home)
        report = await provider.open()
        try:
            if not report.usable:
                pytest.skip("; ".join((report.summary, *report.missing)))
            yield provider
            for sandbox in await provider.list_sandboxes():
                await provider.destroy(sandbox.name)
            assert await provider.list_sandboxes() == []
        finally:
            await provider.close()

    @pytest_asyncio.fixture(loop_scope="class")
    async def box(self, provider: SandboxProvider) -> AsyncIterator[Sandbox]:
        """A new running sandbox, destroyed afterwards."""
        name = fresh_name()
        yield await provider.create(SandboxSpec(name))
        await provider.destroy(name)
