"""What a command may use, and that it ends when it must, with all it started."""

import asyncio
import os
from datetime import timedelta

import pytest
from tests.sandboxes.local.support import eventually, fresh_name, host_processes, sh

from fermata.kit.errors import SandboxFailedError
from fermata.sandboxes.contract import DetachedStatus, Limits, NetworkPolicy, SandboxSpec
from fermata.sandboxes.providers.local import LocalProvider

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Starts what tries to get away: a new session, a double fork, one without environment and streams.
RUNAWAYS = """
setsid sleep {n} &
(setsid setsid sleep {n} &)
env -i setsid sh -c 'exec sleep {n}' </dev/null >/dev/null 2>&1 &
python3 -c 'import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 100)
        os.execvp("sleep", ["sleep", "{n}"])' &
"""


def marked() -> str:
    """A number of seconds to sleep that no other process of this machine sleeps."""
    return f"86{int.from_bytes(os.urandom(3), 'big'):08d}"


@pytest.mark.parametrize("how", ["time limit", "cancelled", "left", "detached"])
async def test_nothing_a_command_started_outlives_its_kill(provider: LocalProvider, how: str) -> None:
    name, n = fresh_name(), marked()
    box = await provider.create(SandboxSpec(name, network=NetworkPolicy.NONE))
    script = RUNAWAYS.format(n=n) + "wait; sleep 100"

    def all_run() -> bool:
        return sum(1 for _ in host_processes(f"sleep\0{n}\0")) >= 4

    if how == "time limit":
        result = await box.exec(["sh", "-c", script], time_limit_for=timedelta(seconds=2))
        assert result.timed_out
        assert result.exit_code is None
    elif how == "cancelled":
        task = asyncio.create_task(box.exec(["sh", "-c", script]))
        await eventually(all_run, "everything has started")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    elif how == "left":
        async with box.start(["sh", "-c", script]):
            await eventually(all_run, "everything has started")
    else:
        started = await box.start_detached(["sh", "-c", script])
        await eventually(all_run, "everything has started")
        await box.kill_detached(started)
        assert (await box.get_detached(started)).status is DetachedStatus.EXITED
    assert host_processes(f"sleep\0{n}\0") == []
    assert await sh(box, "echo alive") == "alive\n"
    await provider.destroy(name)


async def test_killing_one_command_leaves_the_others_alone(provider: LocalProvider) -> None:
    name, n = fresh_name(), marked()
    box = await provider.create(SandboxSpec(name))
    await sh(box, f"sleep {n} >/dev/null 2>&1 &")
    other = await box.start_detached(["sleep", n])
    result = await box.exec(["sh", "-c", "setsid sleep 50 & sleep 50"], time_limit_for=timedelta(seconds=0.2))
    assert result.timed_out
    assert len(host_processes(f"sleep\0{n}\0")) == 2
    assert (await box.get_detached(other)).status is DetachedStatus.RUNNING
    await provider.destroy(name)
    assert host_processes(f"sleep\0{n}\0") == []


async def test_a_keeper_that_is_stopped_or_killed_from_inside_does_not_free_its_command(
    provider: LocalProvider,
) -> None:
    name, n = fresh_name(), marked()
    box = await provider.create(SandboxSpec(name))
    result = await box.exec(
        ["sh", "-c", f"kill -STOP $PPID; setsid sleep {n} & sleep {n}"], time_limit_for=timedelta(seconds=0.5)
    )
    assert result.timed_out
    result = await box.exec(["sh", "-c", f"setsid sleep {n} & kill -9 $PPID; sleep {n}"])
    assert result.exit_code == 137
    await eventually(lambda: host_processes(f"sleep\0{n}\0") == [], "all have ended")
    await provider.destroy(name)


async def test_a_fork_bomb_is_contained_and_ends_at_the_time_limit(provider: LocalProvider) -> None:
    name = fresh_name()
    box = await provider.create(SandboxSpec(name, limits=Limits(processes=60)))
    bomb = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass\n"
    result = await box.exec(["python3", "-c", bomb], time_limit_for=timedelta(seconds=1))
    assert result.timed_out
    assert int(await sh(box, "ls -d /proc/[0-9]* | wc -l")) < 10
    await provider.destroy(name)


async def test_a_bomb_that_forks_and_leaves_is_killed_too(provider: LocalProvider) -> None:
    name = fresh_name()
    box = await provider.create(SandboxSpec(name, limits=Limits(processes=60)))
    runner = "import os\nwhile True:\n    if os.fork(): os._exit(0)\n"
    for _ in range(3):
        started = await box.start_detached(["python3", "-c", runner])
        await asyncio.sleep(0.1)
        await box.kill_detached(started)
        assert await sh(box, "cat /proc/[0-9]*/comm | grep -c python || true") == "0\n"
    await provider.destroy(name)


async def test_at_the_limit_of_processes_a_command_is_refused_and_files_still_work(
    provider: LocalProvider,
) -> None:
    name = fresh_name()
    box = await provider.create(SandboxSpec(name, limits=Limits(processes=30)))
    hog = await box.start_detached(
        [
            "python3",
            "-c",
            "import os,time\ntry:\n  while os.fork(): pass\nexcept OSError: pass\ntime.sleep(60)",
        ]
    )
    async with asyncio.timeout(20):
        while True:
            refusal = await asyncio.gather(box.exec(["true"]), return_exceptions=True)
            if isinstance(refusal[0], SandboxFailedError):
                break
    assert "processes" in str(refusal[0])
    await box.write_file("file", b"x" * 300_000)
    assert len(await box.read_file("file")) == 300_000
    await box.kill_detached(hog)
    assert await sh(box, "echo alive") == "alive\n"
    await provider.destroy(name)


async def test_a_file_larger_than_the_limit_is_not_written(provider: LocalProvider) -> None:
    name = fresh_name()
    box = await provider.create(SandboxSpec(name, limits=Limits(file_bytes=1_000_000)))
    result = await box.exec(["sh", "-c", "head -c 5000000 /dev/zero > big"])
    assert result.exit_code != 0
    assert (await box.stat("big")).size == 1_000_000
    await box.write_file("small", b"old")
    with pytest.raises(SandboxFailedError, match="larger"):
        await box.write_file("small", b"x" * 1_000_001)
    assert await box.read_file("small") == b"old"
    assert [entry.name for entry in await box.list_directory(".")] == ["big", "small"]
    await provider.destroy(name)


@pytest.mark.as_root
async def test_memory_ends_the_command_that_eats_it_and_not_the_sandbox(provider: LocalProvider) -> None:
    if not provider.abilities.hard_limits:
        pytest.skip("no control groups here")
    name = fresh_name()
    box = await provider.create(SandboxSpec(name, limits=Limits(memory_bytes=64_000_000)))
    result = await box.exec(["python3", "-c", "x = bytearray(300_000_000); print(len(x))"])
    assert result.exit_code == 137
    result = await box.exec(["sh", "-c", "head -c 200000000 /dev/zero > /dev/shm/eaten && echo done"])
    assert b"done" not in result.stdout
    assert await sh(box, "rm -f /dev/shm/eaten; echo alive") == "alive\n"
    await provider.destroy(name)


async def test_memory_of_one_process_is_limited_everywhere(provider: LocalProvider) -> None:
    name = fresh_name()
    box = await provider.create(SandboxSpec(name, limits=Limits(memory_bytes=128_000_000)))
    result = await box.exec(["python3", "-c", "x = bytearray(900_000_000); print(len(x))"])
    assert result.exit_code != 0
    assert result.stdout == b""
    await provider.destroy(name)


async def test_output_without_end_is_cut_in_the_middle_and_ends_at_the_time_limit(
    provider: LocalProvider,
) -> None:
    name = fresh_name()
    box = await provider.create(SandboxSpec(name))
    result = await box.exec(["yes"], time_limit_for=timedelta(seconds=0.5), output_limit=10_000)
    assert result.timed_out
    assert result.truncated
    assert len(result.stdout) < 11_000
    await provider.destroy(name)
