"""Checks of what code inside cannot reach, and of its limits. All but the refusals ask for an ability."""

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from fermata.kit.errors import SandboxFailedError, SandboxStoppedError
from fermata.sandboxes.contract import Limits, NetworkPolicy, Sandbox, SandboxProvider, SandboxSpec
from fermata.testing.provider_checks_support import KILL_ALL, Checks, eventually, fresh_name, shell

_CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)
except OSError:
    sys.exit(3)
"""


async def _can_connect(box: Sandbox, host: str, port: int) -> bool:
    """Whether a connection is made from inside, by the first tool that is there."""
    script = (
        'if command -v bash >/dev/null; then bash -c "exec 3<>/dev/tcp/$1/$2" 2>/dev/null || exit 3;'
        'elif command -v python3 >/dev/null; then python3 -c "$3" "$1" "$2"; else exit 4; fi'
    )
    status = (await box.exec(["sh", "-c", script, "sh", host, str(port), _CONNECT])).exit_code
    if status == 4:
        pytest.skip("neither bash nor python3 inside, so nothing can try to connect")
    assert status in (0, 3)
    return status == 0


class WallChecks(Checks):
    @pytest.fixture
    def walls(self, provider: SandboxProvider) -> None:
        if not provider.abilities.isolated:
            pytest.skip(f"{provider.name} does not isolate, and says so")

    @pytest.fixture
    def listener(self) -> Iterator[tuple[str, int]]:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            yield listening.getsockname()

    @pytest.mark.usefixtures("walls")
    async def test_the_working_directory_is_where_commands_say_they_are(self, box: Sandbox) -> None:
        assert await shell(box, "pwd -P") == f"{box.working_directory}\n".encode()

    @pytest.mark.usefixtures("walls")
    async def test_files_of_the_host_are_not_there(self, box: Sandbox, home: Path, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("of the host")
        for path in (secret, home, Path(os.getcwd()), Path("/etc/shadow")):
            result = await box.exec(["sh", "-c", 'test -e "$1" && cat "$1"', "sh", str(path)])
            assert result.exit_code != 0, path
        found = await box.exec(["sh", "-c", f"cat /proc/*/root{secret} /proc/*/cwd/{secret}"])
        assert b"of the host" not in found.stdout

    @pytest.mark.usefixtures("walls")
    async def test_processes_of_the_host_are_neither_seen_nor_reached(self, box: Sandbox) -> None:
        mark = uuid.uuid4().hex
        process = await asyncio.create_subprocess_exec("sh", "-c", "sleep 300; exit", mark)
        try:
            found = await box.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"])
            assert b"proc" in found.stdout  # It does see processes: its own.
            assert mark.encode() not in found.stdout
            await box.exec(["kill", "-9", str(process.pid)])
            await box.exec(["sh", "-c", KILL_ALL])
            assert process.returncode is None
        finally:
            process.kill()
            await process.wait()

    @pytest.mark.usefixtures("walls")
    async def test_no_process_inside_has_the_environment_of_the_server(self, box: Sandbox) -> None:
        inherited = {f"{key}={value}" for key, value in os.environ.items() if len(value) > 20}
        inside = await box.exec(["sh", "-c", "cat /proc/[0-9]*/environ | tr '\\0' '\\n'"])
        assert not inherited & set(inside.stdout.decode("utf-8", "replace").split("\n"))

    @pytest.mark.usefixtures("walls")
    async def test_paths_of_the_host_are_told_nowhere_in_proc(self, box: Sandbox, home: Path) -> None:
        told = await box.exec(["sh", "-c", "cat /proc/[0-9]*/mountinfo /proc/[0-9]*/cmdline"])
        assert told.stdout
        assert str(home).encode() not in told.stdout

    @pytest.mark.usefixtures("walls")
    @pytest.mark.parametrize("policy", NetworkPolicy)
    async def test_the_loopback_of_the_host_is_not_reached(
        self, provider: SandboxProvider, listener: tuple[str, int], policy: NetworkPolicy
    ) -> None:
        if policy is NetworkPolicy.OPEN and not provider.abilities.network:
            pytest.skip(f"{provider.name} has no network")
        name = fresh_name()
        box = await provider.create(SandboxSpec(name, network=policy))
        assert not await _can_connect(box, *listener)
        await provider.destroy(name)

    @pytest.mark.usefixtures("walls")
    async def test_without_a_network_there_is_no_way_out(self, provider: SandboxProvider) -> None:
        name = fresh_name()
        box = await provider.create(SandboxSpec(name, network=NetworkPolicy.NONE))
        assert b"proxy" not in (await shell(box, "env")).lower()
        assert not await _can_connect(box, "192.0.2.1", 80)
        await provider.destroy(name)

    async def test_an_open_network_refuses_addresses_that_are_not_public(
        self, provider: SandboxProvider, listener: tuple[str, int]
    ) -> None:
        if not provider.abilities.network:
            pytest.skip(f"{provider.name} has no network")
        name = fresh_name()
        box = await provider.create(SandboxSpec(name, network=NetworkPolicy.OPEN))
        if (await box.exec(["sh", "-c", "command -v curl"])).exit_code != 0:
            pytest.skip("no curl inside, so nothing can ask the proxy")
        for host in ("127.0.0.1", "169.254.169.254", "10.0.0.1", "[::1]"):
            answer = await box.exec(["curl", "-sS", "-m", "20", f"http://{host}:{listener[1]}/"])
            assert answer.exit_code != 0 or b"may not" in answer.stdout, (host, answer)
        await provider.destroy(name)

    @pytest.mark.usefixtures("walls")
    async def test_two_sandboxes_do_not_see_each_other(self, provider: SandboxProvider, box: Sandbox) -> None:
        name = fresh_name()
        other = await provider.create(SandboxSpec(name))
        mark = uuid.uuid4().hex
        await box.start_detached(["sh", "-c", f"touch /tmp/{mark}; sleep 300; exit", mark])

        async def is_running() -> bool:
            # Its exit status tells only of processes that ended while it read.
            seen = await box.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline"])
            return mark.encode() in seen.stdout

        await eventually(is_running)
        seen = await other.exec(["sh", "-c", f"cat /proc/[0-9]*/cmdline; ls /tmp {box.working_directory}"])
        # Its own command line names no mark, so any sight of it is of the neighbour.
        assert mark.encode() not in seen.stdout
        await other.exec(["sh", "-c", KILL_ALL])
        await provider.destroy(name)
        assert await is_running()

    @pytest.mark.usefixtures("walls")
    @pytest.mark.parametrize(
        "script",
        [
            'value=$(cat /proc/sys/kernel/core_pattern) && echo "$value" > /proc/sys/kernel/core_pattern',
            "mkdir -p m && mount -t tmpfs none m",
            "mkdir -p m && mount --bind /usr m",
            "mknod device b 7 0",
            "unshare -Urm true",
            'hostname "$(hostname)"',
            "[ ! -e /proc/sysrq-trigger ] || test -w /proc/sysrq-trigger && : >> /proc/sysrq-trigger",
        ],
    )
    async def test_the_kernel_and_the_walls_cannot_be_changed_from_inside(
        self, box: Sandbox, script: str
    ) -> None:
        assert (await box.exec(["sh", "-c", script])).exit_code != 0

    @pytest.mark.usefixtures("walls")
    async def test_killing_everything_inside_leaves_a_disk_that_can_be_resumed(
        self, provider: SandboxProvider, box: Sandbox
    ) -> None:
        await box.write_file("kept", b"kept")
        with contextlib.suppress(SandboxStoppedError):
            assert (await box.exec(["sh", "-c", f"kill -9 1; kill -STOP 1; {KILL_ALL}"])).exit_code in (
                5,
                137,
            )
        box = await provider.resume(box.name)
        assert await shell(box, "cat kept") == b"kept"

    @pytest.mark.usefixtures("walls")
    async def test_no_file_grows_past_its_limit(self, provider: SandboxProvider) -> None:
        name = fresh_name()
        box = await provider.create(SandboxSpec(name, limits=Limits(file_bytes=1_000_000)))
        await box.exec(["sh", "-c", "head -c 3000000 /dev/zero > big"])
        assert (await box.stat("big")).size <= 1_000_000
        await box.exec(["sh", "-c", "truncate -s 5M sparse; fallocate -l 5M taken"])
        for path in ("sparse", "taken"):
            sizes = await box.exec(["sh", "-c", f"stat -c %s {path} || echo 0"])
            assert int(sizes.stdout) <= 1_000_000
        await provider.destroy(name)

    async def test_memory_and_processes_have_hard_limits(self, provider: SandboxProvider) -> None:
        if not provider.abilities.hard_limits:
            pytest.skip(f"{provider.name} has no limits by the kernel here")
        name = fresh_name()
        limits = Limits(memory_bytes=128_000_000, processes=40, cpus=0.5)
        box = await provider.create(SandboxSpec(name, limits=limits))
        # tail keeps what it is given until a line ends, and there is no line.
        eaten = await box.exec(["sh", "-c", "head -c 600000000 /dev/zero | tail; exit 0"])
        assert len(eaten.stdout) < 600_000_000
        assert not eaten.timed_out
        script = "i=0; while [ $i -lt 100 ]; do sleep 3 & i=$((i+1)); done; wait"
        forked = await box.exec(["sh", "-c", script])
        assert forked.exit_code != 0

        async def answers() -> bool:
            try:
                return (await box.exec(["echo", "alive"])).stdout == b"alive\n"
            except SandboxFailedError:
                return False  # As long as the limit is used up.

        await eventually(answers)
        await provider.destroy(name)
