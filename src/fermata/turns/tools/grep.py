"""`grep`: search file contents in the sandbox."""

import posixpath
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import Field

from fermata.sandboxes.contract import FileKind, Sandbox
from fermata.turns.contract import ToolContext
from fermata.turns.tools.checked import Argument, CheckedTool, ToolInput, shown_path
from fermata.turns.tools.patterns import PathPattern, PatternError, expand_braces
from fermata.turns.tools.running import Program

TIME_LIMIT_FOR = timedelta(seconds=30)
MATCH_LIMIT = 100
MATCHES_PER_FILE = 10
#: Characters shown of one line.
LINE_LIMIT = 200
#: Bytes kept of a line or a name while it is read.
_FIELD_LIMIT = 8_192


class GrepInput(ToolInput):
    pattern: Argument = Field(min_length=1, description="POSIX extended regular expression.")
    path: Argument = Field(default=".", description="File or directory, relative to the workspace.")
    glob: Argument | None = Field(
        default=None, description="Only files like this, for example `*.py`, `*.{ts,tsx}` or `src/**/*.js`."
    )
    case_sensitive: bool = Field(default=True)


class Grep(CheckedTool[GrepInput]):
    name = "grep"
    text = (
        "Search the contents of files with a regular expression. Hidden files and directories, node_modules "
        f"and binary files are skipped. At most {MATCH_LIMIT} matches, {MATCHES_PER_FILE} of one file."
    )
    idempotent = True
    input_model = GrepInput

    async def act(self, input: GrepInput, context: ToolContext) -> Any:
        sandbox = await context.get_sandbox()
        stat = await sandbox.stat(input.path)
        directory = stat.kind is FileKind.DIRECTORY
        try:
            search = _Search(sandbox, input, directory)
        except PatternError as error:
            return self.failure(f"glob: {error}")
        program = Program(sandbox, search.argv, cwd=search.cwd, time_limit_for=TIME_LIMIT_FOR)
        async with aclosing(program.pieces()) as pieces:
            async for piece in pieces:
                if search.feed(piece):
                    break
        # 1 is "no match"; 2 with matches means that some files could not be read.
        if not search.matches and program.exit_code not in (0, 1):
            if program.exit_code is None:
                return self.failure("The search took longer than 30 seconds. Search a smaller path.")
            return self.failure(program.error or f"grep ended with status {program.exit_code}.")
        matches = search.matches
        return {
            "success": True,
            "pattern": input.pattern,
            "matchCount": len(matches),
            "filesWithMatches": len({match["file"] for match in matches}),
            "matches": matches,
        }


@dataclass(slots=True)
class _Line:
    """A line of output as far as it was read: `name NUL number : content`."""

    name: bytearray
    rest: bytearray
    named: bool = False


class _Search:
    def __init__(self, sandbox: Sandbox, input: GrepInput, directory: bool) -> None:
        self._sandbox = sandbox
        here, base = posixpath.split(input.path.rstrip("/") or "/")
        #: A directory is searched from inside, so that its own name is never taken for a hidden one.
        self.cwd = input.path if directory else here or "."
        self._matchers: list[PathPattern] = []
        options = [] if input.case_sensitive else ["-i"]
        if directory:
            options += self._file_options(input.glob)
        self.argv = ["grep", "-rEnHIZ", f"-m{MATCHES_PER_FILE}", *options, "-e", input.pattern, "--"]
        self.argv.append("." if directory else f"./{base}")
        self._line = _Line(bytearray(), bytearray())
        self.matches: list[dict[str, Any]] = []

    def _file_options(self, glob: str | None) -> Iterator[str]:
        names = expand_braces(glob) if glob else []
        if any("/" in name for name in names):
            self._matchers = [PathPattern(name.removeprefix("./")) for name in names]
            names = []
        yield from (f"--include={name}" for name in names)
        # The last option that matches wins, so this one comes after the includes.
        if not any(name.startswith(".") for name in names):
            yield "--exclude=.?*"
        yield from ("--exclude-dir=.?*", "--exclude-dir=node_modules")

    def feed(self, piece: bytes) -> bool:
        """Read a piece of output. True when there are enough matches."""
        while piece:
            if not self._line.named:
                name, nul, piece = piece.partition(b"\0")
                self._line.name += name[: _FIELD_LIMIT - len(self._line.name)]
                self._line.named = bool(nul)
                continue
            content, end, piece = piece.partition(b"\n")
            self._line.rest += content[: _FIELD_LIMIT - len(self._line.rest)]
            if end:
                self._add(self._line)
                self._line = _Line(bytearray(), bytearray())
                if len(self.matches) >= MATCH_LIMIT:
                    return True
        return False

    def _add(self, line: _Line) -> None:
        name = line.name.decode(errors="replace").removeprefix("./")
        if self._matchers and not any(matcher.matches(name) for matcher in self._matchers):
            return
        number, _, content = line.rest.decode(errors="replace").partition(":")
        text = content.removesuffix("\r")
        self.matches.append(
            {
                "file": shown_path(self._sandbox, posixpath.join(self.cwd, name)),
                "line": int(number),
                "content": text if len(text) <= LINE_LIMIT else text[:LINE_LIMIT] + "…",
            }
        )
