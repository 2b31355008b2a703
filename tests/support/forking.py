"""Starts many servers in little time: one process has everything loaded and forks itself for each.

Run as a program it reads requests from standard input, one JSON a line, and answers each with a line:
`{"start": "serve" or "worker", "environment": ..., "log": path}` -> the process id;
`{"status": pid}` -> the exit status, or null.
"""

import asyncio
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

# Loaded here, once, so that the forks need not.
import alembic.command
import alembic.config  # noqa: F401

import fermata.kit.postgres
import fermata.schema.migrate  # noqa: F401
from fermata.edges.worker import work
from fermata.kit.log import configure_logging
from fermata.kit.settings import load_settings
from tests.support import crashing


class ForkServer:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forking"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, program: str, environment: dict[str, str], log: Path) -> int:
        return int(self._ask({"start": program, "environment": environment, "log": str(log)}))

    def status(self, pid: int) -> int | None:
        """As `Popen.returncode`."""
        status: int | None = self._ask({"status": pid})
        return status

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)

    def _ask(self, request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _start(program: str, environment: dict[str, str], log: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.environ.clear()
        os.environ.update(environment)
        for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY | os.O_CREAT | os.O_APPEND)):
            opened = os.open(log if number else os.devnull, flags, 0o600)
            os.dup2(opened, number)
            os.close(opened)
        os.dup2(1, 2)
        if program == "worker":
            settings = load_settings(os.environ)
            configure_logging(level=settings.log_level)
            asyncio.run(work(settings))
        else:
            crashing.main()
        status = 0
    except BaseException:  # noqa: BLE001 - the fork must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def main() -> None:
    # Everything a server needs.
    import alembic.command
    import alembic.config  # noqa: F401

    import tests.support.crashing  # noqa: F401

    codes: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer: int | None = _start(request["start"], request["environment"], request["log"])
        else:
            pid = request["status"]
            ended, status = os.waitpid(pid, os.WNOHANG) if pid not in codes else (0, 0)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
            answer = codes.get(pid)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
