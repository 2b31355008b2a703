import asyncio
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from fermata.kit.errors import TimedOutError
from fermata.workspaces.locks import hold_lock

LONG = timedelta(seconds=30)
SHORT = timedelta(milliseconds=60)

_HOLDER = """
import asyncio, sys
from datetime import timedelta
from pathlib import Path
from fermata.workspaces.locks import hold_lock

async def main():
    async with hold_lock(Path(sys.argv[1]), time_limit_for=timedelta(seconds=9)) as descriptor:
        if sys.argv[2] == "child":
            await asyncio.create_subprocess_exec("sleep", "60", pass_fds=(descriptor,))
        print("held", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def start_holder(path: Path, kind: str) -> subprocess.Popen[bytes]:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, path, kind], stdout=subprocess.PIPE, start_new_session=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    return holder


async def test_one_task_holds_a_lock_at_a_time(tmp_path: Path) -> None:
    inside = 0
    turns = 0

    async def work() -> None:
        nonlocal inside, turns
        async with hold_lock(tmp_path / "lock", time_limit_for=LONG):
            inside += 1
            assert inside == 1
            await asyncio.sleep(0.002)
            turns += 1
            inside -= 1

    await asyncio.gather(*(work() for _ in range(5)))
    assert turns == 5


async def test_two_files_are_two_locks(tmp_path: Path) -> None:
    async with (
        hold_lock(tmp_path / "a", time_limit_for=SHORT),
        hold_lock(tmp_path / "b", time_limit_for=SHORT),
    ):
        pass


async def test_waiting_for_too_long_is_an_error_and_the_lock_works_afterwards(tmp_path: Path) -> None:
    async with hold_lock(tmp_path / "lock", time_limit_for=LONG):
        with pytest.raises(TimedOutError):
            async with hold_lock(tmp_path / "lock", time_limit_for=SHORT):
                pass
    async with hold_lock(tmp_path / "lock", time_limit_for=SHORT):
        pass


async def test_a_cancelled_holder_or_waiter_frees_the_lock(tmp_path: Path) -> None:
    async def work() -> None:
        async with hold_lock(tmp_path / "lock", time_limit_for=LONG):
            await asyncio.sleep(60)

    tasks = [asyncio.ensure_future(work()) for _ in range(3)]
    await asyncio.sleep(0.01)
    for task in reversed(tasks):
        task.cancel()
    await asyncio.wait(tasks)
    async with hold_lock(tmp_path / "lock", time_limit_for=SHORT):
        pass


async def test_a_lock_is_free_when_its_process_was_killed(tmp_path: Path) -> None:
    holder = start_holder(tmp_path / "lock", "alone")
    with pytest.raises(TimedOutError):
        async with hold_lock(tmp_path / "lock", time_limit_for=SHORT):
            pass
    holder.kill()
    holder.communicate()
    async with hold_lock(tmp_path / "lock", time_limit_for=LONG):
        pass


async def test_a_child_that_inherited_a_lock_keeps_it_after_its_parent_was_killed(tmp_path: Path) -> None:
    holder = start_holder(tmp_path / "lock", "child")
    holder.kill()
    holder.wait()
    with pytest.raises(TimedOutError):
        async with hold_lock(tmp_path / "lock", time_limit_for=SHORT):
            pass
    os.killpg(holder.pid, 9)
    async with hold_lock(tmp_path / "lock", time_limit_for=LONG):
        pass
    assert holder.stdout is not None
    holder.stdout.close()
