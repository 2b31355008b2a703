"""The published clients, installed from the lock file once."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CLIENTS = Path(__file__).parent


@pytest.fixture(scope="session")
def node_scripts() -> Path:
    """The directory of the scripts, whose packages are installed when this returns."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("node and npm are needed to run the published clients")
    stamp = CLIENTS / "node_modules" / ".installed"
    wanted = hashlib.sha256((CLIENTS / "package-lock.json").read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        done = subprocess.run(
            ["npm", "ci", "--loglevel=error"], cwd=CLIENTS, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        stamp.write_text(wanted)
    return CLIENTS / "node"


@pytest.fixture(scope="session")
def fold_in_node(node_scripts: Path) -> Iterator[Callable[[list[dict[str, Any]]], dict[str, Any]]]:
    """Folds chunks with versions 6 and 7 of the `ai` package, in one process for the whole session."""
    with subprocess.Popen(
        ["node", "fold.mjs"], cwd=node_scripts, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def fold(chunks: list[dict[str, Any]]) -> dict[str, Any]:
            stdin.write(json.dumps(chunks) + "\n")
            stdin.flush()
            answer: dict[str, Any] = json.loads(stdout.readline())
            return answer

        yield fold
        stdin.close()
        process.wait(10)
