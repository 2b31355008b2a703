"""What requests and answers of both protocols have in common."""

import base64
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson

from fermata.turns.llms.vendor_errors import Trouble, VendorError
from fermata.turns.model import File, Reasoning, Text, ToolCall
from fermata.turns.partial_json import parse_json

#: What models read as a file of its own; text is put into the message.
_SHOWN_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf"})
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/yaml")


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture or a document that goes to the model as it is."""

    media_type: str
    #: Base64; None when the vendor is to fetch `url`.
    data: str | None
    url: str
    filename: str | None

    @property
    def is_picture(self) -> bool:
        return self.media_type.startswith("image/")


def read_file(file: File) -> Shown | str:
    """A file as a model takes it: shown, or in words."""
    name = f"{file.filename or 'without a name'}, {file.media_type}"
    if not file.url.startswith("data:"):
        # The server fetches nothing on a user's word. The vendor may, for a picture; the model can, by tools.
        shown = Shown(file.media_type, None, file.url, file.filename)
        return shown if file.media_type in _SHOWN_TYPES and shown.is_picture else f"[file {name}: {file.url}]"
    head, _, body = file.url.partition(",")
    try:
        data = unquote_to_bytes(body)
        data = base64.b64decode(data, validate=True) if head.endswith(";base64") else data
    except ValueError:
        return f"[file {name}: its content is damaged]"
    if file.media_type in _SHOWN_TYPES:
        encoded = base64.b64encode(data).decode()
        url = f"data:{file.media_type};base64,{encoded}"
        return Shown(file.media_type, encoded, url, file.filename)
    if file.media_type.startswith(_TEXT_TYPES):
        return f"[file {name}]\n{data.decode(errors='replace')}"
    return f"[file {name}: a kind that models cannot read]"


def own_data(part: Text | Reasoning | ToolCall, vendor: str) -> dict[str, Any] | None:
    """What this vendor attached to a part; None for what another one did."""
    return part.vendor if part.vendor and part.vendor.get("provider_name") == vendor else None


def input_object(call: ToolCall) -> dict[str, Any]:
    """The input of a call as vendors take it back: always an object."""
    return call.input if isinstance(call.input, dict) else {"invalid_arguments": call.input}


def output_text(output: Any) -> str:
    return output if isinstance(output, str) else orjson.dumps(output).decode()


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
