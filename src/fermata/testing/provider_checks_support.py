"""What all checks of the provider kit share: the base class, fresh names, waiting, a pulse to feel for."""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from fermata.kit.errors import FermataError, SandboxPathError
from fermata.sandboxes.contract import Sandbox, SandboxProvider

#: Far longer than anything takes; only a hang meets it.
PATIENCE = timedelta(seconds=30)

#: A loop that leaves the group and the session of whoever starts it and writes a byte every 50 ms.
PULSE = "setsid sh -c 'while :; do printf x >> pulse; sleep 0.05; done'"


#: Kills everything that it may, but only where few processes are in sight: on a host it would end the checks.
KILL_ALL = '[ "$(ls -d /proc/[0-9]* | wc -l)" -lt 40 ] || exit 1; kill -9 -1; exit 5'


def fresh_name(word: str = "box") -> str:
    return f"{word}-{uuid.uuid4().hex[:12]}"


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition holds; fail when it never does."""
    async with asyncio.timeout(PATIENCE.total_seconds()):
        while not await holds():  # noqa: ASYNC110 - what it waits for happens in another process
            await asyncio.sleep(0.02)


async def size_of(box: Sandbox, path: str) -> int:
    """Size of a file, 0 when there is none yet."""
    try:
        return (await box.stat(path)).size
    except SandboxPathError:
        return 0


async def pulse_begins(box: Sandbox, path: str = "pulse") -> None:
    async def grown() -> bool:
        return await size_of(box, path) > 0

    await eventually(grown)


async def has_pulse(box: Sandbox, path: str = "pulse") -> bool:
    """Whether the process that writes `path` is alive."""
    before = await size_of(box, path)
    await asyncio.sleep(0.25)
    return await size_of(box, path) > before


async def shell(box: Sandbox, script: str) -> bytes:
    """Standard output of a script that must succeed."""
    result = await box.exec(["sh", "-ec", script])
    assert result.exit_code == 0, (script, result)
    return result.stdout


class Checks:
    """Base of every group of checks. The fixtures are in `ProviderKit`."""

    @pytest.fixture
    def refused(self, home: Path) -> Callable[..., contextlib.AbstractContextManager[None]]:
        """`with refused(Error):` - the error comes, says something, and names no path of the host."""

        @contextlib.contextmanager
        def refuse(kind: type[FermataError]) -> Iterator[None]:
            with pytest.raises(kind) as caught:
                yield
            assert type(caught.value) is kind
            assert caught.value.message
            assert str(home) not in caught.value.message

        return refuse


Refused = Callable[[type[FermataError]], contextlib.AbstractContextManager[None]]
MakeProvider = Callable[[Path], SandboxProvider]
