"""Root file systems from outside: what is honest arrives whole, what is not reaches nothing."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fermata.kit.errors import SettingsError
from fermata.sandboxes.providers.local.base_image import Tree, copy_into
from fermata.sandboxes.providers.local.base_tree import furnish, make_inert

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make this")


def entry(name: str, content: bytes | None = None, **values: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content or b"")
    info.mode = 0o644
    for key, value in values.items():
        setattr(info, key, value)
    return info, content or b""


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


def hard(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def directory(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, mode=mode)


def packed(*entries: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def unpack(tmp_path: Path) -> Callable[..., Path]:
    """Copy a source into a new tree and return its root."""

    def run(source: Path | bytes, **limits: int) -> Path:
        if isinstance(source, bytes):
            (tmp_path / "base.tar").write_bytes(source)
            source = tmp_path / "base.tar"
        root = tmp_path / "root"
        root.mkdir()
        copy_into(Tree(root, owners=os.geteuid() == 0, **limits), source)
        return root

    return run


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_arrives_with_contents_modes_links_and_owners(unpack: Callable[..., Path], mode: str) -> None:
    root = unpack(
        packed(
            directory("./"),
            directory("./usr"),
            directory("usr/bin", 0o555),
            entry("usr/bin/tool", b"#!/bin/sh\n", mode=0o755),
            entry("deep/er/file", b"content", uid=42, gid=43),
            link("bin", "usr/bin"),
            entry("bin/through", b"by way of a link"),
            hard("copy", "deep/er/file"),
            entry("b\udcff", b"bytes"),
            mode=mode,
        )
    )
    assert (root / "deep/er/file").read_bytes() == b"content"
    assert (root / "copy").samefile(root / "deep/er/file")
    assert (root / "usr/bin").stat().st_mode & 0o777 == 0o555
    assert (root / "usr/bin/tool").stat().st_mode & 0o777 == 0o755
    assert os.readlink(root / "bin") == "usr/bin"
    assert (root / "usr/bin/through").read_bytes() == b"by way of a link"
    assert (root / "b\udcff").read_bytes() == b"bytes"
    if os.geteuid() == 0:
        found = (root / "copy").stat()
        assert (found.st_uid, found.st_gid) == (42, 43)


def test_later_entries_take_the_place_of_earlier_ones(unpack: Callable[..., Path]) -> None:
    root = unpack(
        packed(
            *(entry("a", b"old"), entry("a", b"new")),
            *(directory("d"), entry("d/x", b"x"), entry("d", b"file now")),
            *(entry("f", b"f"), directory("f"), entry("f/y", b"y")),
            *(link("l", "a"), entry("l", b"no link any more")),
        )
    )
    assert [(root / name).read_bytes() for name in ("a", "d", "f/y", "l")] == [
        b"new",
        b"file now",
        b"y",
        b"no link any more",
    ]


@pytest.mark.parametrize(
    "entries",
    [
        [entry("../outside/file", b"bad")],
        [entry("{outside}/file", b"bad")],
        [link("l", "{outside}"), entry("l/file", b"bad")],
        [link("l", "../../../../../../../..{outside}"), entry("l/file", b"bad")],
        [link("l", "{outside}/file"), entry("l", b"bad")],
        [link("a", "b"), link("b", "{outside}"), entry("a/file", b"bad")],
        [link("d/l", "../../outside"), entry("d/l/file", b"bad")],
        [hard("h", "{outside}/file"), entry("h", b"bad")],
        [hard("h", "../outside/file"), entry("h", b"bad")],
        [link("l", "{outside}/file"), hard("h", "l"), entry("h", b"bad")],
        [link("l", "{outside}"), directory("l", 0o777)],
        [link("l", "{outside}"), hard("h", "l/file")],
    ],
)
def test_no_entry_leads_out_of_the_tree(
    unpack: Callable[..., Path], tmp_path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (outside / "file").write_bytes(b"of the host")
    before = (outside / "file").stat()
    for info, _ in entries:
        info.name = info.name.format(outside=outside)
        info.linkname = info.linkname.format(outside=outside)
    with contextlib.suppress(SettingsError):
        unpack(packed(*entries))
    root = tmp_path / "root"
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_bytes() == b"of the host"
    after = (outside / "file").stat()
    assert (after.st_nlink, after.st_uid, after.st_mode) == (1, before.st_uid, before.st_mode)
    assert outside.stat().st_mode & 0o777 == 0o700
    for path in root.rglob("*"):
        assert path.is_symlink() or not path.is_file() or path.stat().st_ino != before.st_ino


names = st.sampled_from(["a", "b", "a/b", "b/a", "a/b/a", "../a", "/b", "a/../b", ".", "", "a/.", "b/.."])
targets = st.sampled_from(
    ["a", "b", "..", "../..", "/", "/a", "../outside", ".", "{outside}", "../outside/file"]
)
kinds = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(names, kinds, targets), max_size=8))
def test_no_mixture_of_entries_leads_out_of_the_tree(
    tmp_path_factory: pytest.TempPathFactory, mixture: list[tuple[str, bytes, str]]
) -> None:
    place = tmp_path_factory.mktemp("mixture")
    outside = place / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"of the host")
    entries = []
    for name, kind, target in mixture:
        content = b"bad" if kind == tarfile.REGTYPE else b""
        target = target.format(outside=outside) if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
        entries.append(entry(name, content, type=kind, linkname=target))
    (place / "base.tar").write_bytes(packed(*entries))
    (place / "root").mkdir()
    with contextlib.suppress(SettingsError):
        copy_into(Tree(place / "root", owners=False), place / "base.tar")
    assert sorted(path.name for path in place.iterdir()) == ["base.tar", "outside", "root"]
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_bytes() == b"of the host"
    assert (outside / "file").stat().st_nlink == 1


def test_devices_pipes_and_setuid_bits_do_not_arrive(unpack: Callable[..., Path]) -> None:
    root = unpack(
        packed(
            entry("device", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
            entry("below/block", type=tarfile.BLKTYPE, devmajor=7, devminor=0),
            entry("pipe", type=tarfile.FIFOTYPE),
            entry("setuid", b"x", mode=0o6755),
            directory("sticky", 0o7777),
        )
    )
    assert sorted(path.name for path in root.iterdir()) == ["below", "setuid", "sticky"]
    assert (root / "setuid").stat().st_mode & 0o7777 == 0o755
    assert (root / "sticky").stat().st_mode & 0o7777 == 0o1777


def test_too_many_entries_too_many_bytes_and_too_deep_a_tree_are_refused(
    unpack: Callable[..., Path], tmp_path: Path
) -> None:
    many = packed(*(entry(f"f{number}", b"x") for number in range(30)))
    deep = packed(entry("d/" * 300 + "x", b"x"))
    loop = packed(link("a", "b"), link("b", "a"), entry("a/x", b"x"))
    for source, limits in (
        (many, {"entries_at_most": 20}),
        (many, {"bytes_at_most": 20}),
        (deep, {}),
        (loop, {}),
    ):
        with pytest.raises(SettingsError):
            unpack(source, **limits)
        for left in (tmp_path / "root").iterdir():
            os.system(f"rm -rf {left}")
        (tmp_path / "root").rmdir()


def test_a_bomb_ends_at_the_limit(unpack: Callable[..., Path], tmp_path: Path) -> None:
    info = tarfile.TarInfo("zeros")
    info.size = 1 << 40
    head = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(SettingsError, match="too large"):
        unpack(gzip.compress(head + bytes(1 << 20)))
    assert sum(path.stat().st_size for path in (tmp_path / "root").rglob("*")) == 0


def test_a_header_that_would_fill_the_memory_is_refused(unpack: Callable[..., Path]) -> None:
    info = tarfile.TarInfo("pax")
    info.type = tarfile.XHDTYPE
    info.size = 1 << 34
    with pytest.raises(SettingsError, match="header"):
        unpack(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"no tar at all" * 100,
        gzip.compress(b"no tar" * 1000),
        b"\x1f\x8b" + b"x" * 50,
        b"\x28\xb5\x2f\xfd1234",
    ],
    ids=["empty", "text", "gzip", "broken-gzip", "zstd"],
)
def test_what_is_no_tar_is_refused_or_has_no_shell(unpack: Callable[..., Path], source: bytes) -> None:
    def use() -> None:
        furnish(Tree(unpack(source), owners=False))

    with pytest.raises(SettingsError):
        use()


def test_a_tar_that_breaks_off_is_refused(unpack: Callable[..., Path]) -> None:
    with pytest.raises(SettingsError):
        unpack(packed(entry("file", b"x" * 100_000))[:50_000])


@needs_root
def test_owners_that_no_sandbox_can_have_are_refused(unpack: Callable[..., Path]) -> None:
    with pytest.raises(SettingsError, match="owners"):
        unpack(packed(entry("file", b"", uid=70_000)))


class Layout:
    """An OCI image layout on disk."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "blobs/sha256").mkdir(parents=True)
        (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (self.place / "blobs/sha256" / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    def document(self, content: Any) -> dict[str, Any]:
        return self.blob(json.dumps(content).encode())

    def image(self, *layers: bytes) -> dict[str, Any]:
        return self.document({"schemaVersion": 2, "layers": [self.blob(layer) for layer in layers]})

    def index(self, *manifests: dict[str, Any]) -> None:
        (self.place / "index.json").write_text(json.dumps({"manifests": manifests}))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "image")


def test_the_layers_of_an_image_are_put_on_top_of_each_other(
    unpack: Callable[..., Path], layout: Layout
) -> None:
    base = packed(
        *(entry("kept", b"kept"), entry("gone", b"gone"), entry("changed", b"old")),
        *(entry("opaque/old", b"old"), entry("opaque/deep/old", b"old"), entry("dir/x", b"x")),
    )
    top = packed(
        *(entry(".wh.gone"), entry("changed", b"new"), entry(".wh.dir"), entry(".wh.never-there")),
        *(entry("opaque/deep/new", b"new"), entry("opaque/.wh..wh..opq")),
        mode="w:gz",
    )
    layout.index(layout.image(base, top))
    root = unpack(layout.place)
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert files == {"kept": b"kept", "changed": b"new", "opaque/deep/new": b"new"}


def test_the_image_for_this_machine_is_taken(unpack: Callable[..., Path], layout: Layout) -> None:
    other = layout.image(packed(entry("which", b"other"))) | {
        "platform": {"os": "linux", "architecture": "s390x"}
    }
    ours = layout.image(packed(entry("which", b"ours"))) | {
        "platform": {"os": "linux", "architecture": ARCHITECTURE}
    }
    layout.index(layout.document({"manifests": [other, ours]}))
    assert (unpack(layout.place) / "which").read_bytes() == b"ours"


def test_an_image_for_other_machines_only_is_refused(unpack: Callable[..., Path], layout: Layout) -> None:
    layout.index(layout.image() | {"platform": {"os": "linux", "architecture": "s390x"}})
    with pytest.raises(SettingsError, match=f"linux/{ARCHITECTURE}"):
        unpack(layout.place)


def test_a_blob_that_is_not_what_its_digest_says_is_refused(
    unpack: Callable[..., Path], layout: Layout
) -> None:
    layer = layout.blob(packed(entry("file", b"content")))
    layout.index(layout.document({"layers": [layer]}))
    (layout.place / "blobs/sha256" / layer["digest"][7:]).write_bytes(packed(entry("file", b"changed")))
    with pytest.raises(SettingsError, match="digest"):
        unpack(layout.place)


@pytest.mark.parametrize("digest", ["sha256:../../../secret", "sha512:" + "0" * 128, "sha256:" + "0" * 64, 7])
def test_a_digest_names_nothing_but_a_blob(unpack: Callable[..., Path], layout: Layout, digest: Any) -> None:
    layout.index({"digest": digest})
    with pytest.raises(SettingsError):
        unpack(layout.place)


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"manifests": []}', '{"manifests": [{}]}', '{"layers": 3}']
)
def test_an_index_that_is_none_is_refused(unpack: Callable[..., Path], layout: Layout, index: str) -> None:
    (layout.place / "index.json").write_text(index)
    with pytest.raises(SettingsError):
        unpack(layout.place)


def test_a_directory_is_copied_and_left_alone(unpack: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "etc").mkdir(parents=True, mode=0o750)
    (source / "etc/file").write_bytes(b"content")
    (source / "etc/file").chmod(0o4751)
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "pipe")
    root = unpack(source)
    assert (root / "etc/file").read_bytes() == b"content"
    assert (root / "etc/file").stat().st_mode & 0o7777 == 0o751
    assert os.readlink(root / "link") == "/etc/passwd"
    assert not (root / "pipe").exists()
    (source / "etc/file").write_bytes(b"changed")
    assert (root / "etc/file").read_bytes() == b"content"


def test_a_base_is_furnished_with_mount_points_and_names_of_no_machine(unpack: Callable[..., Path]) -> None:
    root = unpack(
        packed(
            entry("usr/bin/dash", b"shell", mode=0o755),
            link("usr/bin/sh", "dash"),
            link("bin", "usr/bin"),
            link("tmp", "/somewhere"),
            entry("dev/console", b"leftover"),
            entry("etc/hostname", b"builder\n"),
            link("etc/resolv.conf", "../run/resolv.conf"),
        )
    )
    furnish(Tree(root, owners=False))
    for name in ("dev", "etc", "proc", "root", "run", "sys", "tmp", "workspace"):
        assert (root / name).is_dir(), name
        assert not (root / name).is_symlink(), name
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert list((root / "dev").iterdir()) == []
    assert (root / "etc/hostname").read_text() == "sandbox\n"
    assert not (root / "etc/resolv.conf").is_symlink()
    assert (root / "etc/resolv.conf").read_bytes() == b""


def test_a_base_without_a_shell_is_refused(unpack: Callable[..., Path]) -> None:
    root = unpack(packed(link("bin/sh", "/proc/self/exe"), entry("bin/other", b"")))
    with pytest.raises(SettingsError, match="/bin/sh"):
        furnish(Tree(root, owners=False))


@needs_root
def test_ids_inside_become_ids_of_the_host_once_for_each_file(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(b"x")
    os.chown(root / "file", 33, 34)
    (root / "file").chmod(0o6755)
    os.link(root / "file", root / "hard")
    (root / "link").symlink_to("/etc/passwd")
    os.mknod(root / "device", 0o660 | 0o020000, os.makedev(1, 5))
    host = os.lstat("/etc/passwd")
    make_inert(root, 500_000)
    file = (root / "hard").stat()
    assert (file.st_uid, file.st_gid, file.st_mode & 0o7777) == (500_033, 500_034, 0o755)
    assert os.lstat(root / "link").st_uid == 500_000
    assert root.stat().st_uid == 500_000
    assert not (root / "device").exists()
    assert os.lstat("/etc/passwd").st_uid == host.st_uid
