"""Checks of what outlives the provider's process: an orderly end, and one by `kill -9`."""

import asyncio
import importlib.util
import inspect
import json
import signal
import sys
from pathlib import Path

import pytest

from fermata.sandboxes.contract import DetachedStatus, SandboxProvider, SandboxSpec, SandboxStatus
from fermata.testing.provider_checks_support import PULSE, Checks, MakeProvider, has_pulse, pulse_begins

_CHILD = """
import asyncio, sys
from fermata.testing.provider_checks_restart import be_killed
asyncio.run(be_killed(*sys.argv[1:]))
"""


def _load(source: str, attribute: str) -> MakeProvider:
    spec = importlib.util.spec_from_file_location("provider_under_test", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make_provider: MakeProvider = getattr(module, attribute)
    return make_provider


async def be_killed(source: str, attribute: str, directory: str) -> None:
    """Run in a process of its own: leave things behind, say so, and wait for the end."""
    provider = _load(source, attribute)(Path(directory))
    await provider.open()
    box = await provider.create(SandboxSpec("left", labels={"kept": "label"}, environment={"KEPT": "word"}))
    await box.write_file("file", b"content", mode=0o600)
    running = await box.start_detached(["sh", "-c", f"{PULSE} & sleep 300"])
    await pulse_begins(box)
    await provider.create(SandboxSpec("stopped"))
    await provider.stop("stopped")
    print(json.dumps(running), flush=True)
    await asyncio.sleep(300)


class RestartChecks(Checks):
    async def test_closing_stops_every_sandbox_and_keeps_the_disks(
        self, make_provider: MakeProvider, provider: SandboxProvider, tmp_path: Path
    ) -> None:
        first = make_provider(tmp_path)
        await first.open()
        box = await first.create(SandboxSpec("kept", labels={"a": "b"}))
        await box.write_file("file", b"content")
        await box.start_detached(["sh", "-c", PULSE])
        await pulse_begins(box)
        created_at = (await first.describe("kept")).created_at
        await first.close()
        second = make_provider(tmp_path)
        await second.open()
        try:
            (info,) = await second.list_sandboxes()
            assert (info.name, info.status, info.labels) == ("kept", SandboxStatus.STOPPED, {"a": "b"})
            assert info.created_at == created_at
            box = await second.resume("kept")
            assert await box.read_file("file") == b"content"
            assert not await has_pulse(box)
            await second.destroy("kept")
        finally:
            await second.close()

    async def test_what_was_made_survives_a_kill_of_the_process(
        self, make_provider: MakeProvider, provider: SandboxProvider, tmp_path: Path
    ) -> None:
        source = inspect.getsourcefile(make_provider)
        attribute = make_provider.__qualname__
        if source is None or not attribute.isidentifier():
            pytest.skip("make_provider is no function or class of a module, so no other process can use it")
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _CHILD, source, attribute, str(tmp_path)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert child.stdout is not None
        said = b""
        while not said.startswith(b'"'):  # a provider may log to the same stream
            said = await child.stdout.readline()
            assert said, "the process ended before it had made anything"
        child.send_signal(signal.SIGKILL)
        await child.wait()
        second = make_provider(tmp_path)
        await second.open()
        try:
            found = {info.name: info for info in await second.list_sandboxes()}
            assert {info.status for info in found.values()} == {SandboxStatus.STOPPED}
            assert set(found) == {"left", "stopped"}
            assert found["left"].labels == {"kept": "label"}
            box = await second.resume("left")
            assert await box.read_file("file") == b"content"
            assert (await box.stat("file")).mode == 0o600
            assert not await has_pulse(box)
            assert (await box.exec(["sh", "-c", "echo $KEPT"])).stdout == b"word\n"
            assert (await box.get_detached(json.loads(said))).status is DetachedStatus.LOST
            assert (await (await second.resume("stopped")).exec(["true"])).exit_code == 0
            for name in found:
                await second.destroy(name)
        finally:
            await second.close()
