"""What the answers of both protocols have in common."""

import json
from typing import Any

import orjson

from fermata.turns.llms.vendor_errors import Trouble, VendorError
from fermata.turns.model import ToolCall
from fermata.turns.partial_json import parse_json


def read_event(data: bytes) -> dict[str, Any]:
    """An event of a stream; `VendorError` when it is no JSON object."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            # Takes halves of surrogate pairs, which some servers send one after the other.
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise VendorError(Trouble.NOT_UNDERSTOOD) from None
    if not isinstance(value, dict):
        raise VendorError(Trouble.NOT_UNDERSTOOD)
    return value


def as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def as_count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def finished_call(call_id: str, tool: str, text: str, vendor: dict[str, Any] | None = None) -> ToolCall:
    """A call from the text of its arguments, which need not be JSON."""
    try:
        value = parse_json(text) if text.strip() else {}
    except ValueError:
        broken = "The arguments of this call are not valid JSON. The call was not run."
        return ToolCall(call_id, tool, text, vendor, broken)
    if not isinstance(value, dict):
        broken = "The arguments of this call are not a JSON object. The call was not run."
        return ToolCall(call_id, tool, text, vendor, broken)
    return ToolCall(call_id, tool, value, vendor)
