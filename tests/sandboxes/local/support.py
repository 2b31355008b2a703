"""What the tests of the local provider share."""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from fermata.sandboxes.contract import Limits, Sandbox
from fermata.sandboxes.egress import EgressProxy
from fermata.sandboxes.providers.local import LocalProvider
from fermata.sandboxes.providers.local.base import BaseStore
from fermata.sandboxes.providers.local.ids import first_id

#: An ordinary user that no account uses.
ORDINARY = 21_730
INSTALLATION = "tests"


def make_provider(data_dir: Path, limits: Limits | None = None) -> LocalProvider:
    more = {} if limits is None else {"defaults": limits}
    return LocalProvider(
        data_dir=data_dir,
        installation=INSTALLATION,
        egress=EgressProxy(),
        base=BaseStore(builds=False, first_id=first_id()),
        **more,
    )


def fresh_name() -> str:
    return f"box-{secrets.token_hex(4)}"


async def sh(sandbox: Sandbox, script: str, **options: object) -> str:
    """What a script said; it must succeed."""
    result = await sandbox.exec(["sh", "-c", script], **options)  # type: ignore[arg-type]
    assert result.exit_code == 0, (result.exit_code, result.stdout, result.stderr)
    return result.stdout.decode()


async def eventually(check: Callable[[], bool], what: str, within: float = 20.0) -> None:
    async with asyncio.timeout(within):
        while not check():
            await asyncio.sleep(0.01)
    assert check(), what


def host_processes(word: str) -> list[int]:
    """Processes of this machine, wherever they run, with the word in their command line."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and word.encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                found.append(int(entry))
    return [pid for pid in found if pid != os.getpid()]


_PRELUDE = """
import asyncio, sys
from pathlib import Path
from datetime import timedelta
from fermata.sandboxes.contract import *
from tests.sandboxes.local.support import make_provider, sh
data_dir = Path(sys.argv[1])
async def main():
    provider = make_provider(data_dir)
    report = await provider.open()
    assert report.usable, report
{body}
asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def other_server(data_dir: Path, body: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A second server on the same data directory, in a process of its own, that runs `body`. Killed (-9) when
    the block is left, if it has not ended itself."""
    code = _PRELUDE.format(body=textwrap.indent(textwrap.dedent(body), "    "))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, str(data_dir)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.communicate()


async def said(process: asyncio.subprocess.Process, word: str) -> str:
    """Wait for a line that begins with the word, and return the rest of it."""
    assert process.stdout is not None
    async with asyncio.timeout(30):
        while True:
            line = (await process.stdout.readline()).decode()
            assert line, f"the other server ended without saying {word!r}"
            if line.startswith(word):
                return line[len(word) :].strip()
