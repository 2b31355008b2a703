from pathlib import Path

import pytest

from fermata.kit.clock import SystemClock
from fermata.kit.errors import InvalidRequestError, NotFoundError
from fermata.workspaces.contract import GitRequest
from fermata.workspaces.model import BranchUpdate, RepositoryName
from fermata.workspaces.providers.builtin import BuiltinHost
from fermata.workspaces.service import WorkspaceService

ANNOUNCEMENT = GitRequest("GET", "info/refs", service="git-upload-pack")


@pytest.fixture
def others(tmp_path: Path) -> BuiltinHost:
    return BuiltinHost(root=tmp_path / "others", clock=SystemClock())


def test_a_workspace_is_named_after_its_holder(host: BuiltinHost) -> None:
    service = WorkspaceService(owner="Recoupable", own=host)
    assert str(service.name_workspace("3c90c3cc-0d44")) == "Recoupable/3c90c3cc-0d44"
    with pytest.raises(InvalidRequestError, match="Invalid repository name"):
        service.name_workspace("../x")


async def test_a_workspace_is_ensured_read_and_bundled(host: BuiltinHost, name: RepositoryName) -> None:
    service = WorkspaceService(owner="Recoupable", own=host)
    await service.ensure_workspace(name)
    head = await service.head(name)
    assert head == await host.head(name)
    async with service.bundle(name, branch="main") as pieces:
        data = b"".join([piece async for piece in pieces])
    assert f"{head.commit} refs/heads/main".encode() in data

    async def bundle() -> object:
        yield data

    update = BranchUpdate("main", None, head.commit)
    await service.receive(name, bundle(), [update])  # type: ignore[arg-type]


async def test_repositories_of_other_owners_live_on_the_other_host(
    host: BuiltinHost, others: BuiltinHost, name: RepositoryName
) -> None:
    service = WorkspaceService(owner="recoupable", own=host, others=others)
    foreign = RepositoryName("vercel-labs", "open-agents")
    await service.ensure_workspace(name)
    with pytest.raises(NotFoundError, match="There is no repository vercel-labs/open-agents"):
        await service.ensure_workspace(foreign)
    assert not await others.exists(foreign)
    await others.ensure(foreign)
    await service.ensure_workspace(foreign)
    assert await service.head(foreign) == await others.head(foreign)
    assert not await host.exists(foreign)
    assert not await others.exists(name)


async def test_without_another_host_there_are_no_other_repositories(host: BuiltinHost) -> None:
    service = WorkspaceService(owner="recoupable", own=host)
    foreign = RepositoryName("vercel-labs", "open-agents")
    await host.ensure(foreign)
    with pytest.raises(NotFoundError, match="No host of this server keeps"):
        await service.head(foreign)
    with pytest.raises(NotFoundError):
        await service.ensure_workspace(foreign)


async def test_only_what_is_kept_here_is_served(
    host: BuiltinHost, others: BuiltinHost, name: RepositoryName
) -> None:
    await host.ensure(name)
    service = WorkspaceService(owner="recoupable", own=host, others=others, server=host)
    response = await service.answer(name, ANNOUNCEMENT)
    assert (await anext(response.body)).startswith(b"001e# service=git-upload-pack\n")
    with pytest.raises(NotFoundError):
        await service.answer(RepositoryName("recoupable", "unknown"), ANNOUNCEMENT)
    foreign = RepositoryName("vercel-labs", "open-agents")
    await others.ensure(foreign)
    with pytest.raises(NotFoundError, match="is not served here"):
        await service.answer(foreign, ANNOUNCEMENT)
    elsewhere = WorkspaceService(owner="recoupable", own=host)
    with pytest.raises(NotFoundError, match="is not served here"):
        await elsewhere.answer(name, ANNOUNCEMENT)
