"""`fermata keys` on a data directory, while a server runs on it."""

import asyncio

from click import Command
from click.testing import CliRunner, Result
from tests.support.serving import Client, Served

from fermata.edges.cli_keys import keys, link


async def run(served: Served, *args: str, command: Command = keys) -> Result:
    data_dir = str(served.fermata.settings.data_dir)
    return await asyncio.to_thread(CliRunner().invoke, command, [*args, "--data-dir", data_dir])


async def test_a_key_made_on_the_command_line_works_until_it_is_revoked_there(quick_served: Served) -> None:
    made = await run(quick_served, "create", "--new-account", "Grace", "--name", "laptop")
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    grace = Client(quick_served.url, quick_served.http, key)
    assert (await grace.get("/api/sessions")).status == 200
    listed = await run(quick_served, "list")
    (line,) = [line for line in listed.stdout.splitlines() if "laptop" in line]
    assert "good" in line
    assert key.split("_", 2)[2] not in listed.stdout
    assert (await run(quick_served, "revoke", key)).stdout == "revoked\n"
    assert (await grace.get("/api/sessions")).status == 401
    assert "revoked" in (await run(quick_served, "list")).stdout


async def test_a_key_is_for_the_first_account_unless_told_otherwise(quick_served: Served) -> None:
    made = await run(quick_served, "create")
    client = Client(quick_served.url, quick_served.http, made.stdout.strip())
    first = (quick_served.fermata.settings.data_dir / "api-key").read_text().strip()
    owner = Client(quick_served.url, quick_served.http, first)
    assert (await client.get("/api/accounts/id")).json == (await owner.get("/api/accounts/id")).json
    both = await run(quick_served, "create", "--account", "x", "--new-account", "y")
    assert both.exit_code == 2


async def test_a_repository_can_be_used_once_it_is_linked(quick_served: Served) -> None:
    ada = await quick_served.client()
    assert ada.account is not None
    body = {"repoOwner": "Torvalds", "repoName": "linux"}
    assert (await ada.post("/api/sessions", body)).status == 403
    args = ("torvalds/Linux", "--account", ada.account.id)
    assert (await run(quick_served, *args, command=link)).stdout == "linked\n"
    assert (await run(quick_served, *args, command=link)).stdout == "was linked before\n"
    assert (await ada.post("/api/sessions", body)).status == 200
