"""What waits, and what a turn has taken on its way, on the other side of a restart."""

from pathlib import Path

from tests.edges.test_queue import TODO, TOOLS, queue_of, stored
from tests.support.databases import Databases
from tests.support.held_llm import HeldCatalogue, follow, run_of, send
from tests.support.serving import Client, serve

from fermata.testing.scripted_llm import asks, says


async def test_a_turn_goes_on_with_what_it_has_taken_and_the_queue_behind_it(
    databases: Databases, tmp_path: Path
) -> None:
    await databases.sqlite_file(tmp_path)
    llm = HeldCatalogue()
    async with serve(tmp_path, catalogue=llm) as served:
        ada = await served.client()
        session = await ada.open()
        one = await send(ada, session, "one")
        call = await llm.next()
        await send(ada, session, "steer", "steer")
        call.answer(*says("Working."), *asks("c", "todo_write", TODO), TOOLS)
        assert (await llm.next()).heard == ["one", "steer"]
        await send(ada, session, "late", "steer")
        queued = await send(ada, session, "two")
    llm = HeldCatalogue()
    async with serve(tmp_path, catalogue=llm) as served:
        ada = Client(served.url, served.http, ada.key, ada.account)
        call = await llm.next()
        # The call that was cut is made again, and sees also what came during it, after what it saw before.
        assert call.heard == ["one", "steer", "late"]
        assert (await queue_of(ada, session))[0] == ["two"]
        call.answer()
        seen = await follow(ada, run_of(one))
        assert [chunk["id"] for chunk in seen.chunks if chunk["type"] == "data-steer"] == ["steer", "late"]
        assert seen.types.count("start") == seen.types.count("finish") == 1
        call = await llm.next()
        assert call.heard == ["one", "steer", "late", "two"]
        call.answer()
        assert (await follow(ada, run_of(queued))).text == "You said two."
        assert await stored(ada, session) == [
            "one", "steer", "late", "Working.You said late.", "two", "You said two.",
        ]  # fmt: skip
        assert (await queue_of(ada, session))[1] == {
            "received": 4, "answered": 4, "queued": 0, "cancelled": 0,
        }  # fmt: skip
