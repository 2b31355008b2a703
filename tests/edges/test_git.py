"""Clone and push over real HTTP with the real git."""

import asyncio
import os
from pathlib import Path

from tests.support.serving import Client, Served


async def git(*args: str, cwd: Path) -> tuple[int, str]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(cwd),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org",
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        "git", *args, cwd=cwd, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


def address(client: Client, holder: str, key: str | None = None) -> str:
    host = client.url.removeprefix("http://")
    return f"http://any:{key or client.key}@{host}/git/recoupable/{holder}.git"


async def test_a_workspace_is_cloned_and_pushed_by_its_holder(quick_served: Served, tmp_path: Path) -> None:
    ada = await quick_served.client()
    assert ada.account is not None
    code, output = await git("clone", "-q", address(ada, ada.account.id), "work", cwd=tmp_path)
    assert code == 0, output
    work = tmp_path / "work"
    # More than git sends in one piece, so that the push is chunked.
    (work / "song.bin").write_bytes(os.urandom(3 * 1024 * 1024))
    await git("add", ".", cwd=work)
    await git("commit", "-qm", "Add song", cwd=work)
    code, output = await git("push", "-q", "origin", "HEAD:main", cwd=work)
    assert code == 0, output
    code, output = await git("clone", "-q", address(ada, ada.account.id), "again", cwd=tmp_path)
    assert code == 0, output
    assert (tmp_path / "again/song.bin").read_bytes() == (work / "song.bin").read_bytes()


async def test_members_of_an_organization_clone_its_workspace_and_strangers_do_not(
    quick_served: Served, tmp_path: Path
) -> None:
    ada, bob, eve = [await quick_served.client(name) for name in ("Ada", "Bob", "Eve")]
    assert bob.account is not None
    organization = (await ada.post("/api/organizations", {"name": "Band"})).json["organization"]["id"]
    member = {"organizationId": organization, "accountId": bob.account.id}
    await ada.post("/api/organizations/members", member)
    code, output = await git("clone", "-q", address(bob, organization), "bobs", cwd=tmp_path)
    assert code == 0, output
    code, output = await git("clone", "-q", address(eve, organization), "eves", cwd=tmp_path)
    assert code != 0
    assert "not found" in output
    wrong = address(eve, organization, key="fer_0123456789ab_" + "s" * 43)
    code, output = await git("clone", "-q", wrong, "eves", cwd=tmp_path)
    assert code != 0
    assert "Authentication failed" in output
