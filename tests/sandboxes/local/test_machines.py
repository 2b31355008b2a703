"""Machines that lack something, and the words for it; and the whole of these tests as an ordinary user."""

import asyncio
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sandboxes.local.support import ORDINARY

from fermata.sandboxes.providers.local.engine import explain
from fermata.sandboxes.providers.local.native import build

HERE = Path(__file__).parent
ROOT = HERE.parents[2]

_OPEN = """
import asyncio, sys
from pathlib import Path
from fermata.kit.errors import SandboxUnsupportedError
from fermata.sandboxes.contract import SandboxSpec
from tests.sandboxes.local.support import make_provider
async def main():
    provider = make_provider(Path(sys.argv[1]))
    report = await provider.open()
    print("usable", report.usable, "|".join(report.missing), flush=True)
    if not report.usable:
        try:
            await provider.create(SandboxSpec("refused"))
        except SandboxUnsupportedError as error:
            print("refused", error.message == chr(10).join(report.missing), flush=True)
    await provider.close()
asyncio.run(main())
"""


async def open_on_a_machine_where(setup: str, data_dir: Path, *enter: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(*enter, "sh", "-c", f'{setup} && exec "$@"', "sh", sys.executable, "-c", _OPEN, str(data_dir)),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    out, _ = await process.communicate()
    return out.decode()


@pytest.mark.as_root
async def test_without_bubblewrap_nothing_runs_and_the_report_says_how_to_get_it(tmp_path: Path) -> None:
    hide = "mount --bind /dev/null $(command -v bwrap)"
    told = await open_on_a_machine_where(hide, tmp_path, "unshare", "-m")
    assert "usable False bubblewrap is not installed: apt-get install bubblewrap\n" in told
    assert "refused True" in told


@pytest.mark.as_root
async def test_without_user_namespaces_nothing_runs_and_the_report_says_how_to_allow_them(
    tmp_path: Path,
) -> None:
    forbid = "echo 0 > /proc/sys/user/max_user_namespaces"
    told = await open_on_a_machine_where(forbid, tmp_path, "unshare", "-rm")
    assert "usable False no user namespace is left: sudo sysctl -w user.max_user_namespaces=65536\n" in told
    assert "refused True" in told


@pytest.mark.as_root
async def test_where_parts_of_proc_are_hidden_the_report_names_the_containers_options(tmp_path: Path) -> None:
    hide = "mount -t tmpfs none /proc/fs"
    told = await open_on_a_machine_where(hide, tmp_path, "unshare", "-m")
    assert "usable False" in told
    assert "docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined" in told


@pytest.mark.parametrize(
    ("said", "repair"),
    [
        ("launcher: unshare: Operation not permitted", "docker run"),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "docker run"),
        ("launcher: newuidmap or newgidmap refused", "usermod --add-subuids"),
        ("launcher: overlay: Operation not permitted", "kernel 5.11"),
        ("bwrap: Unknown option --perms", "apt-get install bubblewrap"),
    ],
)
def test_each_refusal_of_a_machine_has_its_repair(said: str, repair: str) -> None:
    assert repair in explain(said)


_ELSEWHERE = """
import asyncio, sys
import structlog, fermata.sandboxes.contract
sys.platform = "darwin"
from fermata.sandboxes.providers.local import LocalProvider
provider = LocalProvider(data_dir=None, installation="x", egress=None, base=None)
report = asyncio.run(provider.open())
print(report.usable, report.missing[0])
"""


def test_on_another_system_the_provider_loads_and_says_that_it_needs_linux() -> None:
    told = subprocess.run([sys.executable, "-c", _ELSEWHERE], check=True, capture_output=True, text=True)
    assert told.stdout.startswith("False local sandboxes need Linux, and this is darwin")


@pytest.mark.skipif(not shutil.which("cc"), reason="no compiler here")
def test_the_programs_build_anew_and_are_known_to_be_built(tmp_path: Path) -> None:
    assert not build.is_built(tmp_path)
    build.build(tmp_path)
    assert build.is_built(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(build.FILES)
    (tmp_path / "sources.sha256").write_text("other sources")
    assert not build.is_built(tmp_path)


def test_without_a_compiler_the_build_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if build.compilers():
        pytest.skip("zig is installed")
    with pytest.raises(build.BuildError, match="no C compiler"):
        build.build(tmp_path / "bin")


AS_ORDINARY = ("setpriv", f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups", "--")
#: For an interpreter that does not know this one's environment.
LIBRARIES = os.pathsep.join([str(ROOT), str(ROOT / "src"), sysconfig.get_path("purelib")])


def interpreter_for_all() -> str:
    """A Python of this version that an ordinary user may run: this one may lie in root's home."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        probe = [*AS_ORDINARY, "sh", "-c", '"$0" -c "import sys; sys.exit(0)"', candidate]
        if subprocess.run(probe, check=False, capture_output=True).returncode == 0:
            return candidate
    pytest.skip(f"no Python {version} here that an ordinary user may run")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of the ordinary user's; pytest's own are closed to everybody else."""
    with tempfile.TemporaryDirectory(prefix="fermata-tests-") as made:
        os.chown(made, ORDINARY, ORDINARY)
        yield Path(made)


@pytest.mark.as_root
async def test_it_all_holds_for_an_ordinary_user(place: Path) -> None:
    files = ("test_walls.py", "test_limits.py", "test_servers.py", "test_snapshots.py")
    process = await asyncio.create_subprocess_exec(
        *AS_ORDINARY,
        *(interpreter_for_all(), "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
        *(f"--basetemp={place}/t", *(str(HERE / file) for file in files)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={
            **os.environ,
            "HOME": str(place),
            "HYPOTHESIS_STORAGE_DIRECTORY": f"{place}/h",
            "PYTHONPATH": LIBRARIES,
        },
        cwd=ROOT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()[-6000:]
