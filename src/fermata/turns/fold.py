"""The message that a viewer has after a sequence of chunks, as the `ai` package builds it.

`Fold` mirrors `processUIMessageStream` of that package. It is the only place that knows which parts are
open, so it also tells which chunks end a stream that was cut. Adding a chunk takes constant time;
taking the message takes time in its size.

Versions 6 and 7 differ in two places. A part that is still open at `finish-step` can only go on in
version 7: our streams end every part first. The input of `tool-input-error` is kept as `rawInput` by
version 6 and as `input` by version 7: the stored message follows version 6, and both read either.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fermata.turns import chunks as make
from fermata.turns.model import Chunk
from fermata.turns.partial_json import NOTHING, parse_partial_json

#: Keys that are left out of a part when the chunk does not have them.
_SOURCE_KEYS = ("sourceId", "url", "mediaType", "title", "filename", "providerMetadata")
_ENDED = frozenset({"output-available", "output-error", "output-denied"})


class ChunkOrderError(ValueError):
    """A chunk names a part that no earlier chunk has started; the official clients refuse it too."""


@dataclass(frozen=True, slots=True)
class OpenPart:
    #: `text`, `reasoning` or `tool`.
    kind: str
    #: Id of the part in the stream, or of the tool call.
    id: str


class Fold:
    """Chunks in, message out."""

    def __init__(self, message_id: str | None = None) -> None:
        self._id = message_id or ""
        self._metadata: Any = None
        self._parts: list[dict[str, Any]] = []
        #: Pieces of parts that grow, by identity of the part; joined when somebody looks.
        self._pieces: dict[int, list[str]] = {}
        self._active: dict[tuple[str, str], dict[str, Any]] = {}
        self._calls: dict[str, dict[str, Any]] = {}
        self._step_begins = 0
        self.started = False
        self.finished = False
        self.step_open = False
        #: `start-step` chunks seen; the number of the newest step, counting from 1.
        self.steps_started = 0

    def add(self, chunk: Chunk) -> None:
        kind: str = chunk["type"]
        if kind.startswith("data-"):
            self._data(chunk)
        elif kind.startswith(("text-", "reasoning-")):
            part, event = kind.rsplit("-", 1)
            self._streamed(part, event, chunk)
        elif kind.startswith("tool-"):
            self._tool(kind, chunk)
        else:
            self._whole(kind, chunk)

    def add_all(self, chunks: Iterable[Chunk]) -> "Fold":
        for chunk in chunks:
            self.add(chunk)
        return self

    def message(self) -> dict[str, Any]:
        """A copy of the UI message so far: `id`, `role`, `parts` and, once there is any, `metadata`."""
        message: dict[str, Any] = {"id": self._id, "role": "assistant", "parts": []}
        if self._metadata is not None:
            message["metadata"] = copy.deepcopy(self._metadata)
        message["parts"] = [copy.deepcopy(self._settled(part)) for part in self._parts]
        return message

    def current_step(self) -> list[dict[str, Any]]:
        """A copy of the parts after the newest `start-step`."""
        return [copy.deepcopy(self._settled(part)) for part in self._parts[self._step_begins :]]

    def call_ids(self) -> set[str]:
        return {part["toolCallId"] for part in self._parts if "toolCallId" in part}

    def open_parts(self) -> list[OpenPart]:
        """Text and reasoning without an end, and tool calls of the newest step without an outcome."""
        parts = [OpenPart(kind, name) for kind, name in self._active]
        for part in self._parts[self._step_begins :]:
            if "toolCallId" in part and (part["state"] not in _ENDED or part.get("preliminary")):
                parts.append(OpenPart("tool", part["toolCallId"]))
        return parts

    def closing_chunks(self, reason: str) -> list[Chunk]:
        """Chunks that end every open part and the open step; `reason` is what open tool calls show."""
        closing: list[Chunk] = []
        for part in self.open_parts():
            if part.kind != "tool":
                closing.append(make.part_end(part.kind, part.id))
                continue
            call = self._calls[part.id]
            if call["state"] == "input-streaming":
                known = self._settled(call).get("input", {})
                available = make.tool_input_available(part.id, _tool_name(call), known)
                closing.append(available | ({"dynamic": True} if call["type"] == "dynamic-tool" else {}))
            closing.append(make.tool_output_error(part.id, reason))
        if self.step_open:
            closing.append(make.finish_step())
        return closing

    def _settled(self, part: dict[str, Any]) -> dict[str, Any]:
        pieces = self._pieces.get(id(part))
        if not pieces:
            return part
        text = "".join(pieces)
        pieces[:] = [text]
        if "toolCallId" not in part:
            part["text"] = text
        elif part["state"] == "input-streaming" and part.get("rawInput") != text:
            part["rawInput"] = text
            _put(part, "input", parse_partial_json(text))
        return part

    def _streamed(self, kind: str, event: str, chunk: Chunk) -> None:
        key = (kind, chunk["id"])
        if event == "start":
            part = {"type": kind, "text": "", "state": "streaming"}
            if kind == "reasoning":
                part["id"] = chunk["id"]
            self._parts.append(part)
            self._active[key] = part
            self._pieces[id(part)] = []
        elif key not in self._active:
            raise ChunkOrderError(f"{chunk['type']} for a part that is not open: {chunk['id']}")
        part = self._active[key]
        if "providerMetadata" in chunk:
            part["providerMetadata"] = chunk["providerMetadata"]
        if event == "delta":
            self._pieces[id(part)].append(chunk["delta"])
        elif event == "end":
            self._settled(part)["state"] = "done"
            del self._active[key], self._pieces[id(part)]

    def _whole(self, kind: str, chunk: Chunk) -> None:
        match kind:
            case "start":
                self.started = True
                self._id = chunk.get("messageId", self._id)
            case "finish":
                self.finished = True
            case "start-step":
                self._parts.append({"type": "step-start"})
                self._step_begins = len(self._parts)
                self.steps_started += 1
                self.step_open = True
            case "finish-step":
                for _, part in self._active.items():
                    self._settled(part)
                    del self._pieces[id(part)]
                self._active.clear()
                self.step_open = False
            case "source-url" | "source-document":
                self._parts.append({"type": kind} | {key: chunk[key] for key in _SOURCE_KEYS if key in chunk})
            case "file":
                keys = ("mediaType", "url", "providerMetadata")
                self._parts.append({"type": kind} | {key: chunk[key] for key in keys if key in chunk})
        if chunk.get("messageMetadata") is not None:
            self._metadata = _merged(self._metadata, chunk["messageMetadata"])

    def _data(self, chunk: Chunk) -> None:
        if chunk.get("transient"):
            return
        if chunk.get("id") is not None:
            for part in self._parts:
                if part["type"] == chunk["type"] and part.get("id") == chunk["id"]:
                    part["data"] = chunk["data"]
                    return
        self._parts.append(dict(chunk))

    def _tool(self, kind: str, chunk: Chunk) -> None:
        call_id: str = chunk["toolCallId"]
        match kind:
            case "tool-input-start":
                part = self._update(chunk, "input-streaming", {})
                self._pieces[id(part)] = []
            case "tool-input-delta":
                # Not settled here: reading the input anew with each piece would take time in its square.
                part = self._calls.get(call_id, {})
                if id(part) not in self._pieces:
                    raise ChunkOrderError(f"tool-input-delta for a call that is not open: {call_id}")
                self._pieces[id(part)].append(chunk["inputTextDelta"])
            case "tool-input-available":
                self._pieces.pop(id(self._update(chunk, "input-available", {"input": chunk["input"]})), None)
            case "tool-input-error":
                values = {"rawInput": chunk["input"], "errorText": chunk["errorText"]}
                if self._is_dynamic(chunk):
                    values["input"] = values.pop("rawInput")
                self._pieces.pop(id(self._update(chunk, "output-error", values)), None)
            case "tool-output-available":
                self._end(chunk, "output-available", {"output": chunk["output"]})
            case "tool-output-error":
                self._end(chunk, "output-error", {"errorText": chunk["errorText"]})
            case "tool-output-denied":
                self._known(chunk)["state"] = "output-denied"
            case "tool-approval-request":
                part = self._known(chunk)
                part["state"] = "approval-requested"
                part["approval"] = {"id": chunk["approvalId"]}

    def _known(self, chunk: Chunk) -> dict[str, Any]:
        try:
            return self._settled(self._calls[chunk["toolCallId"]])
        except KeyError:
            raise ChunkOrderError(f"{chunk['type']} for an unknown call: {chunk['toolCallId']}") from None

    def _in_step(self, call_id: str) -> dict[str, Any] | None:
        """The call's part if it belongs to the newest step; an id may come again in a later one."""
        part = self._calls.get(call_id)
        known = part is not None and any(part is other for other in self._parts[self._step_begins :])
        return part if known else None

    def _is_dynamic(self, chunk: Chunk) -> bool:
        part = self._in_step(chunk["toolCallId"])
        return part["type"] == "dynamic-tool" if part else bool(chunk.get("dynamic"))

    def _update(self, chunk: Chunk, state: str, values: dict[str, Any]) -> dict[str, Any]:
        part = self._in_step(chunk["toolCallId"])
        if part is None:
            part = {"type": "", "toolCallId": chunk["toolCallId"]}
            self._parts.append(part)
            self._calls[chunk["toolCallId"]] = part
            if chunk.get("dynamic"):
                part["type"] = "dynamic-tool"
        if part["type"] == "dynamic-tool":
            part["toolName"] = chunk["toolName"]
        else:
            part["type"] = f"tool-{chunk['toolName']}"
        if "title" in chunk and chunk["type"] != "tool-input-error":
            part["title"] = chunk["title"]
        self._set(part, state, values, chunk)
        return part

    def _end(self, chunk: Chunk, state: str, values: dict[str, Any]) -> None:
        part = self._known(chunk)
        keep = (
            ("input", "rawInput")
            if state == "output-error" and part["type"] != "dynamic-tool"
            else ("input",)
        )
        self._pieces.pop(id(part), None)
        self._set(part, state, {key: part[key] for key in keep if key in part} | values, chunk)

    def _set(self, part: dict[str, Any], state: str, values: dict[str, Any], chunk: Chunk) -> None:
        part["state"] = state
        for key in ("input", "output", "errorText", "rawInput"):
            _put(part, key, values.get(key, NOTHING))
        _put(part, "preliminary", chunk.get("preliminary", NOTHING))
        for key in ("toolMetadata", "providerExecuted"):
            if key in chunk:
                part[key] = chunk[key]
        if "providerMetadata" in chunk:
            place = "resultProviderMetadata" if state.startswith("output-") else "callProviderMetadata"
            part[place] = chunk["providerMetadata"]


def fold(chunks: Iterable[Chunk], message_id: str | None = None) -> dict[str, Any]:
    """The UI message that viewers have after `chunks`. `message_id` is used until `start` names one."""
    return Fold(message_id).add_all(chunks).message()


def open_parts(chunks: Iterable[Chunk]) -> list[OpenPart]:
    return Fold().add_all(chunks).open_parts()


def closing_chunks(chunks: Iterable[Chunk], reason: str) -> list[Chunk]:
    return Fold().add_all(chunks).closing_chunks(reason)


def _tool_name(part: dict[str, Any]) -> str:
    name: str = part["toolName"] if part["type"] == "dynamic-tool" else part["type"].removeprefix("tool-")
    return name


def _put(part: dict[str, Any], key: str, value: Any) -> None:
    if value is NOTHING:
        part.pop(key, None)
    else:
        part[key] = value


def _merged(base: Any, overrides: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(overrides, dict):
        return overrides
    result = dict(base)
    for key, value in overrides.items():
        both = isinstance(result.get(key), dict) and isinstance(value, dict)
        result[key] = _merged(result[key], value) if both else value
    return result
