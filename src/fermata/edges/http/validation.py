"""Wire models, and what is said when a value does not fit: in the words that clients of zod know."""

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic.json_schema import WithJsonSchema

from fermata.kit.errors import InvalidRequestError


class WireModel(BaseModel):
    """Base of every body and answer. Types are strict: "1" is no number. Unknown keys are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)


def without_null_defaults(schema: dict[str, Any]) -> None:
    for field in schema.get("properties", {}).values():
        if field.get("default", 0) is None:
            del field["default"]


class RequestModel(WireModel):
    """Base of every body. A field that may be left out has the default `ABSENT`."""

    model_config = ConfigDict(json_schema_extra=without_null_defaults)


#: Reads as None. Not in the schema: a client leaves the field out, and null is refused like any wrong type.
ABSENT: Any = None


@dataclass(frozen=True)
class Says:
    """Put into `Annotated[...]` of a field: sentences in place of the usual ones."""

    #: For every mistake that has no sentence of its own below.
    wrong: str | None = None
    missing: str | None = None
    empty: str | None = None


#: What zod's uuid() accepts: versions 1 to 8 of the usual variant, the nil and the max UUID.
_UUID = (
    r"^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[1-8][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
    r"|00000000-0000-0000-0000-000000000000|[fF]{8}-[fF]{4}-[fF]{4}-[fF]{4}-[fF]{12})$"
)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


#: In the `Annotated` of an integer, last: JSON does not tell 1.0 from 1.
WHOLE = BeforeValidator(_whole)

UuidText = Annotated[
    str, Field(pattern=_UUID), WithJsonSchema({"type": "string", "format": "uuid", "pattern": _UUID})
]


def described(pattern: str, **more: Any) -> WithJsonSchema:
    """How a text that another room checks looks in the OpenAPI document."""
    return WithJsonSchema({"type": "string", "pattern": pattern, **more})


_OWNER = r"[A-Za-z0-9](-?[A-Za-z0-9]){0,38}"
_NAME = r"(?!\.{1,2}$)(?!.*\.[gG][iI][tT]$)[A-Za-z0-9._-]{1,100}"

OwnerText = Annotated[str, described(f"^{_OWNER}$", maxLength=39)]
RepositoryText = Annotated[str, described(f"^{_NAME}$")]
RepositoryUrlText = Annotated[
    str,
    Field(min_length=1),
    described(
        f"^https://github\\.com/{_OWNER}/(?!\\.{{1,2}}(/|$))(?!\\.git(/|$))(?!.*\\.git\\.git)[A-Za-z0-9._-]{{1,96}}/?$",
        format="uri",
    ),
]
#: As git has it: `git check-ref-format --branch`, and no full object id.
BRANCH_PATTERN = (
    r"^(?![-/.])(?!.*(\.\.|@\{|//|/\.|\.lock(/|$)))(?!(HEAD|@|[0-9a-f]{40}|[0-9a-f]{64})$)"
    r"[^\x00-\x20\x7f~^:?*\[\\]{0,239}[^\x00-\x20\x7f~^:?*\[\\/.]$"
)


_JSON_NAMES: dict[Any, str] = {
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    dict: "object",
    list: "array",
}


def _received(value: Any) -> str:
    if value is None:
        return "null"
    return _JSON_NAMES.get(type(value), "object")


def _expected(annotation: Any) -> str:
    """The JSON name of a field's type."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _expected(typing.get_args(annotation)[0])
    if origin in (types.UnionType, typing.Union):
        some = [item for item in typing.get_args(annotation) if item is not type(None)]
        return _expected(some[0])
    if origin is typing.Literal or (isinstance(annotation, type) and issubclass(annotation, Enum)):
        return "string"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object"
    return _JSON_NAMES.get(origin or annotation, "object")


def _words(text: str) -> str:
    """Pydantic's `'a', 'b' or 'c'` as zod writes it."""
    return "|".join(
        f'"{word.strip(" ")}"' for word in text.replace("' or '", "', '").strip("'").split("', '")
    )


_TYPES = {
    "string_type": "string",
    "string_sub_type": "string",
    "int_type": "number",
    "int_parsing": "number",
    "float_type": "number",
    "bool_type": "boolean",
    "bool_parsing": "boolean",
    "dict_type": "object",
    "model_type": "object",
    "model_attributes_type": "object",
    "list_type": "array",
}


def _sentence(mistake: Mapping[str, Any], annotation: Any) -> str:
    kind, context = mistake["type"], mistake.get("ctx") or {}
    if kind == "missing":
        return f"Invalid input: expected {_expected(annotation)}, received undefined"
    if kind == "int_type" and isinstance(mistake.get("input"), float):
        return "Invalid input: expected int, received number"
    if kind in _TYPES:
        return f"Invalid input: expected {_TYPES[kind]}, received {_received(mistake.get('input'))}"
    match kind:
        case "enum" | "literal_error":
            return f"Invalid option: expected one of {_words(context['expected'])}"
        case "string_too_short":
            return f"Too small: expected string to have >={context['min_length']} characters"
        case "string_too_long":
            return f"Too big: expected string to have <={context['max_length']} characters"
        case "too_long":
            return f"Too big: expected array to have <={context['max_length']} items"
        case "too_short":
            return f"Too small: expected array to have >={context['min_length']} items"
        case "greater_than_equal":
            return f"Too small: expected number to be >={context['ge']}"
        case "less_than_equal":
            return f"Too big: expected number to be <={context['le']}"
        case "extra_forbidden":
            return f'Unrecognized key: "{mistake["loc"][-1]}"'
        case "value_error":
            return str(context["error"])
    return "Invalid input"


def _field(model: type[BaseModel], name: str) -> FieldInfo | None:
    for field_name, field in model.model_fields.items():
        if name in (field_name, field.alias):
            return field
    return None


def explain(
    mistakes: Sequence[Mapping[str, Any]], field: FieldInfo | None, path: tuple[str | int, ...]
) -> InvalidRequestError:
    """The error for the first mistake. `field` describes what it is about, if that is known."""
    first = mistakes[0]
    says = next((item for item in (field.metadata if field else ()) if isinstance(item, Says)), None)
    sentence = None
    if says is not None and first["type"] == "missing":
        sentence = says.missing or says.wrong
    elif says is not None and first["type"] == "string_too_short":
        sentence = says.empty or says.wrong
    elif says is not None:
        sentence = says.wrong
    if sentence is None:
        sentence = _sentence(first, field.annotation if field else None)
    if first["type"] == "extra_forbidden":
        path = path[:-1]
    return InvalidRequestError(sentence, field=path)


def validate(model: type[BaseModel], value: Any) -> BaseModel:
    """`value` is parsed JSON. `InvalidRequestError` about the first mistake."""
    if not isinstance(value, dict):
        raise InvalidRequestError(f"Invalid input: expected object, received {_received(value)}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        path = tuple(mistakes[0]["loc"])
        field = _field(model, str(path[0])) if len(path) == 1 else None
        raise explain(mistakes, field, path) from None
