"""Between rows and frozen dataclasses: one `Shape` per dataclass, derived from its annotations.

Columns hold only what SQLite and PostgreSQL store alike: text, integers, booleans, bytes. So an instant
is a BIGINT of microseconds since 1970 (UTC), an enum its value, and JSON is text.
"""

import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, TypeVar

import orjson
import sqlalchemy as sa

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def instant_to_column(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def instant_from_column(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def json_to_column(value: Any) -> str:
    return orjson.dumps(value).decode()


def _converters(annotation: Any) -> tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None]:
    """(to column, from column) of one field; None where the value goes through as it is."""
    inner = annotation
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        some = [option for option in typing.get_args(annotation) if option is not type(None)]
        inner = some[0] if len(some) == 1 else Any
    base = typing.get_origin(inner) or inner
    if base is datetime:
        return instant_to_column, instant_from_column
    if base is bool:
        return None, bool
    if base in (dict, list, tuple):
        return json_to_column, (lambda text: tuple(orjson.loads(text))) if base is tuple else orjson.loads
    if isinstance(base, type) and issubclass(base, StrEnum):
        return str, base
    return None, None


class Shape(Generic[T]):
    """Reads rows of `table` into the dataclass `kind` and back. Fields and columns share their names."""

    def __init__(self, kind: type[T], table: sa.Table) -> None:
        hints = typing.get_type_hints(kind)
        names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        self.kind = kind
        self.columns = [table.c[name] for name in names]
        pairs = {name: _converters(hints[name]) for name in names}
        self._to = {name: pair[0] for name, pair in pairs.items()}
        self._from = [(index, pairs[name][1]) for index, name in enumerate(names) if pairs[name][1]]

    def read(self, row: Sequence[Any]) -> T:
        """`row` holds `columns` in their order, and may go on with others."""
        values = list(row[: len(self.columns)])
        for index, convert in self._from:
            if values[index] is not None and convert is not None:
                values[index] = convert(values[index])
        return self.kind(*values)

    def write(self, value: T) -> dict[str, Any]:
        return self.column_values({name: getattr(value, name) for name in self._to})

    def column_values(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Some fields by name, as their columns store them."""
        return {
            name: convert(item) if (convert := self._to[name]) and item is not None else item
            for name, item in changes.items()
        }
