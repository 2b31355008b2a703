"""Builds `launcher` and `init` as small static programs, with the first compiler that can.

Order: musl-gcc, the system's cc, then zig, if the `ziglang` package is installed. Runs as part of building
the wheel, and at the first start from a checkout.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = {"launcher": ("launcher.c",), "init": ("init.c", "strays.c", "keeper.c", "files.c")}
_HEADERS = ("wire.h", "init.h")
_FLAGS = ("-static", "-Os", "-std=gnu11", "-Wall", "-Wextra", "-fstack-protector-strong")


_STAMP = "sources.sha256"
#: All that `build` leaves behind.
FILES = (*PROGRAMS, _STAMP)


class BuildError(Exception):
    """No compiler on this machine can build the programs; the message says what each answered."""


def is_built(target: Path) -> bool:
    """Whether programs are there that were made from these sources."""
    try:
        made_from = (target / _STAMP).read_text()
    except FileNotFoundError:
        return False
    return made_from == _sources() and all((target / name).exists() for name in PROGRAMS)


def build(target: Path) -> str:
    """Build into `target` and return the compiler's name. Each program appears by one rename."""
    target.mkdir(parents=True, exist_ok=True)
    answers = []
    for compiler in compilers():
        with tempfile.TemporaryDirectory(dir=target, prefix=".build-") as work:
            try:
                _compile(compiler, Path(work))
            except (OSError, subprocess.SubprocessError) as error:
                lines = (getattr(error, "stderr", None) or str(error)).splitlines()
                answers.append(
                    f"{compiler[0]}: {next((line for line in lines if 'error' in line), lines[-1:])}"
                )
                continue
            (Path(work) / _STAMP).write_text(_sources())
            for name in FILES:
                os.replace(Path(work) / name, target / name)
            return Path(compiler[0]).name if len(compiler) == 1 else "zig"
    raise BuildError("; ".join(answers) or "no C compiler found")


def compilers() -> list[list[str]]:
    found = [[path] for name in ("musl-gcc", "cc", "gcc", "clang") if (path := shutil.which(name))]
    if importlib.util.find_spec("ziglang"):
        machine = os.uname().machine
        found.append([sys.executable, "-m", "ziglang", "cc", f"--target={machine}-linux-musl"])
    return found


def _compile(compiler: list[str], work: Path) -> None:
    for name, sources in PROGRAMS.items():
        paths = [str(HERE / source) for source in sources]
        command = [*compiler, *_FLAGS, "-s", "-o", str(work / name), *paths]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        (work / name).chmod(0o755)


def _sources() -> str:
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    for name in sorted({*_HEADERS, *(source for sources in PROGRAMS.values() for source in sources)}):
        digest.update(b"%b\0%b" % (name.encode(), (HERE / name).read_bytes()))
    return digest.hexdigest()
