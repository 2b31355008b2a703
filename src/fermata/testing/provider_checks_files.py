"""Checks of reading, writing, listing and looking at files."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fermata.kit.errors import SandboxPathError
from fermata.sandboxes.contract import DirectoryEntry, FileKind, Sandbox
from fermata.testing.provider_checks_support import PATIENCE, Checks, Refused, shell

ALL_BYTES = bytes(range(256))
NAMES = [
    "plain",
    "with space",
    "-dash",
    "line\nbreak",
    "ß€😀",
    "\udcff\udc80bytes",
    "*?[",
    ".hidden",
    "x" * 255,
]
#: What cannot be read: a path, after `_make_obstacles`.
OBSTACLES = [
    "missing",
    "directory",
    ".",
    "/",
    "file/",
    "file/below",
    "fifo",
    "dangling",
    "loop",
    "",
    "a\0b",
    "x" * 256,
    "d/" * 3000 + "x",
]


async def _make_obstacles(box: Sandbox) -> None:
    await shell(
        box, "mkdir directory; echo > file; mkfifo fifo; ln -s nowhere/at/all dangling; ln -s loop loop"
    )


class FileChecks(Checks):
    @pytest.mark.parametrize("data", [b"", ALL_BYTES, b"x" * 5_000_000], ids=len)
    async def test_what_was_written_is_read_back(self, box: Sandbox, data: bytes) -> None:
        await box.write_file("file", data)
        assert await box.read_file("file") == data
        assert (await box.stat("file")).size == len(data)
        assert (await box.exec(["wc", "-c"], stdin=data)).stdout.split() == [str(len(data)).encode()]

    async def test_reading_starts_at_an_offset_and_stops_at_a_limit(self, box: Sandbox) -> None:
        await box.write_file("file", ALL_BYTES)
        assert await box.read_file("file", offset=200) == ALL_BYTES[200:]
        assert await box.read_file("file", offset=10, limit=3) == ALL_BYTES[10:13]
        assert await box.read_file("file", limit=0) == b""
        assert await box.read_file("file", offset=256) == await box.read_file("file", offset=999) == b""

    async def test_relative_paths_start_at_the_working_directory(self, box: Sandbox) -> None:
        home = box.working_directory
        await box.write_file("a/b", b"content")
        for path in ("a/b", f"{home}/a/b", "./a/../a//b", f"/../..{home}/a/b"):
            assert await box.read_file(path) == b"content", path
        assert (await box.exec(["cat", "a/b"])).stdout == b"content"

    @pytest.mark.parametrize("name", NAMES, ids=ascii)
    async def test_any_name_can_be_written_listed_and_read(self, box: Sandbox, name: str) -> None:
        await box.write_file(f"there/{name}", b"content")
        assert await box.list_directory("there") == [DirectoryEntry(name, FileKind.FILE)]
        assert await box.read_file(f"there/{name}") == b"content"
        assert (await box.exec(["cat", "--", f"there/{name}"])).stdout == b"content"
        assert (await box.stat(f"there/{name}")).kind is FileKind.FILE

    async def test_names_made_inside_that_are_not_utf8_come_back_as_they_are(self, box: Sandbox) -> None:
        await shell(box, r"""echo content > "$(printf 'n\377')" """)
        (entry,) = await box.list_directory(".")
        assert entry.name == "n\udcff"
        assert await box.read_file(entry.name) == b"content\n"

    async def test_a_new_file_gets_0644_or_the_mode_asked_for(self, box: Sandbox) -> None:
        await box.write_file("plain", b"")
        await box.write_file("script", b"#!/bin/sh\necho ran\n", mode=0o755)
        await box.write_file("secret", b"", mode=0o600)
        modes = [(await box.stat(name)).mode for name in ("plain", "script", "secret")]
        assert modes == [0o644, 0o755, 0o600]
        assert await shell(box, "./script") == b"ran\n"

    async def test_an_existing_file_keeps_its_mode_unless_one_is_given(self, box: Sandbox) -> None:
        await shell(box, "echo old > file; chmod 751 file")
        await box.write_file("file", b"new")
        assert (await box.stat("file")).mode == 0o751
        await box.write_file("file", b"newer", mode=0o640)
        assert (await box.stat("file")).mode == 0o640
        assert await box.read_file("file") == b"newer"

    async def test_an_existing_file_keeps_its_owner(self, box: Sandbox) -> None:
        owned = await box.exec(["sh", "-c", "echo old > file && chown 1234:2345 file"])
        if owned.exit_code != 0:
            pytest.skip("a file cannot be given away inside this sandbox")
        await box.write_file("file", b"new")
        assert await shell(box, "stat -c %u:%g file; cat file") == b"1234:2345\nnew"

    async def test_missing_parents_are_made(self, box: Sandbox) -> None:
        await box.write_file("a/b/c/file", b"deep")
        assert await box.read_file("a/b/c/file") == b"deep"
        assert (await box.stat("a/b")).mode == 0o755

    async def test_writing_through_a_link_replaces_its_target(self, box: Sandbox) -> None:
        await box.write_file("real/target", b"old", mode=0o600)
        home = box.working_directory
        await shell(box, f"ln -s real/target one; ln -s {home}/one two; ln -s real/new three; ln -s real d")
        await box.write_file("two", b"through two")
        await box.write_file("three", b"made")
        await box.write_file("d/below", b"below")
        assert await box.read_file("real/target") == await box.read_file("one") == b"through two"
        assert (await box.stat("real/target")).mode == 0o600
        assert await box.read_file("real/new") == b"made"
        assert await box.read_file("real/below") == b"below"
        for link in ("one", "two", "three", "d"):
            assert (await box.stat(link, follow_symlinks=False)).kind is FileKind.SYMLINK

    @pytest.mark.parametrize("path", OBSTACLES, ids=lambda path: ascii(path[:20]))
    async def test_what_is_no_regular_file_cannot_be_read(
        self, box: Sandbox, refused: Refused, path: str
    ) -> None:
        await _make_obstacles(box)
        async with asyncio.timeout(PATIENCE.total_seconds()):
            with refused(SandboxPathError):
                await box.read_file(path)

    @pytest.mark.parametrize(
        "path",
        [path for path in OBSTACLES if path not in ("missing", "dangling")],
        ids=lambda path: ascii(path[:20]),
    )
    async def test_what_is_no_regular_file_cannot_be_written_and_stays(
        self, box: Sandbox, refused: Refused, path: str
    ) -> None:
        await _make_obstacles(box)
        before = await box.list_directory(".")
        async with asyncio.timeout(PATIENCE.total_seconds()):
            with refused(SandboxPathError):
                await box.write_file(path, b"data")
        after = await box.list_directory(".")
        assert [entry for entry in after if entry.name != "d"] == before

    async def test_a_file_of_the_host_is_reached_by_no_path(
        self, box: Sandbox, refused: Refused, tmp_path: Path
    ) -> None:
        secret = tmp_path / "secret"
        secret.write_text("of the host")
        up = "../" * 30
        await shell(box, f"ln -s {secret} link; ln -s {up}{secret} up; ln -s {tmp_path} directory")
        for path in (str(secret), f"{up}{secret}", "link", "up", "directory/secret"):
            with pytest.raises(SandboxPathError):
                await box.read_file(path)
        for path in ("directory", str(tmp_path)):
            with pytest.raises(SandboxPathError):
                await box.list_directory(path)
        for path in ("link", "up"):
            try:
                await box.write_file(path, b"of the box")
            except SandboxPathError:
                continue
            assert await box.read_file(path) == b"of the box"
        assert secret.read_text() == "of the host"

    async def test_a_reader_sees_the_old_content_or_the_new(self, box: Sandbox) -> None:
        size = 300_000
        await box.write_file("file", b"a" * size)
        script = (
            f"while [ ! -e stop ]; do cat file > copy; [ $(wc -c < copy) = {size} ] || echo short;"
            "[ $(head -c 1 copy) = $(tail -c 1 copy) ] || echo mixed; done"
        )
        watch = asyncio.ensure_future(box.exec(["sh", "-c", script]))
        for turn in range(30):
            letter = b"ab"[turn % 2 : turn % 2 + 1]
            writing = asyncio.ensure_future(box.write_file("file", letter * size))
            seen = await box.read_file("file")
            assert seen in (b"a" * size, b"b" * size)
            await writing
        await box.write_file("stop", b"")
        assert (await watch).stdout == b""

    async def test_of_many_writes_at_once_one_is_whole_and_nothing_else_is_left(self, box: Sandbox) -> None:
        contents = [b"%d" % number * 100_000 for number in range(8)]
        await asyncio.gather(*(box.write_file("d/file", content) for content in contents))
        assert await box.read_file("d/file") in contents
        assert await box.list_directory("d") == [DirectoryEntry("file", FileKind.FILE)]

    async def test_a_directory_lists_its_entries_by_name_and_kind(self, box: Sandbox) -> None:
        await _make_obstacles(box)
        await shell(box, "ln -s directory to-directory; touch .hidden")
        assert await box.list_directory(".") == [
            DirectoryEntry(".hidden", FileKind.FILE),
            DirectoryEntry("dangling", FileKind.SYMLINK),
            DirectoryEntry("directory", FileKind.DIRECTORY),
            DirectoryEntry("fifo", FileKind.OTHER),
            DirectoryEntry("file", FileKind.FILE),
            DirectoryEntry("loop", FileKind.SYMLINK),
            DirectoryEntry("to-directory", FileKind.SYMLINK),
        ]
        assert await box.list_directory("directory") == await box.list_directory("to-directory/") == []

    async def test_a_large_directory_is_cut_at_the_limit(self, box: Sandbox) -> None:
        await shell(box, "mkdir many; cd many; seq -w 0 2999 | xargs touch")
        names = [entry.name for entry in await box.list_directory("many")]
        assert names == [f"{number:04}" for number in range(3000)]
        assert [entry.name for entry in await box.list_directory("many", limit=7)] == names[:7]

    @pytest.mark.parametrize("path", ["missing", "file", "file/", "fifo", "dangling", "loop", "", "a\0b"])
    async def test_what_is_no_directory_cannot_be_listed(
        self, box: Sandbox, refused: Refused, path: str
    ) -> None:
        await _make_obstacles(box)
        with refused(SandboxPathError):
            await box.list_directory(path)

    async def test_stat_tells_kind_size_mode_and_time(self, box: Sandbox) -> None:
        await _make_obstacles(box)
        await shell(box, "printf 12345 > file; chmod 4711 file; chmod 1777 directory; ln -s file link")
        file = await box.stat("file")
        assert (file.kind, file.size, file.mode) == (FileKind.FILE, 5, 0o4711)
        assert abs(file.modified_at - datetime.now(UTC)) < timedelta(minutes=10)
        directory = await box.stat("directory")
        assert (directory.kind, directory.mode) == (FileKind.DIRECTORY, 0o1777)
        assert (await box.stat("fifo")).kind is FileKind.OTHER
        assert await box.stat("link") == file
        link = await box.stat("link", follow_symlinks=False)
        assert (link.kind, link.size) == (FileKind.SYMLINK, 4)
        assert (await box.stat("dangling", follow_symlinks=False)).kind is FileKind.SYMLINK
        assert (await box.stat("/")).kind is FileKind.DIRECTORY
        await shell(box, "touch -d '2001-02-03 04:05:06 UTC' file")
        assert (await box.stat("file")).modified_at == datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)

    @pytest.mark.parametrize("path", ["missing", "dangling", "loop", "file/below", "file/", "", "a\0b"])
    async def test_where_nothing_is_there_is_no_stat(self, box: Sandbox, refused: Refused, path: str) -> None:
        await _make_obstacles(box)
        with refused(SandboxPathError):
            await box.stat(path)
