"""Hints: remembered between waits, never the truth, and no trace of those who have left."""

import asyncio
from datetime import timedelta

import pytest

from fermata.kit.hints import Hints, Watch

LONG = timedelta(seconds=10)
SHORT = timedelta(milliseconds=5)


async def test_a_hint_that_comes_while_nobody_waits_is_not_lost() -> None:
    hints = Hints()
    with hints.watch("topic") as watch:
        hints.publish("topic")
        assert await watch.wait(LONG)
        assert not await watch.wait(SHORT)


async def test_many_hints_are_one() -> None:
    hints = Hints()
    with hints.watch("topic") as watch:
        for _ in range(3):
            hints.publish("topic")
        assert await watch.wait(LONG)
        assert not await watch.wait(SHORT)


async def test_every_listener_of_a_topic_hears_and_no_other() -> None:
    hints = Hints()
    with hints.watch("a") as one, hints.watch("a") as two, hints.watch("b") as other:
        hints.publish("a")
        assert await one.wait(LONG)
        assert await two.wait(LONG)
        assert not await other.wait(SHORT)


def test_a_listener_may_leave_while_it_is_called() -> None:
    hints = Hints()
    heard: list[str] = []
    with hints.listen("topic", lambda: heard.append("other")):
        leaving = hints.listen("topic", lambda: leaving.__exit__(None, None, None))
        leaving.__enter__()
        hints.publish("topic")
        hints.publish("topic")
    hints.publish("topic")
    assert heard == ["other", "other"]


async def test_a_cancelled_wait_is_cancelled_also_when_the_hint_comes_with_it() -> None:
    watch = Watch()
    task = asyncio.create_task(watch.wait(LONG))
    await asyncio.sleep(0)
    watch.wake()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
