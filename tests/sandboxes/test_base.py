"""The store of base file systems, and the base that lends the machine's own programs."""

import asyncio
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from fermata.kit.errors import SandboxGoneError, SandboxUnsupportedError, SettingsError
from fermata.sandboxes.providers.local import base_debian
from fermata.sandboxes.providers.local.base import BaseStore
from fermata.sandboxes.providers.local.base_host import build_host_root

SECRET = "of-the-host"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A machine with something to hide and something to lend."""
    host = tmp_path / "host"
    for name in (
        *("etc/ssl/certs", "etc/ssl/private", "etc/ssh", "etc/alternatives", "etc/python3.11", "etc/java-21"),
        *("usr/bin", "usr/etc", "usr/local/etc", "usr/share/ca-certificates", "opt/tool", "home/user"),
    ):
        (host / name).mkdir(parents=True)
    (host / "usr/bin/sh").write_text("shell")
    for name in (
        *("etc/passwd", "etc/shadow", "etc/group", "etc/hosts", "etc/hostname", "etc/resolv.conf"),
        *("etc/machine-id", "etc/ssh/ssh_host_key", "etc/ssl/private/key.pem", "etc/ssl/certs/own.pem"),
        *("etc/gitconfig", "etc/npmrc", "etc/pip.conf", "etc/environment", "etc/profile", "etc/fstab"),
        *("usr/etc/npmrc", "usr/local/etc/npmrc"),
    ):
        (host / name).write_text(SECRET)
    (host / "etc/java-21/management.properties").write_text(SECRET)
    (host / "etc/java-21/management.properties").chmod(0o600)
    (host / "etc/python3.11/sitecustomize.py").write_text("lent")
    (host / "etc/ssl/certs/ca-certificates.crt").write_text("lent")
    (host / "usr/share/ca-certificates/public.crt").write_text("lent")
    (host / "etc/ssl/certs/public.pem").symlink_to(host / "usr/share/ca-certificates/public.crt")
    (host / "etc/ssl/certs/0a1b2c3d.0").symlink_to("public.pem")
    (host / "etc/ssl/certs/elsewhere.pem").symlink_to("/opt/own.pem")
    (host / "etc/alternatives/awk").symlink_to("/usr/bin/mawk")
    (host / "etc/alternatives/tool").symlink_to("/opt/tool/secret-project")
    (host / "bin").symlink_to("usr/bin")
    (host / "lib").mkdir()
    return host


def build(host: Path, tmp_path: Path) -> tuple[Path, tuple[tuple[str, str], ...]]:
    root = tmp_path / "base" / "root"
    root.mkdir(parents=True)
    return root, build_host_root(root, root.parent / "empty", host=host)


def test_nothing_that_is_the_machines_own_is_lent(host: Path, tmp_path: Path) -> None:
    root, binds = build(host, tmp_path)
    told = {path: path.read_text() for path in root.rglob("*") if path.is_file() and not path.is_symlink()}
    assert SECRET not in "".join(told.values())
    assert not [path for path in root.rglob("*") if path.is_symlink() and "/opt" in os.readlink(path)]
    assert (root / "etc/passwd").read_text().startswith("root:x:0:0:")
    assert (root / "etc/resolv.conf").read_text() == ""
    assert {outside for outside, _ in binds} == {str(host / "usr"), str(host / "lib"), "empty"}
    assert list((root.parent / "empty").iterdir()) == []


def test_what_programs_need_of_etc_is_lent(host: Path, tmp_path: Path) -> None:
    root, _ = build(host, tmp_path)
    for name in ("etc/python3.11/sitecustomize.py", "etc/ssl/certs/ca-certificates.crt"):
        assert (root / name).read_text() == "lent"
    assert os.readlink(root / "etc/alternatives/awk") == "/usr/bin/mawk"
    assert os.readlink(root / "etc/ssl/certs/0a1b2c3d.0") == "public.pem"
    assert (root / "etc/ssl/certs/public.pem").is_symlink()


def test_settings_of_the_host_below_usr_are_covered(host: Path, tmp_path: Path) -> None:
    _, binds = build(host, tmp_path)
    order = [inside for _, inside in binds]
    assert order.index("/usr") < order.index("/usr/etc")
    assert ("empty", "/usr/etc") in binds
    assert ("empty", "/usr/local/etc") in binds


def test_links_of_a_merged_usr_stay_links_and_directories_are_bound(host: Path, tmp_path: Path) -> None:
    root, binds = build(host, tmp_path)
    assert os.readlink(root / "bin") == "usr/bin"
    assert (str(host / "lib"), "/lib") in binds
    assert (root / "lib").is_dir()


def test_a_machine_without_programs_in_usr_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "host/nix/store").mkdir(parents=True)
    with pytest.raises(SandboxUnsupportedError, match="FERMATA_SANDBOX_BASE"):
        build(tmp_path / "host", tmp_path)


def test_modes_do_not_hang_on_the_umask(host: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        root, _ = build(host, tmp_path)
    finally:
        os.umask(before)
    for path in root.rglob("*"):
        if not path.is_symlink() and path != root / "root":
            wanted = 0o055 if path.is_dir() else 0o044
            assert path.stat().st_mode & wanted == wanted, path


async def test_programs_of_this_machine_run_on_the_base(tmp_path: Path) -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    base = await BaseStore(builds=False, first_id=None).open(tmp_path)
    binds = [word for outside, inside in base.binds for word in ("--ro-bind", outside, inside)]
    script = (
        "set -e; id -u >/dev/null; ls / /etc; ! test -e /usr/etc/npmrc; ! test -e /etc/shadow;"
        "! command -v git >/dev/null || git --version; ! command -v awk >/dev/null || awk 'BEGIN {}';"
        "! test -x /usr/bin/python3 || /usr/bin/python3 -c 'import ssl; ssl.create_default_context()'"
    )
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--bind", str(base.root), "/", *binds]
    command += ["--proc", "/proc", "--dev", "/dev", "--clearenv", "--setenv", "PATH", "/usr/bin:/bin"]
    run = await asyncio.to_thread(
        subprocess.run, [*command, "sh", "-c", script], capture_output=True, text=True, check=False
    )
    if "No permissions to create new namespace" in run.stderr:
        pytest.skip(run.stderr)
    assert run.returncode == 0, run.stderr
    assert "workspace" in run.stdout


async def test_the_same_machine_gives_the_same_base_however_often_it_is_asked(tmp_path: Path) -> None:
    stores = [BaseStore(builds=False) for _ in range(4)]
    bases = await asyncio.gather(*(store.open(tmp_path) for store in stores))
    assert len({base.id for base in bases}) == 1
    assert bases[0].name == "host"
    assert await BaseStore(builds=False).open(tmp_path) == bases[0]
    assert await stores[0].get(bases[0].id) == stores[1].current() == bases[0]
    assert len([path for path in (tmp_path / "bases").iterdir() if path.is_dir()]) == 1


async def test_another_owner_gets_a_base_of_its_own(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    ours = await BaseStore(builds=False, first_id=None).open(tmp_path)
    mapped = await BaseStore(builds=False, first_id=300_000).open(tmp_path)
    assert ours.id != mapped.id
    assert (mapped.root / "etc/passwd").stat().st_uid == 300_000
    assert (ours.root / "etc/passwd").stat().st_uid == 0


async def test_what_a_killed_process_left_half_made_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / "bases" / ".host-0123456789abcdef" / "root" / "etc"
    left.mkdir(parents=True)
    await BaseStore(builds=False).open(tmp_path)
    assert not left.exists()
    assert not list((tmp_path / "bases").glob(".host-*"))


@pytest.mark.parametrize(
    "base_id", ["", "..", "host-", "host-0123456789abcdef", "../x", "host-0123456789abcdef/.."]
)
async def test_a_base_that_is_missing_is_gone_and_never_replaced(tmp_path: Path, base_id: str) -> None:
    store = BaseStore(builds=False)
    await store.open(tmp_path)
    with pytest.raises(SandboxGoneError):
        await store.get(base_id)


def tar_at(path: Path, content: bytes = b"shell") -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in (("bin/sh", content), ("home/agent/file", b"of another user")):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            info.uid = info.gid = 1000 if name.startswith("home") else 0
            tar.addfile(info, io.BytesIO(data))
    return path


async def test_a_base_that_the_operator_names_is_copied_once_and_used(tmp_path: Path) -> None:
    source = tar_at(tmp_path / "base.tar")
    first_id = 300_000 if os.geteuid() == 0 else None
    data = tmp_path / "data"
    stores = [BaseStore(setting=str(source), first_id=first_id) for _ in range(3)]
    bases = await asyncio.gather(*(store.open(data) for store in stores))
    assert len({base.id for base in bases}) == 1
    base = bases[0]
    assert (base.name, base.binds) == ("custom", ())
    assert "FERMATA_SANDBOX_BASE" in stores[0].status()
    assert (base.root / "bin/sh").read_bytes() == b"shell"
    assert (base.root / "workspace").is_dir()
    if first_id is not None:
        assert (base.root / "home/agent/file").stat().st_uid == 301_000
    source.unlink()
    assert await stores[1].get(base.id) == base
    with pytest.raises(SettingsError):
        await BaseStore(setting=str(source), first_id=first_id).open(data)


async def test_a_changed_source_makes_a_new_base_and_leaves_the_old_one(tmp_path: Path) -> None:
    source = tmp_path / "base.tar"
    data = tmp_path / "data"
    old = await BaseStore(setting=str(tar_at(source)), first_id=None).open(data)
    store = BaseStore(setting=str(tar_at(source, b"a newer shell")), first_id=None)
    new = await store.open(data)
    assert new.id != old.id
    assert (new.root / "bin/sh").read_bytes() == b"a newer shell"
    kept = await store.get(old.id)
    assert (kept.root / "bin/sh").read_bytes() == b"shell"


async def test_a_base_that_cannot_be_used_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "base.tar").write_bytes(b"no tar")
    with pytest.raises(SettingsError):
        await BaseStore(setting=str(tmp_path / "base.tar")).open(tmp_path / "data")
    assert [path.name for path in (tmp_path / "data/bases").iterdir()] == [".custom.lock"]


async def test_without_the_tools_the_status_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    store = BaseStore()
    base = await store.open(tmp_path)
    assert base.name == "host"
    assert "apt-get install" in store.status()
    await store.settle()
    assert store.current() == base


def skip_without_tools() -> None:
    missing = base_debian.missing_tool()
    if missing is not None:
        pytest.skip(missing)


async def test_a_build_that_fails_leaves_the_hosts_programs_and_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without_tools()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    store = BaseStore()
    base = await store.open(tmp_path)
    assert "being built" in store.status()
    await store.settle()
    assert "building it failed" in store.status()
    assert str(tmp_path) not in store.status()
    assert store.current() == base
    assert not list((tmp_path / "bases").glob(".debian-*"))
    await store.close()


async def test_closing_ends_a_build_and_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without_tools()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    asked = asyncio.Event()
    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    store = BaseStore()
    await store.open(tmp_path)
    async with asyncio.timeout(30):
        await asked.wait()
    assert processes_naming(tmp_path)
    await store.close()
    assert not list((tmp_path / "bases").glob(".debian-*"))
    async with asyncio.timeout(30):
        while processes_naming(tmp_path):
            await asyncio.sleep(0.02)
    server.close()


def processes_naming(path: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(path) in (process / "cmdline").read_bytes():
                found.append(process.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


async def test_a_debian_base_is_built_and_used_from_then_on(tmp_path: Path) -> None:
    if os.environ.get("FERMATA_TEST_DEBIAN") != "1":
        pytest.skip("takes minutes and the network: set FERMATA_TEST_DEBIAN=1")
    store = BaseStore()
    host = await store.open(tmp_path)
    await store.settle()
    debian = store.current()
    assert (debian.name, debian.binds) == ("debian", ())
    assert await store.get(host.id) == host
    for program in ("sh", "git", "curl", "python3", "less", "ps"):
        assert (debian.root / "usr/bin" / program).exists(), program
    assert (debian.root / "etc/resolv.conf").read_bytes() == b""
    assert await BaseStore().open(tmp_path) == debian
    await store.close()
