"""Starts many servers in little time: one process has everything loaded and forks itself for each.

Run as a program it reads requests from standard input, one JSON a line, and answers each with a line:
`{"start": environment, "log": path}` -> the process id; `{"status": pid}` -> the exit status, or null.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


class ForkServer:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forking"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, environment: dict[str, str], log: Path) -> int:
        return int(self._ask({"start": environment, "log": str(log)}))

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


def _start(environment: dict[str, str], log: str) -> int:
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
        from tests.support.crashing import main as serve

        serve()
        status = 0
    finally:
        sys.stdout.flush()
        os._exit(status)


def main() -> None:
    # Everything a server needs.
    import alembic.command
    import alembic.config  # noqa: F401

    import fermata.schema.migrate  # noqa: F401
    import tests.support.crashing  # noqa: F401

    codes: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer: int | None = _start(request["start"], request["log"])
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
