"""What code inside must not be able to do, tried."""

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.sandboxes.local.support import fresh_name, sh

from fermata.kit.errors import SandboxPathError
from fermata.sandboxes.contract import FileKind, NetworkPolicy, Sandbox, SandboxSpec
from fermata.sandboxes.providers.local import LocalProvider

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Calls by their number on x86-64 and aarch64, through ctypes, so that no tool is needed inside.
CALL = """
import ctypes, os, sys, errno
libc = ctypes.CDLL(None, use_errno=True)
x86 = os.uname().machine == "x86_64"
def call(numbers, *args):
    ctypes.set_errno(0)
    got = libc.syscall(numbers[0 if x86 else 1], *args)
    return errno.errorcode.get(ctypes.get_errno(), "OK") if got == -1 else "OK"
"""


async def python(box: Sandbox, code: str) -> str:
    result = await box.exec(["python3", "-c", CALL + code])
    assert result.exit_code == 0, result.stderr.decode()
    return result.stdout.decode().strip()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(provider: LocalProvider) -> AsyncIterator[Sandbox]:
    name = fresh_name()
    yield await provider.create(SandboxSpec(name))
    await provider.destroy(name)


async def test_a_command_has_a_filter_no_way_to_rights_and_few_capabilities(box: Sandbox) -> None:
    status = await sh(box, "cat /proc/self/status")
    found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    forbidden = {"sys_admin": 21, "net_admin": 12, "sys_ptrace": 19, "mknod": 27, "sys_module": 16}
    for which in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh"):
        for name, bit in {**forbidden, "setpcap": 8, "sys_chroot": 18, "net_raw": 13}.items():
            assert not int(found[which], 16) >> bit & 1, (which, name)


@pytest.mark.parametrize(
    ("what", "expression"),
    [
        ("mount", 'call((165, 40), b"none", b"/mnt", b"tmpfs", 0, 0)'),
        ("the new mount calls", 'call((430, 430), b"tmpfs", 0)'),
        ("unshare of a user namespace", "call((272, 97), 0x10000000)"),
        ("setns", "call((308, 268), 0, 0)"),
        ("keyctl", "call((250, 219), 0, -3, 0)"),
        ("bpf", "call((321, 280), 0, 0, 0)"),
        ("perf_event_open", "call((298, 241), 0, 0, 0, 0, 0)"),
        ("pivot_root", 'call((155, 41), b".", b".")'),
        ("a clone into namespaces", "call((56, 220), 0x10000000 | 17, 0, 0, 0, 0)"),
        ("typing into the terminal", "call((16, 29), 0, 0x5412, b'x')"),
        ("reading the kernel's log", "call((103, 116), 3, b' ' * 8, 8)"),
        ("a block device", 'call((259, 33), -100, b"/tmp/disk", 0o60600, 0x0800)'),
        ("a handle to a file", "call((304, 265), -100, b' ' * 32, 0)"),
    ],
)
async def test_a_call_that_reaches_the_host_is_refused(box: Sandbox, what: str, expression: str) -> None:
    assert await python(box, f"print({expression})") == "EPERM", what


@pytest.mark.parametrize(
    ("what", "expression", "error"),
    [
        ("io_uring", "call((425, 425), 8, b' ' * 120)", "ENOSYS"),
        ("userfaultfd", "call((323, 282), 0)", "ENOSYS"),
        ("clone3, which hides its flags", "call((435, 435), 0, 88)", "ENOSYS"),
        ("a call younger than the filter", "call((462, 462), 0, 0, 0)", "ENOSYS"),
        ("AF_VSOCK", "call((41, 198), 40, 1, 0)", "EAFNOSUPPORT"),
        ("AF_ALG", "call((41, 198), 38, 5, 0)", "EAFNOSUPPORT"),
        ("AF_PACKET", "call((41, 198), 17, 3, 0)", "EAFNOSUPPORT"),
        ("netlink but for routes", "call((41, 198), 16, 3, 12)", "EPROTONOSUPPORT"),
        ("SCTP", "call((41, 198), 2, 1, 132)", "EPROTONOSUPPORT"),
        ("taking the disk at once", "call((285, 47), 1, 0, 0, 1 << 40)", "ENOTSUP"),
        ("TCP, which is allowed", "call((41, 198), 2, 1, 0)", "OK"),
    ],
)
async def test_what_a_sandbox_does_not_need_does_not_exist(
    box: Sandbox, what: str, expression: str, error: str
) -> None:
    assert await python(box, f"print({expression})") == error, what


async def test_no_path_leads_to_the_hosts_files(box: Sandbox, data_dir: Path) -> None:
    assert sorted((await sh(box, "ls /")).split()) == sorted(set((await sh(box, "ls /")).split()))
    marker = data_dir / "marker"
    marker.write_text("secret")
    tries = [
        str(data_dir),
        "/proc/1/root/",
        "/proc/1/cwd/",
        f"/proc/self/root{marker}",
        "/oldroot",
        "/newroot",
    ]
    for path in tries:
        assert (await box.exec(["ls", path])).exit_code != 0, path
    assert (await box.exec(["cat", "/etc/shadow"])).exit_code != 0


async def test_links_and_dots_do_not_lead_out_of_a_read_or_write(box: Sandbox, data_dir: Path) -> None:
    secret = data_dir / "outside"
    secret.write_text("secret")
    dots = "../" * 40
    await sh(
        box,
        f"ln -sfn {secret} link; ln -sfn / root; ln -sfn {data_dir} dir; ln -sfn /proc/1/root up; "
        "ln -sfn /proc/self/fd fds; ln -sfn self loop-a; ln -sfn loop-b loop-a; ln -sfn loop-a loop-b",
    )
    for path in ("link", f"{dots}{str(secret)[1:]}", f"root{secret}", "dir/outside", f"up{secret}", "loop-a"):
        with pytest.raises(SandboxPathError):
            await box.read_file(path)
        with pytest.raises(SandboxPathError):
            await box.stat(path)
    for path in ("up", "dir", "fds/3", "/proc/1/root", "/proc/self/root"):
        with pytest.raises(SandboxPathError):
            await box.list_directory(path)
        with pytest.raises(SandboxPathError):
            await box.exec(["true"], cwd=path)
    # A write through the dangling link makes the path inside, never the one outside.
    await box.write_file("link", b"inside")
    assert secret.read_text() == "secret"
    assert await sh(box, f"cat {secret}") == "inside"


async def test_descriptors_of_the_first_process_are_no_files_to_read(box: Sandbox) -> None:
    for number in range(12):
        with pytest.raises(SandboxPathError):
            await box.read_file(f"/proc/self/fd/{number}")
        with pytest.raises(SandboxPathError):
            await box.write_file(f"/proc/1/fd/{number}", b"x")
    with pytest.raises(SandboxPathError):
        await box.read_file("/proc/self/exe")


async def test_only_regular_files_are_read_and_replaced(box: Sandbox) -> None:
    await sh(box, "rm -f pipe; mkfifo pipe; mkdir -p here")
    for path in ("pipe", "here", "/dev/zero", "/dev/tty", "/dev/null"):
        with pytest.raises(SandboxPathError):
            await box.read_file(path)
        with pytest.raises(SandboxPathError):
            await box.write_file(path, b"x")
    assert (await box.stat("pipe")).kind is FileKind.OTHER


async def test_a_file_of_proc_is_read_to_its_bound(box: Sandbox) -> None:
    assert b"MemTotal" in await box.read_file("/proc/meminfo")
    assert len(await box.read_file("/proc/meminfo", limit=10)) == 10


async def test_nothing_of_the_server_is_in_the_environment(
    provider: LocalProvider, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "do-not-tell")
    name = fresh_name()
    sandbox = await provider.create(SandboxSpec(name))
    seen = await sh(sandbox, "env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null; true")
    assert "do-not-tell" not in seen
    assert "SECRET_TOKEN" not in seen
    await provider.destroy(name)


async def test_the_first_process_cannot_be_read_traced_killed_or_replaced(box: Sandbox) -> None:
    for path in ("environ", "maps", "mem", "fd/3", "exe"):
        assert (await box.exec(["sh", "-c", f"head -c1 /proc/1/{path} >/dev/null"])).exit_code != 0, path
    assert await python(box, "print(call((101, 117), 16, 1, 0, 0))") == "EPERM"
    await sh(box, "kill -9 1; kill -STOP 1; kill -TERM 1; true")
    assert (await box.exec(["sh", "-c", "echo x > /proc/1/exe"])).exit_code != 0
    assert await sh(box, "echo alive") == "alive\n"


async def test_a_command_that_kills_everything_it_sees_ends_nothing_but_itself(box: Sandbox) -> None:
    result = await box.exec(["sh", "-c", "kill -9 -1; sleep 5"])
    assert result.exit_code == 137
    assert not result.timed_out
    assert await sh(box, "echo alive") == "alive\n"


async def test_a_command_has_three_descriptors_and_none_of_the_server(box: Sandbox) -> None:
    held = [socket.socket() for _ in range(20)]
    for one in held:
        one.set_inheritable(True)
    listed = await sh(box, "ls /proc/self/fd /proc/$$/fd")
    for one in held:
        one.close()
    assert set(listed.split()) - {"/proc/self/fd:"} <= {"0", "1", "2", "3"} | {
        word for word in listed.split() if word.startswith("/proc/")
    }


async def test_settings_of_the_kernel_cannot_be_changed(box: Sandbox) -> None:
    for path in (
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/user/max_user_namespaces",
        "/proc/sysrq-trigger",
    ):
        assert (await box.exec(["sh", "-c", f"echo 1 > {path}"])).exit_code != 0, path
    assert await box.read_file("/proc/cmdline") == b""
    assert (await sh(box, "cat /proc/kallsyms /proc/keys /proc/timer_list")) == ""


async def test_a_user_namespace_cannot_be_made_even_without_the_filter(box: Sandbox) -> None:
    assert await sh(box, "cat /proc/sys/user/max_user_namespaces") == "0\n"


async def test_the_hosts_programs_cannot_be_changed_and_setuid_gives_nothing(box: Sandbox) -> None:
    assert (await box.exec(["sh", "-c", "echo x > /usr/bin/true"])).exit_code != 0
    assert (await box.exec(["sh", "-c", "rm -f /usr/bin/true || rm -rf /usr/share/doc"])).exit_code != 0
    mounts = await sh(box, "cat /proc/self/mounts")
    for line in mounts.splitlines():
        assert "nosuid" in line.split()[3].split(","), line


async def test_a_sandbox_sees_only_its_own_processes_and_names(box: Sandbox, provider: LocalProvider) -> None:
    pids = [int(entry.name) for entry in await box.list_directory("/proc") if entry.name.isdigit()]
    assert max(pids) < 5000
    assert len(pids) < 20
    other = fresh_name()
    neighbour = await provider.create(SandboxSpec(other))
    ids = [await sh(one, "cat /etc/machine-id") for one in (box, neighbour)]
    assert ids[0] != ids[1]
    assert await sh(neighbour, "hostname; cat /etc/hostname") == f"{other}\n{other}\n"
    assert other in await sh(neighbour, "cat /etc/hosts")
    await provider.destroy(other)


async def test_the_hosts_sockets_are_out_of_reach(box: Sandbox, tmp_path: Path) -> None:
    abstract = f"\0fermata-test-{os.getpid()}"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind(abstract)
        unix.listen()
        port = tcp.getsockname()[1]
        code = f"""
import socket
for family, address in ((socket.AF_INET, ("127.0.0.1", {port})), (socket.AF_UNIX, {abstract!r}),
                        (socket.AF_INET, ("169.254.169.254", 80)), (socket.AF_INET, ("1.1.1.1", 53))):
    s = socket.socket(family)
    s.settimeout(2)
    try:
        s.connect(address)
        print("reached", address)
    except OSError:
        pass
"""
        assert await python(box, code) == ""


async def test_with_no_network_there_is_no_proxy_and_no_word_of_one(provider: LocalProvider) -> None:
    name = fresh_name()
    box = await provider.create(SandboxSpec(name, network=NetworkPolicy.NONE))
    assert "proxy" not in (await sh(box, "env")).lower()
    assert await python(box, "import socket; print(socket.socket().connect_ex(('127.0.0.1', 3128)))") != "0"
    await provider.destroy(name)


async def test_with_an_open_network_a_port_inside_is_the_proxy(box: Sandbox) -> None:
    assert "http_proxy=http://127.0.0.1:3128" in await sh(box, "env")
    assert await python(box, "import socket; print(socket.socket().connect_ex(('127.0.0.1', 3128)))") == "0"


async def test_links_in_place_of_mount_points_do_not_move_the_mounts(provider: LocalProvider) -> None:
    name = fresh_name()
    box = await provider.create(SandboxSpec(name))
    await sh(box, "rm -rf /srv && ln -s /proc/1/root /srv; mv /etc /etc2; ln -s /tmp /etc")
    await provider.stop(name)
    upper = next((provider._layout.sandboxes / name).glob("disk/upper"))
    for place in ("run", "dev", "proc", "usr"):
        target = upper / place
        if target.is_symlink() or not target.exists():
            continue
        target.rmdir() if target.is_dir() else target.unlink()
        target.symlink_to("/etc2")
    box = await provider.resume(name)
    assert (
        await sh(box, "test -c /dev/null && test -d /proc/self && test -d /usr/bin && echo whole")
        == "whole\n"
    )
    await provider.destroy(name)
