"""Between rows and dataclasses, on both databases: what goes in comes out."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from fermata.kit.rows import Shape, instant_from_column, instant_to_column


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Thing:
    name: str
    colour: Colour
    count: int | None
    on: bool
    at: datetime | None
    data: dict[str, Any] | None
    names: tuple[str, ...]


THINGS = sa.Table(
    "things_of_a_test",
    sa.MetaData(),
    *(sa.Column(name, sa.Text) for name in ("name", "colour", "count", "on", "at", "data", "names")),
)
SHAPE = Shape(Thing, THINGS)

_instants = st.datetimes(
    min_value=datetime(1970, 1, 1),  # noqa: DTZ001 - the strategy adds the zone
    max_value=datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=st.just(UTC),
)
_json = st.dictionaries(st.text(), st.integers(-(2**53), 2**53) | st.text() | st.none() | st.booleans())


@given(
    st.builds(
        Thing,
        name=st.text(),
        colour=st.sampled_from(Colour),
        count=st.none() | st.integers(),
        on=st.booleans(),
        at=st.none() | _instants,
        data=st.none() | _json,
        names=st.lists(st.text()).map(tuple),
    )
)
def test_a_dataclass_survives_its_row(thing: Thing) -> None:
    row = SHAPE.write(thing)
    assert SHAPE.read([row[column.name] for column in SHAPE.columns]) == thing
    assert all(isinstance(value, str | int | None) for value in row.values())


@given(_instants)
def test_an_instant_keeps_its_microsecond(instant: datetime) -> None:
    assert instant_from_column(instant_to_column(instant)) == instant


def test_an_instant_of_another_zone_is_the_same_instant() -> None:
    east = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert instant_from_column(instant_to_column(east)) == datetime(2026, 1, 1, tzinfo=UTC)


def test_some_fields_can_be_written_by_name() -> None:
    assert SHAPE.column_values({"colour": Colour.BLUE, "at": None}) == {"colour": "blue", "at": None}
