"""The quickstart, run as it stands: every command succeeds against a real server and does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

from bench.running import fermata_server

PAGE = Path(__file__).parents[2] / "docs" / "quickstart.md"


def test_every_command_of_the_quickstart_works(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with fermata_server(tmp_path / "fermata-data") as server:
        script = "\n".join(["set -euo pipefail", *blocks]).replace(
            "127.0.0.1:8000", f"127.0.0.1:{server.port}"
        )
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert '"finishReason":"stop"' in done.stdout
    assert "hello.txt" in done.stdout
    assert (tmp_path / "workspace" / "README.md").is_file()
    assert "laptop" in done.stdout
