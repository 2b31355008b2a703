"""`glob`: find files of the sandbox by name."""

import heapq
import posixpath
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import Field

from fermata.sandboxes.contract import FileKind, Sandbox
from fermata.turns.contract import ToolContext
from fermata.turns.tools.checked import Argument, CheckedTool, ToolInput, shown_path
from fermata.turns.tools.patterns import PathPattern, PatternError, expand_braces, literal_prefix
from fermata.turns.tools.running import Program

TIME_LIMIT_FOR = timedelta(seconds=30)
#: Directories that are not searched unless the pattern names them.
_SKIPPED = ("node_modules", ".git")


class GlobInput(ToolInput):
    pattern: Argument = Field(
        min_length=1, description="For example `*.py`, `src/**/*.{ts,tsx}` or `**/test_*.py`."
    )
    path: Argument = Field(default=".", description="Directory to start in, relative to the workspace.")
    limit: int = Field(default=100, ge=1, le=1000, description="Most files to return.")


class Glob(CheckedTool[GlobInput]):
    name = "glob"
    text = (
        "Find files by a name pattern, newest first. `*` stays within one directory, `**` does not. "
        "node_modules and .git are skipped unless the pattern names them."
    )
    idempotent = True
    input_model = GlobInput

    async def act(self, input: GlobInput, context: ToolContext) -> Any:
        sandbox = await context.get_sandbox()
        base, pattern = (
            ("/", input.pattern.lstrip("/")) if input.pattern.startswith("/") else (input.path, input.pattern)
        )
        if (await sandbox.stat(base)).kind is not FileKind.DIRECTORY:
            return self.failure(f"{input.path} is not a directory.")
        try:
            alternatives = expand_braces(pattern.removeprefix("./"))
            matchers = [PathPattern(alternative) for alternative in alternatives]
        except PatternError as error:
            return self.failure(f"pattern: {error}")
        program = Program(sandbox, _argv(alternatives), cwd=base, time_limit_for=TIME_LIMIT_FOR)
        found = _Newest(input.limit, matchers)
        async with aclosing(program.pieces()) as pieces:
            async for piece in pieces:
                found.feed(piece)
        if program.exit_code is None:
            return self.failure("The search took longer than 30 seconds. Start in a deeper directory.")
        files = [
            {
                "path": shown_path(sandbox, posixpath.join(base, name)),
                "size": size,
                "modifiedAt": _wire_time(seconds),
            }
            for seconds, name, size in found.files()
        ]
        return {
            "success": True,
            "pattern": input.pattern,
            "baseDir": base if base == "/" else _base(sandbox, base),
            "count": len(files),
            "files": files,
        }


def _base(sandbox: Sandbox, base: str) -> str:
    return posixpath.normpath(posixpath.join(sandbox.working_directory, base))


def _argv(alternatives: list[str]) -> list[str]:
    """A `find` from the directories that the alternatives name, no deeper than they reach."""
    split = [literal_prefix(alternative) for alternative in alternatives]
    starts = sorted({f"./{prefix}" if prefix else "." for prefix, _ in split})
    argv = ["find", *starts]
    if not any("**" in rest for _, rest in split):
        argv += ["-maxdepth", str(max(rest.count("/") + 1 for _, rest in split))]
    for name in _SKIPPED:
        if not any(name in alternative for alternative in alternatives):
            argv += ["-name", name, "-prune", "-o"]
    return [*argv, "-xtype", "f", "-printf", r"%T@ %s %p\0"]


class _Newest:
    """The newest files that match, from `find`'s records."""

    def __init__(self, limit: int, matchers: list[PathPattern]) -> None:
        self._limit, self._matchers = limit, matchers
        self._rest = b""
        self._heap: list[tuple[float, str, int]] = []
        self._seen: set[str] = set()

    def feed(self, piece: bytes) -> None:
        *records, self._rest = (self._rest + piece).split(b"\0")
        for record in records:
            seconds, size, path = record.decode(errors="replace").split(" ", 2)
            name = path.removeprefix("./")
            if name in self._seen or not any(matcher.matches(name) for matcher in self._matchers):
                continue
            self._seen.add(name)
            heapq.heappush(self._heap, (float(seconds), name, int(size)))
            if len(self._heap) > self._limit:
                heapq.heappop(self._heap)

    def files(self) -> list[tuple[float, str, int]]:
        return sorted(self._heap, key=lambda item: (-item[0], item[1]))


def _wire_time(seconds: float) -> str:
    instant = datetime.fromtimestamp(seconds, UTC)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")
