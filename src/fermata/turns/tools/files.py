"""`read`, `write` and `edit`: files of the sandbox."""

from typing import Any

from pydantic import Field

from fermata.sandboxes.contract import FileKind, Sandbox
from fermata.turns.contract import ToolContext
from fermata.turns.tools.checked import Argument, CheckedTool, ToolInput, shown_path
from fermata.turns.tools.lines import LineWindow

#: Larger files are not read to count their lines.
READ_FILE_LIMIT = 100_000_000
#: Larger files are not edited in one piece.
EDIT_FILE_LIMIT = 10_000_000
PIECE = 4_000_000


class ReadInput(ToolInput):
    file_path: Argument = Field(min_length=1, description="Path of the file, relative to the workspace.")
    offset: int = Field(default=1, ge=1, description="First line to return, counting from 1.")
    limit: int = Field(default=2000, ge=1, description="Number of lines to return.")


class Read(CheckedTool[ReadInput]):
    name = "read"
    text = (
        "Read a text file. Lines come as `N: text`. Long files and long lines are cut; go on with `offset`. "
        "Directories are listed with glob."
    )
    idempotent = True
    input_model = ReadInput

    async def act(self, input: ReadInput, context: ToolContext) -> Any:
        sandbox = await context.get_sandbox()
        stat = await sandbox.stat(input.file_path)
        if stat.kind is FileKind.DIRECTORY:
            return self.failure("Cannot read a directory. Use glob or ls command instead.")
        if stat.size > READ_FILE_LIMIT:
            return self.failure(
                f"The file has {stat.size} bytes; files over {READ_FILE_LIMIT} bytes are read with bash, "
                "for example `sed -n '1,200p'`."
            )
        window = LineWindow(input.offset, input.limit)
        offset = 0
        while piece := await sandbox.read_file(input.file_path, offset=offset, limit=PIECE):
            if not window.feed(piece):
                return self.failure(f"{shown_path(sandbox, input.file_path)} is not a text file.")
            offset += len(piece)
        window.end()
        if input.offset > max(1, window.total):
            return self.failure(f"offset {input.offset} is past the end: the file has {window.total} lines.")
        return {
            "success": True,
            "path": shown_path(sandbox, input.file_path),
            "totalLines": window.total,
            "startLine": input.offset,
            "endLine": window.last,
            "content": window.content(),
        }


class WriteInput(ToolInput):
    file_path: Argument = Field(min_length=1, description="Path of the file, relative to the workspace.")
    content: str = Field(description="The whole new content.")


class Write(CheckedTool[WriteInput]):
    name = "write"
    text = (
        "Create a file, or replace all of its content. Missing directories are made. Use edit for small "
        "changes."
    )
    idempotent = True
    input_model = WriteInput

    async def act(self, input: WriteInput, context: ToolContext) -> Any:
        sandbox = await context.get_sandbox()
        data = input.content.encode()
        await sandbox.write_file(input.file_path, data)
        return {"success": True, "path": shown_path(sandbox, input.file_path), "bytesWritten": len(data)}


class EditInput(ToolInput):
    file_path: Argument = Field(min_length=1, description="Path of the file, relative to the workspace.")
    old_string: str = Field(min_length=1, description="The exact text to replace, with its indentation.")
    new_string: str = Field(description="The text to put in its place, taken literally.")
    replace_all: bool = Field(default=False, description="Replace every occurrence instead of exactly one.")
    start_line: int | None = Field(default=None, description="Line of the change, for display only.")


class Edit(CheckedTool[EditInput]):
    name = "edit"
    text = (
        "Replace text in a file. `oldString` must match exactly, without the line numbers that read adds, "
        "and exactly once unless `replaceAll` is set."
    )
    idempotent = False
    input_model = EditInput

    async def act(self, input: EditInput, context: ToolContext) -> Any:
        if input.old_string == input.new_string:
            return self.failure("oldString and newString must be different")
        sandbox = await context.get_sandbox()
        before = await sandbox.read_file(input.file_path, limit=EDIT_FILE_LIMIT + 1)
        if len(before) > EDIT_FILE_LIMIT:
            return self.failure(f"The file has more than {EDIT_FILE_LIMIT} bytes; change it with bash.")
        old = input.old_string.encode()
        count = before.count(old)
        if count == 0:
            return self.failure(f"oldString not found in file. {_hint(before, input.old_string)}")
        if count > 1 and not input.replace_all:
            return self.failure(
                f"oldString found {count} times. Use replaceAll=true or provide more context to make it "
                "unique."
            )
        after = before.replace(old, input.new_string.encode())
        if not await _unchanged(sandbox, input.file_path, before):
            return self.failure("The file was changed by something else meanwhile. Read it again, then edit.")
        await sandbox.write_file(input.file_path, after)
        return {
            "success": True,
            "path": shown_path(sandbox, input.file_path),
            "replacements": count,
            "startLine": before.count(b"\n", 0, before.index(old)) + 1,
        }


async def _unchanged(sandbox: Sandbox, path: str, content: bytes) -> bool:
    return await sandbox.read_file(path, limit=EDIT_FILE_LIMIT + 1) == content


def _hint(content: bytes, old: str) -> str:
    if b"\r\n" in content and "\n" in old and "\r\n" not in old:
        return "The file's lines end with \\r\\n, those of oldString with \\n."
    words = "".join(old.split()).encode()
    if words and words in b"".join(content.split()):
        return "It is there with other white space: read the lines again and copy them exactly."
    return "Read the file again: it may have changed, and line numbers are not part of its text."
