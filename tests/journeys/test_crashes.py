"""The journeys, with the server killed at a commit or in the middle of a provider's verb, and started again.

Each test spends a number of kills on the points of one journey. `python -m bench.crash` visits every point.
"""

from collections.abc import Iterator

import pytest
from tests.journeys.conftest import MakeServer
from tests.support.journeys import (
    Journey,
    Point,
    Walk,
    commits,
    create_sessions,
    hibernate,
    restore,
    take_turns,
    verbs,
    wait_in_line,
)


@pytest.mark.parametrize(
    ("walk", "points"),
    [
        (create_sessions, [*commits(1, 2), *verbs("create")]),
        (hibernate, [*commits(1, 3), ("stop", 1, "after")]),
        (restore, [*commits(1, 3), ("resume", 1, "after")]),
        (take_turns, commits(1, 12)),
        (wait_in_line, commits(3, 12, 3)),
    ],
)
async def test_nothing_is_lost_doubled_or_stuck(
    make_server: MakeServer, walk: Walk, points: list[Point]
) -> None:
    journey = Journey(await make_server(orchestrator="true"))
    missed: list[Point] = []

    def told() -> Iterator[Point]:
        for point in points:
            yield point
            if not journey.reached:
                missed.append(point)

    await walk(journey, told())
    assert missed == []
