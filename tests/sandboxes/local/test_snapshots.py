"""Frozen disks, and what a server that died in the middle of freezing leaves."""

import os
import secrets
from dataclasses import replace
from pathlib import Path

import pytest
from tests.sandboxes.local.support import fresh_name, sh

from fermata.kit.errors import SandboxFailedError, SandboxGoneError
from fermata.sandboxes.contract import SandboxSpec
from fermata.sandboxes.providers.local import LocalProvider, snapshots
from fermata.sandboxes.providers.local.records import Layout

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_deletions_and_replaced_directories_are_kept_through_layers(provider: LocalProvider) -> None:
    name = fresh_name()
    box = await provider.create(SandboxSpec(name))
    await sh(
        box, "mkdir d; echo 1 > d/one; echo 1 > two; ln -s two link; rm -rf /srv; mkdir full; touch full/x"
    )
    await provider.stop(name)
    await provider.snapshot(name, f"{name}-1")
    box = await provider.resume(name)
    await sh(
        box, "rm two; rm -r d; mkdir d; echo 2 > d/other; rm -r full; chmod 700 link/.. 2>/dev/null; true"
    )
    await provider.stop(name)
    await provider.snapshot(name, f"{name}-2")
    old = await provider.create(SandboxSpec(f"{name}-old", base=f"{name}-1"))
    new = await provider.create(SandboxSpec(f"{name}-new", base=f"{name}-2"))
    assert await sh(old, "cat d/one two; ls full; ls -d /srv 2>/dev/null; true") == "1\n1\nx\n"
    assert await sh(new, "ls; cat d/other; ls d; ls -d /srv 2>/dev/null; true") == "d\nlink\n2\nother\n"
    for one in (name, f"{name}-old", f"{name}-new"):
        await provider.destroy(one)
    for one in (f"{name}-1", f"{name}-2"):
        await provider.delete_snapshot(one)


async def test_layers_go_when_the_last_that_stands_on_them_goes(
    provider: LocalProvider, data_dir: Path
) -> None:
    layers = data_dir / "layers"
    before = set(os.listdir(layers))
    name = fresh_name()
    box = await provider.create(SandboxSpec(name))
    await box.write_file("kept", b"content")
    await provider.stop(name)
    await provider.snapshot(name, f"{name}-s")
    await provider.destroy(name)
    child = await provider.create(SandboxSpec(f"{name}-child", base=f"{name}-s"))
    await provider.delete_snapshot(f"{name}-s")
    assert len(set(os.listdir(layers)) - before) == 1
    await provider.stop(f"{name}-child")
    child = await provider.resume(f"{name}-child")
    assert await child.read_file("kept") == b"content"
    await provider.destroy(f"{name}-child")
    assert set(os.listdir(layers)) == before


@pytest.mark.parametrize("moved", [False, True])
async def test_a_freezing_that_was_cut_off_is_finished_or_taken_back(
    provider: LocalProvider, data_dir: Path, moved: bool
) -> None:
    name = fresh_name()
    box = await provider.create(SandboxSpec(name))
    await box.write_file("file", b"content")
    await provider.stop(name)
    home = Layout(data_dir).home(name)
    layer = secrets.token_hex(8)
    home.write(replace(home.read(), freezing=layer))
    if moved:
        home.upper.rename(data_dir / "layers" / layer)
    box = await provider.resume(name)
    assert await box.read_file("file") == b"content"
    assert home.read().freezing is None
    assert home.read().layers == ((layer,) if moved else ())
    await provider.destroy(name)


async def test_a_chain_that_grew_too_long_is_refused_in_words(
    provider: LocalProvider, data_dir: Path
) -> None:
    name = fresh_name()
    await provider.create(SandboxSpec(name))
    await provider.stop(name)
    for number in range(3):
        await provider.snapshot(name, f"{name}-{number}")
    home = Layout(data_dir).home(name)
    record = home.read()
    home.write(replace(record, layers=record.layers * snapshots.LAYERS_AT_MOST))
    with pytest.raises(SandboxFailedError, match="into a new sandbox"):
        await provider.snapshot(name, f"{name}-more")
    home.write(record)
    await provider.destroy(name)
    for number in range(3):
        await provider.delete_snapshot(f"{name}-{number}")


async def test_the_longest_chain_that_is_allowed_starts(provider: LocalProvider) -> None:
    name = fresh_name()
    box = await provider.create(SandboxSpec(name))
    await box.write_file("file", b"deep")
    await provider.stop(name)
    for number in range(snapshots.LAYERS_AT_MOST):
        await provider.snapshot(name, f"{name}-{number}")
    box = await provider.resume(name)
    assert await box.read_file("file") == b"deep"
    await provider.destroy(name)
    for number in range(snapshots.LAYERS_AT_MOST):
        await provider.delete_snapshot(f"{name}-{number}")
    with pytest.raises(SandboxGoneError):
        await provider.create(SandboxSpec(fresh_name(), base=f"{name}-0"))
