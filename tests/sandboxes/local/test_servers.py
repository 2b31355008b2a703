"""Servers that die, servers that share a data directory, and what either leaves behind."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tests.sandboxes.local.support import (
    eventually,
    fresh_name,
    host_processes,
    make_provider,
    other_server,
    said,
    sh,
)

from fermata.kit.errors import SandboxGoneError, SandboxStoppedError
from fermata.sandboxes.contract import DetachedStatus, SandboxSpec, SandboxStatus
from fermata.sandboxes.providers.local import LocalProvider


def groups_of(installation: str) -> list[str]:
    found = []
    for place, directories, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{place}/{name}" for name in directories if name.startswith(f"fermata-{installation}-")]
    return found


def mounts_below(path: Path) -> list[str]:
    """Mounts, in any mount namespace of this machine, that name the path."""
    found = set()
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit():
                lines = Path(f"/proc/{entry}/mountinfo").read_text().splitlines()
                found.update(line for line in lines if str(path) in line)
        except OSError:
            continue
    return sorted(found)


async def test_a_killed_server_leaves_no_process_and_no_mount_and_the_disk_is_kept(tmp_path: Path) -> None:
    body = """
    box = await provider.create(SandboxSpec("left"))
    await box.write_file("file", b"content")
    await sh(box, "setsid sleep 8612345 >/dev/null 2>&1 & echo written > by-command")
    lost = await box.start_detached(["sh", "-c", "echo begun; sleep 8612345"])
    done = await box.start_detached(["sh", "-c", "echo all; exit 4"])
    while (await box.get_detached(done)).status is DetachedStatus.RUNNING:
        await asyncio.sleep(0.01)
    while not (await box.get_detached(lost)).output:
        await asyncio.sleep(0.01)
    print("ready", lost, done, flush=True)
    await asyncio.sleep(100)
    """
    async with other_server(tmp_path, body) as server:
        lost, done = (await said(server, "ready")).split()
        assert len(host_processes("sleep\0008612345\0")) == 2
        server.send_signal(signal.SIGKILL)
        await server.wait()
        provider = make_provider(tmp_path)
        assert (await provider.open()).usable
    assert host_processes("sleep\0008612345\0") == []
    assert mounts_below(tmp_path) == []
    assert (await provider.describe("left")).status is SandboxStatus.STOPPED
    with pytest.raises(SandboxStoppedError):
        await provider.connect("left")
    box = await provider.resume("left")
    assert await box.read_file("file") == b"content"
    assert await box.read_file("by-command") == b"written\n"
    ended = await box.get_detached(done)
    assert (ended.status, ended.exit_code, ended.output) == (DetachedStatus.EXITED, 4, b"all\n")
    cut_off = await box.get_detached(lost)
    assert (cut_off.status, cut_off.output) == (DetachedStatus.LOST, b"begun\n")
    await provider.destroy("left")
    await provider.close()


async def test_a_killed_launcher_takes_the_sandboxes_with_it_and_the_next_start_has_another(
    tmp_path: Path,
) -> None:
    provider = make_provider(tmp_path)
    await provider.open()
    box = await provider.create(SandboxSpec("box"))
    (launcher,) = [pid for pid in host_processes("/bin/launcher\0") if _parent(pid) == os.getpid()]
    os.kill(launcher, signal.SIGKILL)
    async with asyncio.timeout(10):
        while (await provider.describe("box")).status is SandboxStatus.RUNNING:
            await asyncio.sleep(0.01)
    with pytest.raises(SandboxStoppedError):
        await box.exec(["true"])
    box = await provider.resume("box")
    assert await sh(box, "echo again") == "again\n"
    await provider.close()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_another_server_can_use_stop_and_delete_a_sandbox_that_runs_here(tmp_path: Path) -> None:
    provider = make_provider(tmp_path)
    await provider.open()
    box = await provider.create(SandboxSpec("shared"))
    await box.write_file("file", b"here")
    await provider.create(SandboxSpec("deleted"))
    body = """
    box = await provider.connect("shared")
    assert await box.read_file("file") == b"here"
    result = await box.exec(["sh", "-c", "setsid sleep 60 & sleep 60"], time_limit_for=timedelta(seconds=0.2))
    assert result.timed_out
    assert (await sh(box, "ls /proc | grep -c ^[0-9]")).strip() < "7"
    assert {info.name: info.status for info in await provider.list_sandboxes()}["shared"] == "running"
    await provider.stop("shared")
    await provider.destroy("deleted")
    print("done", flush=True)
    """
    async with other_server(tmp_path, body) as server:
        await said(server, "done")
    with pytest.raises(SandboxStoppedError):
        await box.exec(["true"])
    with pytest.raises(SandboxGoneError):
        await provider.connect("deleted")
    again = await provider.resume("shared")
    assert await again.read_file("file") == b"here"
    await provider.close()


async def test_a_server_that_opens_does_not_touch_what_a_living_one_runs(tmp_path: Path) -> None:
    provider = make_provider(tmp_path)
    await provider.open()
    box = await provider.create(SandboxSpec("mine"))
    running = await box.start_detached(["sleep", "100"])
    async with other_server(tmp_path, "print('open', flush=True); await asyncio.sleep(100)") as server:
        await said(server, "open")
    assert (await box.get_detached(running)).status is DetachedStatus.RUNNING
    assert await sh(box, "echo alive") == "alive\n"
    await provider.close()


async def test_two_servers_that_resume_at_once_get_one_machine(tmp_path: Path) -> None:
    provider = make_provider(tmp_path)
    await provider.open()
    await provider.create(SandboxSpec("raced"))
    body = """
    for _ in range(4):
        sys.stdin.readline()
        box = await provider.resume("raced")
        print("id", await sh(box, "readlink /proc/self/ns/pid"), flush=True)
    await asyncio.sleep(100)
    """
    async with other_server(tmp_path, body) as server:
        assert server.stdin is not None
        for _ in range(4):
            await provider.stop("raced")
            server.stdin.write(b"\n")
            mine, theirs = await asyncio.gather(_resume(provider), said(server, "id"))
            assert mine == theirs
    await provider.close()


async def _resume(provider: LocalProvider) -> str:
    return (await sh(await provider.resume("raced"), "readlink /proc/self/ns/pid")).strip()


async def test_what_was_half_made_or_half_deleted_is_gone_after_the_next_start(tmp_path: Path) -> None:
    provider = make_provider(tmp_path)
    await provider.open()
    await provider.create(SandboxSpec("kept"))
    await provider.close()
    for place in ("staging", "trash"):
        half = tmp_path / place / "0123456789abcdef"
        (half / "disk" / "work" / "work").mkdir(parents=True)
        (half / "disk" / "work" / "work").chmod(0)
        (half / "sandbox.json").write_text("{}")
    (tmp_path / "layers" / "feedfeedfeedfeed").mkdir()
    provider = make_provider(tmp_path)
    await provider.open()
    assert os.listdir(tmp_path / "staging") == os.listdir(tmp_path / "trash") == []
    assert os.listdir(tmp_path / "layers") == ["lock"]
    assert [info.name for info in await provider.list_sandboxes()] == ["kept"]
    await provider.destroy("kept")
    await provider.close()


@pytest.mark.as_root
async def test_control_groups_go_with_the_last_server(tmp_path: Path) -> None:
    provider = make_provider(tmp_path)
    await provider.open()
    before = groups_of("tests")
    await provider.create(SandboxSpec("box"))
    await provider.close()
    assert len(groups_of("tests")) < len(before)


async def test_a_cancelled_create_leaves_nothing(tmp_path: Path) -> None:
    provider = make_provider(tmp_path)
    await provider.open()
    for number in range(8):
        task = asyncio.create_task(provider.create(SandboxSpec(f"cut-{number}")))
        await asyncio.sleep(0.0015 * number)
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        if not isinstance(ended, asyncio.CancelledError):  # it was quicker
            assert number > 1
            await provider.destroy(f"cut-{number}")
    assert await provider.list_sandboxes() == []
    for place in ("sandboxes", "staging", "trash"):
        assert os.listdir(tmp_path / place) == []
    await provider.close()


async def test_a_data_directory_with_a_very_long_path_works(tmp_path: Path) -> None:
    long = tmp_path / ("d" * 100) / ("e" * 100)
    provider = make_provider(long)
    assert (await provider.open()).usable
    name = fresh_name()
    box = await provider.create(SandboxSpec(name))
    assert await sh(box, "echo here") == "here\n"
    await provider.destroy(name)
    await provider.close()


async def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    provider = make_provider(tmp_path)
    await provider.open()

    async def use(number: int) -> None:
        name = f"used-{number}"
        box = await provider.create(SandboxSpec(name))
        await asyncio.gather(*(box.exec(["sh", "-c", "cat; exit 3"], stdin=b"x" * 100_000) for _ in range(4)))
        await box.write_file("file", b"x" * 200_000)
        await box.read_file("file")
        await box.list_directory(".")
        await box.start_detached(["true"])
        async with box.start(["sleep", "50"]):
            pass
        await provider.stop(name)
        await provider.resume(name)
        await provider.destroy(name)

    await use(0)
    before = _open_descriptors()
    for number in range(1, 4):
        await use(number)
    assert _open_descriptors() == before
    await provider.close()


def _open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_socket_file_that_nobody_serves_means_stopped(tmp_path: Path) -> None:
    provider = make_provider(tmp_path)
    await provider.open()
    box = await provider.create(SandboxSpec("dies"))
    (init,) = [
        pid
        for pid in host_processes("init")
        if Path(f"/proc/{pid}/comm").read_text() == "init\n" and _is_inside(pid)
    ]
    os.kill(init, signal.SIGKILL)

    async def stopped() -> bool:
        return (await provider.describe("dies")).status is SandboxStatus.STOPPED

    async with asyncio.timeout(10):
        while not await stopped():
            await asyncio.sleep(0.01)
    for call in (box.exec(["true"]), box.read_file("/etc/hostname"), box.start_detached(["true"])):
        with pytest.raises(SandboxStoppedError):
            await call
    box = await provider.resume("dies")
    assert await sh(box, "echo back") == "back\n"
    await provider.close()
    await eventually(lambda: mounts_below(tmp_path) == [], "nothing is mounted")


def _is_inside(pid: int) -> bool:
    """Whether it is a first process of a sandbox that this process's launcher started."""
    status = Path(f"/proc/{pid}/status").read_text()
    namespaces = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
    if namespaces[-1] != "1" or len(namespaces) != 3:
        return False
    monitor = _parent(pid)
    return _parent(_parent(monitor)) == os.getpid()
