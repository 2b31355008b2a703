"""The tools, in a real sandbox."""

import asyncio
from typing import Any

import pytest

from fermata.sandboxes.contract import Sandbox
from fermata.turns.contract import ToolContext
from fermata.turns.tools import bash as bash_tool
from fermata.turns.tools.files import EDIT_FILE_LIMIT
from fermata.turns.tools.lines import CONTENT_LIMIT, LINE_LIMIT
from fermata.turns.tools.standard import standard_tools

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOOLS = standard_tools()


class Bench:
    """Calls tools on one sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    async def __call__(self, name: str, **input: Any) -> Any:
        tool = TOOLS.get(name)
        assert tool is not None
        return await tool.run(input, ToolContext("c", self._get, {"GREETING": "hi there"}))

    async def _get(self) -> Sandbox:
        return self.sandbox

    async def write(self, **files: str | bytes) -> None:
        for path, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            await self.sandbox.write_file(path, data)


@pytest.fixture
def use(sandbox: Sandbox) -> Bench:
    return Bench(sandbox)


# bash


async def test_bash_gives_status_and_both_streams_apart(use: Bench) -> None:
    result = await use("bash", command="echo out; echo err >&2; exit 3")
    assert result == {"success": False, "exitCode": 3, "stdout": "out\n", "stderr": "err\n"}


async def test_bash_runs_in_the_workspace_or_in_cwd_with_the_turns_environment(use: Bench) -> None:
    await use("bash", command="mkdir -p 'a b'")
    result = await use("bash", command='basename "$PWD"; echo "$GREETING"', cwd="a b")
    assert result["stdout"] == "a b\nhi there\n"
    assert (await use("bash", command="pwd"))["stdout"].rstrip().endswith("/workspace")


async def test_bash_keeps_the_start_and_the_end_of_long_output(use: Bench) -> None:
    result = await use("bash", command="echo first; yes middle | head -c 300000; echo last")
    assert result["truncated"] is True
    assert result["stdout"].startswith("first\n")
    assert result["stdout"].endswith("last\n")
    assert len(result["stdout"]) < bash_tool.OUTPUT_LIMIT + 200


async def test_bash_returns_what_was_written_before_the_time_limit(
    use: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bash_tool, "TIME_LIMIT_FOR", bash_tool.TIME_LIMIT_FOR / 240)
    result = await use("bash", command="echo begun; sleep 60")
    assert (result["success"], result["exitCode"], result["stdout"]) == (False, None, "begun\n")
    assert "did not end within" in result["stderr"]


async def test_bash_detached_goes_on_and_names_its_command(use: Bench) -> None:
    result = await use("bash", command="sleep 0.1; echo done > flag; sleep 60", detached=True)
    assert result["success"] is True
    command_id = result["stdout"].split("command ID: ")[1].rstrip(").")
    async with asyncio.timeout(5):
        while not (await use("bash", command="cat flag"))["success"]:
            await asyncio.sleep(0.02)
    await use.sandbox.kill_detached(command_id)


async def test_a_cancelled_bash_takes_its_children_with_it(use: Bench) -> None:
    task = asyncio.create_task(use("bash", command="(sleep 31.7 & echo $! > pid; wait) & wait"))
    while not (await use("bash", command="cat pid"))["stdout"].strip():
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    # What nobody has reaped yet is dead all the same.
    state = await use("bash", command="cut -d' ' -f3 /proc/$(cat pid)/stat 2>/dev/null || echo gone")
    assert state["stdout"].strip() in ("gone", "Z", "")


async def test_bash_reports_a_directory_that_is_not_there(use: Bench) -> None:
    result = await use("bash", command="pwd", cwd="missing")
    assert result["success"] is False
    assert result["exitCode"] is None
    assert "missing" in result["stderr"]


# input


@pytest.mark.parametrize(
    ("name", "input", "field"),
    [
        ("bash", {}, "command"),
        ("bash", {"command": "echo \0"}, "command"),
        ("read", {"filePath": "a", "offset": 0}, "offset"),
        ("read", {"file_path": "a"}, "filePath"),
        ("edit", {"filePath": "a", "oldString": "", "newString": "b"}, "oldString"),
        ("todo_write", {"todos": [{"id": "1", "content": "x", "status": "later"}]}, "todos.0.status"),
        ("glob", {"pattern": "*", "limit": "many"}, "limit"),
        ("grep", "just text", "input"),
    ],
)
async def test_wrong_input_is_a_result_that_names_the_field(
    use: Bench, name: str, input: Any, field: str
) -> None:
    tool = TOOLS.get(name)
    assert tool is not None
    result = await tool.run(input, ToolContext("c", use._get))
    assert result["success"] is False
    assert f"{name}: {field}:" in (result.get("error") or result["stderr"])


# read


async def test_read_numbers_lines_and_counts_all(use: Bench) -> None:
    await use.write(**{"a.txt": "one\r\ntwo\n\nfour"})
    result = await use("read", filePath="a.txt")
    expected = {"path": "a.txt", "totalLines": 4, "startLine": 1, "endLine": 4}
    assert result == {"success": True, **expected, "content": "1: one\n2: two\n3: \n4: four"}


@pytest.mark.parametrize(
    ("offset", "limit", "content", "end"),
    [(2, 2, "2: b\n3: c", 3), (4, 10, "4: d", 4), (1, 1, "1: a", 1)],
)
async def test_read_gives_a_window(use: Bench, offset: int, limit: int, content: str, end: int) -> None:
    await use.write(f="a\nb\nc\nd\n")
    result = await use("read", filePath="f", offset=offset, limit=limit)
    assert (result["content"], result["endLine"], result["totalLines"]) == (content, end, 4)


async def test_read_tells_when_the_window_is_past_the_end_and_reads_an_empty_file(use: Bench) -> None:
    await use.write(f="a\n", empty="")
    assert "1 lines" in (await use("read", filePath="f", offset=2))["error"]
    empty = await use("read", filePath="empty")
    assert (empty["totalLines"], empty["content"]) == (0, "")


async def test_read_is_the_same_for_every_size_of_piece(use: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await use.write(f="".join(f"line {n} é\n" for n in range(50)) + "tail")
    whole = await use("read", filePath="f", offset=3, limit=20)
    for piece in (1, 2, 7, 64):
        monkeypatch.setattr("fermata.turns.tools.files.PIECE", piece)
        assert await use("read", filePath="f", offset=3, limit=20) == whole


async def test_read_cuts_long_lines_and_long_files_and_says_where_to_go_on(use: Bench) -> None:
    await use.write(
        f="x" * 5_000_000 + "\n" + "y" * 1_000 + "\n", g="z" * 999 + "\n" + ("z" * 999 + "\n") * 300
    )
    long_line = await use("read", filePath="f")
    assert long_line["totalLines"] == 2
    assert len(long_line["content"]) < LINE_LIMIT + 1_100
    long_file = await use("read", filePath="g")
    assert len(long_file["content"]) < CONTENT_LIMIT + 2_000
    following = long_file["endLine"] + 1
    assert f"offset={following}" in long_file["content"]
    assert long_file["totalLines"] == 301
    rest = await use("read", filePath="g", offset=following)
    assert rest["startLine"] == following


async def test_read_refuses_directories_binary_files_and_what_is_not_there(use: Bench) -> None:
    await use.write(**{"d/f": "x", "image": b"\x89PNG\0\0"})
    assert (await use("read", filePath="d"))["error"] == (
        "Cannot read a directory. Use glob or ls command instead."
    )
    assert "not a text file" in (await use("read", filePath="image"))["error"]
    missing = await use("read", filePath="missing")
    assert missing["success"] is False
    assert "missing" in missing["error"]


# write and edit


async def test_write_makes_directories_and_counts_bytes(use: Bench) -> None:
    result = await use("write", filePath="deep/er/f.txt", content="né\n")
    assert result == {"success": True, "path": "deep/er/f.txt", "bytesWritten": 4}
    assert await use.sandbox.read_file("deep/er/f.txt") == "né\n".encode()


async def test_paths_inside_the_workspace_are_shown_relative_to_it(use: Bench) -> None:
    path = f"{use.sandbox.working_directory}/./f"
    assert (await use("write", filePath=path, content=""))["path"] == "f"


@pytest.mark.parametrize("new", ["$&", "$1 $$ $`", "\\1 \\n \\g<0>", "{0} %s", ""])
async def test_edit_takes_the_new_text_literally(use: Bench, new: str) -> None:
    await use.write(f="a\nb\nold\nc\n")
    result = await use("edit", filePath="f", oldString="old", newString=new)
    assert result == {"success": True, "path": "f", "replacements": 1, "startLine": 3}
    assert await use.sandbox.read_file("f") == f"a\nb\n{new}\nc\n".encode()


async def test_edit_wants_one_place_unless_told_otherwise(use: Bench) -> None:
    await use.write(f="x\nx.x\n")
    refused = await use("edit", filePath="f", oldString="x", newString="y")
    assert refused["error"] == (
        "oldString found 3 times. Use replaceAll=true or provide more context to make it unique."
    )
    done = await use("edit", filePath="f", oldString="x", newString="y", replaceAll=True)
    assert (done["replacements"], done["startLine"]) == (3, 1)
    assert await use.sandbox.read_file("f") == b"y\ny.y\n"


@pytest.mark.parametrize(
    ("content", "old", "hint"),
    [
        ("a\r\nb\r\n", "a\nb", "\\r\\n"),
        ("if x:\n    go()\n", "if x:\n  go()", "white space"),
        ("abc", "xyz", "Read the file again"),
    ],
)
async def test_edit_explains_what_it_did_not_find(use: Bench, content: str, old: str, hint: str) -> None:
    await use.write(f=content)
    error = (await use("edit", filePath="f", oldString=old, newString="new"))["error"]
    assert error.startswith("oldString not found in file")
    assert hint in error
    same = await use("edit", filePath="f", oldString=old, newString=old)
    assert same["error"] == "oldString and newString must be different"


async def test_edit_keeps_bytes_that_are_not_text_and_the_mode_of_the_file(use: Bench) -> None:
    await use.write(f=b"\xff\xfe old \r\n")
    await use("bash", command="chmod 755 f")
    assert (await use("edit", filePath="f", oldString="old", newString="new"))["success"]
    assert await use.sandbox.read_file("f") == b"\xff\xfe new \r\n"
    assert (await use.sandbox.stat("f")).mode & 0o777 == 0o755


async def test_edit_does_not_overwrite_a_change_that_came_between(use: Bench) -> None:
    await use.write(f="old")

    class Interfering:
        """The sandbox, in which somebody else writes after the first read."""

        reads = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(use.sandbox, name)

        async def read_file(self, path: str, **values: Any) -> bytes:
            data = await use.sandbox.read_file(path, **values)
            self.reads += 1
            if self.reads == 1:
                await use.sandbox.write_file(path, b"old and theirs")
            return data

    result = await Bench(Interfering())("edit", filePath="f", oldString="old", newString="new")
    assert "changed by something else" in result["error"]
    assert await use.sandbox.read_file("f") == b"old and theirs"


async def test_edit_refuses_huge_files(use: Bench) -> None:
    await use("bash", command=f"head -c {EDIT_FILE_LIMIT + 1} /dev/zero > f")
    assert "change it with bash" in (await use("edit", filePath="f", oldString="a", newString="b"))["error"]


# grep


async def test_grep_finds_lines_with_file_and_number(use: Bench) -> None:
    await use.write(**{"a.py": "import os\nx = 1\n", "src/b.py": "import os\n", "c.txt": "nothing\n"})
    result = await use("grep", pattern="^import +os$", path=".")
    assert sorted(match["file"] for match in result["matches"]) == ["a.py", "src/b.py"]
    assert (result["matchCount"], result["filesWithMatches"], result["success"]) == (2, 2, True)
    assert {"file": "a.py", "line": 1, "content": "import os"} in result["matches"]


async def test_grep_works_on_one_file_and_below_a_hidden_directory_that_was_asked_for(use: Bench) -> None:
    await use.write(**{".github/flow.yml": "on: push\n", ".github/.secret": "on: push\n"})
    one = await use("grep", pattern="push", path=".github/flow.yml")
    assert one["matches"] == [{"file": ".github/flow.yml", "line": 1, "content": "on: push"}]
    below = await use("grep", pattern="push", path=".github/")
    assert [match["file"] for match in below["matches"]] == [".github/flow.yml"]


async def test_grep_skips_hidden_names_node_modules_and_binary_files(use: Bench) -> None:
    await use.write(
        **{
            ".env": "needle",
            ".git/x": "needle",
            "node_modules/p/i.js": "needle",
            "b": b"needle\0",
            "ok": "needle",
        }
    )
    assert [match["file"] for match in (await use("grep", pattern="needle"))["matches"]] == ["ok"]
    assert [match["file"] for match in (await use("grep", pattern="needle", glob=".env*"))["matches"]] == [
        ".env"
    ]


@pytest.mark.parametrize(
    ("glob", "files"),
    [
        ("*.ts", ["a.ts", "src/c.ts"]),
        ("*.{ts,tsx}", ["a.ts", "b.tsx", "src/c.ts"]),
        ("src/**/*.ts", ["src/c.ts"]),
        ("**/*.tsx", ["b.tsx"]),
    ],
)
async def test_grep_can_be_narrowed_to_file_names(use: Bench, glob: str, files: list[str]) -> None:
    await use.write(**{"a.ts": "x", "b.tsx": "x", "src/c.ts": "x", "d.js": "x"})
    result = await use("grep", pattern="x", glob=glob)
    assert sorted(match["file"] for match in result["matches"]) == files


async def test_grep_takes_hard_patterns_and_names(use: Bench) -> None:
    await use.write(**{"a:1:b\nc.txt": "-n 'quoted' $(id) \"\n", "-e": "-n\n"})
    result = await use("grep", pattern="-n '?quoted")
    assert [match["file"] for match in result["matches"]] == ["a:1:b\nc.txt"]
    assert len((await use("grep", pattern="-n"))["matches"]) == 2
    assert (await use("grep", pattern="-n", path="-e"))["matchCount"] == 1


async def test_grep_ignores_case_when_asked_and_reports_a_broken_pattern(use: Bench) -> None:
    await use.write(f="Needle\n")
    assert (await use("grep", pattern="needle"))["matchCount"] == 0
    assert (await use("grep", pattern="needle", caseSensitive=False))["matchCount"] == 1
    broken = await use("grep", pattern="(")
    assert broken["success"] is False
    assert "Unmatched" in broken["error"]


async def test_grep_stops_at_its_limits(use: Bench) -> None:
    await use.write(**{f"f{n:03}": "x\n" * 20 for n in range(30)})
    result = await use("grep", pattern="x")
    assert result["matchCount"] == 100
    assert result["filesWithMatches"] == 10
    await use.write(wide="y" * 3_000_000 + "\n")
    (wide,) = (await use("grep", pattern="y"))["matches"]
    assert wide["content"] == "y" * 200 + "…"


# glob


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("*.py", ["a.py"]),
        ("**/*.py", ["a.py", "src/b.py", "src/x/y/c.py"]),
        ("src/*.py", ["src/b.py"]),
        ("src/**", ["src/b.py", "src/x/y/c.py", "src/x/y/d.txt"]),
        ("s*/x/**/*.{py,txt}", ["src/x/y/c.py", "src/x/y/d.txt"]),
        ("src/x/?/[cd].py", ["src/x/y/c.py"]),
        ("**/[!c].*", ["a.py", "src/b.py", "src/x/y/d.txt"]),
        ("./a.py", ["a.py"]),
        ("nowhere/*.py", []),
        ("**/.hidden", ["src/.hidden"]),
        ("**/node_modules/*.js", ["node_modules/m.js"]),
    ],
)
async def test_glob_matches_as_its_pattern_says(use: Bench, pattern: str, files: list[str]) -> None:
    names = ["a.py", "src/b.py", "src/x/y/c.py", "src/x/y/d.txt", "src/.hidden", "node_modules/m.js"]
    await use.write(**dict.fromkeys(names, "x"))
    result = await use("glob", pattern=pattern)
    found = sorted(file["path"] for file in result["files"])
    assert [name for name in found if not (pattern == "src/**" and ".hidden" in name)] == files
    assert result["count"] == len(result["files"])


async def test_glob_lists_the_newest_first_up_to_its_limit(use: Bench) -> None:
    await use("bash", command="for n in 1 2 3; do echo $n > f$n; touch -d @$((1700000000 + n)) f$n; done")
    result = await use("glob", pattern="f*", limit=2)
    assert [file["path"] for file in result["files"]] == ["f3", "f2"]
    assert result["files"][0] == {"path": "f3", "size": 2, "modifiedAt": "2023-11-14T22:13:23.000Z"}
    assert result["baseDir"] == use.sandbox.working_directory


async def test_glob_handles_names_that_a_shell_would_trip_over(use: Bench) -> None:
    await use.write(**{"a b\n$(id).txt": "x", "-rf.txt": "x"})
    result = await use("glob", pattern="*.txt", path=".")
    assert sorted(file["path"] for file in result["files"]) == ["-rf.txt", "a b\n$(id).txt"]


async def test_glob_reports_a_start_that_is_no_directory(use: Bench) -> None:
    await use.write(f="x")
    assert "not a directory" in (await use("glob", pattern="*", path="f"))["error"]
    assert (await use("glob", pattern="*", path="missing"))["success"] is False


# todo_write


async def test_todo_write_gives_the_list_back(use: Bench) -> None:
    todos = [{"id": "1", "content": "x", "status": "in_progress"}]
    result = await use("todo_write", todos=todos)
    assert result == {"success": True, "message": "Updated task list with 1 items", "todos": todos}
