"""Our fold and the fold of the published `ai` package, versions 6 and 7, give the same message."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fermata.turns.chunks import merge_deltas
from fermata.turns.fold import ChunkOrderError, closing_chunks, fold, open_parts

Chunk = dict[str, Any]
FoldInNode = Callable[[list[Chunk]], dict[str, Any]]

BROKEN = "The arguments are broken."

texts = st.text(max_size=12)
names = st.sampled_from(["bash", "todo_write", "my-tool"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
vendor = st.dictionaries(
    st.sampled_from(["openai", "x"]), st.dictionaries(texts, values, max_size=2), max_size=1
)
metadata = st.dictionaries(st.sampled_from(["a", "b", "c"]), values, max_size=3)


class Builder:
    """Draws a valid sequence: every part ended before its step ends, as our streams do."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self._count = 0
        self.chunks: list[Chunk] = []

    def draw(self, strategy: st.SearchStrategy[Any]) -> Any:
        return self._data.draw(strategy)

    def sequence(self) -> list[Chunk]:
        if self.draw(st.booleans()):
            self.chunks.append({"type": "start", "messageId": "m", "messageMetadata": self.draw(metadata)})
        for _ in range(self.draw(st.integers(0, 3))):
            self.step()
        return self.chunks

    def step(self) -> None:
        self.chunks.append({"type": "start-step"})
        kinds = st.sampled_from(["text", "reasoning", "tool", "tool", "data", "source", "metadata"])
        running = [getattr(self, kind)() for kind in self.draw(st.lists(kinds, max_size=4))]
        # Parts interleave: each is a list of its chunks, taken from in a drawn order.
        while running := [part for part in running if part]:
            self.chunks.append(running[self.draw(st.integers(0, len(running) - 1))].pop(0))
        self.chunks.append({"type": "finish-step"})

    def _id(self) -> str:
        self._count += 1
        return f"id{self._count}"

    def _streamed(self, kind: str) -> list[Chunk]:
        part = self._id()
        chunks = [{"type": f"{kind}-start", "id": part}]
        chunks += [
            {"type": f"{kind}-delta", "id": part, "delta": text}
            for text in self.draw(st.lists(texts, max_size=3))
        ]
        chunks.append({"type": f"{kind}-end", "id": part})
        return [self._maybe(chunk, "providerMetadata", vendor) for chunk in chunks]

    def _maybe(self, chunk: Chunk, key: str, strategy: st.SearchStrategy[Any]) -> Chunk:
        return {**chunk, key: self.draw(strategy)} if self.draw(st.integers(0, 4)) == 0 else chunk

    def text(self) -> list[Chunk]:
        return self._streamed("text")

    def reasoning(self) -> list[Chunk]:
        return self._streamed("reasoning")

    def metadata(self) -> list[Chunk]:
        return [{"type": "message-metadata", "messageMetadata": self.draw(metadata)}]

    def data(self) -> list[Chunk]:
        chunk = {"type": self.draw(st.sampled_from(["data-commit", "data-x"])), "data": self.draw(values)}
        chunk = self._maybe(chunk, "id", st.sampled_from(["a", "b"]))
        return [self._maybe(chunk, "transient", st.booleans())]

    def source(self) -> list[Chunk]:
        url = {"type": "source-url", "sourceId": self._id(), "url": "https://example.com/"}
        document = {
            "type": "source-document",
            "sourceId": self._id(),
            "mediaType": "text/plain",
            "title": "t",
        }
        file = {"type": "file", "url": "data:text/plain,x", "mediaType": "text/plain"}
        return [self.draw(st.sampled_from([url, document, file]))]

    def tool(self) -> list[Chunk]:
        call, name = {"toolCallId": self._id()}, {"toolName": self.draw(names)}
        dynamic = {"dynamic": True} if self.draw(st.integers(0, 3)) == 0 else {}
        chunks: list[Chunk] = []
        value = self.draw(st.dictionaries(texts, values, max_size=3))
        if self.draw(st.booleans()):
            chunks.append(
                self._maybe({"type": "tool-input-start", **call, **name, **dynamic}, "title", texts)
            )
            text = json.dumps(value, ensure_ascii=self.draw(st.booleans()))
            cuts = sorted(self.draw(st.lists(st.integers(0, len(text)), max_size=4)))
            for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
                chunks.append({"type": "tool-input-delta", **call, "inputTextDelta": text[begin:end]})
        if self.draw(st.integers(0, 5)) == 0:
            error = {
                "type": "tool-input-error",
                **call,
                **name,
                **dynamic,
                "input": self.draw(texts),
                "errorText": BROKEN,
            }
            return [*chunks, error]
        available = {"type": "tool-input-available", **call, **name, **dynamic, "input": value}
        chunks.append(self._maybe(available, "providerMetadata", vendor))
        for _ in range(self.draw(st.integers(0, 2))):
            progress = {
                "type": "tool-output-available",
                **call,
                "output": self.draw(values),
                "preliminary": True,
            }
            chunks.append(progress)
        if self.draw(st.booleans()):
            output = {"type": "tool-output-available", **call, "output": self.draw(values)}
            chunks.append(self._maybe(output, "providerMetadata", vendor))
        else:
            chunks.append({"type": "tool-output-error", **call, "errorText": self.draw(texts)})
        return chunks


def as_version_6(message: dict[str, Any]) -> dict[str, Any]:
    """Version 7 keeps the input of a `tool-input-error` as `input`, version 6 as `rawInput`."""
    for part in message["parts"]:
        if (
            part["type"].startswith("tool-")
            and part["state"] == "output-error"
            and part["errorText"] == BROKEN
        ):
            part["rawInput"] = part.pop("input")
    return message


def check(fold_in_node: FoldInNode, chunks: list[Chunk]) -> None:
    # The package hands out a message only when something visible changed; this last chunk makes it.
    whole = [*chunks, {"type": "finish", "messageMetadata": {"end": True}}]
    theirs = fold_in_node(whole)
    assert theirs["6"]["refused"] == theirs["7"]["refused"] == []
    ours = fold(whole)
    assert ours == theirs["6"]["message"]
    assert ours == as_version_6(theirs["7"]["message"])


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_stream_whole_cut_or_closed_folds_as_in_the_published_clients(
    fold_in_node: FoldInNode, data: st.DataObject
) -> None:
    chunks = Builder(data).sequence()
    check(fold_in_node, chunks)

    cut = chunks[: data.draw(st.integers(0, len(chunks)))]
    check(fold_in_node, cut)

    closed = cut + closing_chunks(cut, "Cancelled")
    check(fold_in_node, closed)
    assert open_parts(closed) == []
    assert closing_chunks(closed, "Cancelled") == []
    unfinished = {"streaming", "input-streaming", "input-available"}
    assert all(part.get("state") not in unfinished for part in fold(closed)["parts"])

    merged = merge_deltas(chunks)
    assert fold(merged) == fold(chunks)
    assert merge_deltas(merged) == merged


CALL = {"toolCallId": "c1", "toolName": "bash"}
OTHER = {"toolCallId": "c2", "toolName": "custom", "dynamic": True}
EVERYTHING: list[Chunk] = [
    {"type": "start", "messageId": "m", "messageMetadata": {"a": {"b": 1}}},
    {"type": "start-step"},
    {"type": "reasoning-start", "id": "r"},
    {"type": "text-start", "id": "t"},
    {"type": "reasoning-delta", "id": "r", "delta": "1"},
    {"type": "reasoning-delta", "id": "r", "delta": "2"},
    {"type": "text-delta", "id": "t", "delta": "3"},
    {"type": "reasoning-end", "id": "r", "providerMetadata": {"x": {"y": 1}}},
    {"type": "text-start", "id": "u"},
    {"type": "text-delta", "id": "t", "delta": "4"},
    {"type": "text-delta", "id": "u", "delta": "5"},
    {"type": "text-delta", "id": "t", "delta": "6"},
    {"type": "text-end", "id": "t"},
    {"type": "text-end", "id": "u"},
    {"type": "tool-input-start", **CALL},
    {"type": "tool-input-start", **OTHER, "title": "Custom"},
    {"type": "tool-input-delta", "toolCallId": "c1", "inputTextDelta": '{"a": [tr'},
    {"type": "tool-input-delta", "toolCallId": "c2", "inputTextDelta": '{"b": -'},
    {"type": "tool-input-delta", "toolCallId": "c1", "inputTextDelta": "ue, 1.5e"},
    {"type": "tool-input-delta", "toolCallId": "c1", "inputTextDelta": '2, "x\\u00'},
    {"type": "tool-input-delta", "toolCallId": "c1", "inputTextDelta": 'e9"]}'},
    {"type": "tool-input-delta", "toolCallId": "c2", "inputTextDelta": '1, "__proto__": 1}'},
    {"type": "tool-input-available", **CALL, "input": {"a": [True, 150, "xé"]}},
    {"type": "tool-input-available", **OTHER, "input": {"b": -1}},
    {"type": "tool-output-available", "toolCallId": "c2", "output": None, "preliminary": True},
    {"type": "tool-output-error", "toolCallId": "c1", "errorText": "no"},
    {"type": "tool-output-available", "toolCallId": "c2", "output": {"c": []}},
    {"type": "finish-step"},
    {"type": "message-metadata", "messageMetadata": {"a": {"c": 2}, "list": [1]}},
    {"type": "data-commit", "id": "1", "data": {"status": "pending"}},
    {"type": "start-step"},
    {"type": "tool-input-start", **CALL},
    {"type": "tool-input-delta", "toolCallId": "c1", "inputTextDelta": ""},
    {"type": "tool-input-error", **CALL, "input": "{", "errorText": BROKEN},
    {"type": "data-commit", "id": "1", "data": {"status": "success"}},
    {"type": "data-note", "data": 1, "transient": True},
    {"type": "finish-step"},
]


@pytest.mark.parametrize("length", range(len(EVERYTHING) + 1))
def test_every_beginning_of_a_stream_with_everything_folds_as_in_the_published_clients(
    fold_in_node: FoldInNode, length: int
) -> None:
    cut = EVERYTHING[:length]
    check(fold_in_node, cut)
    check(fold_in_node, cut + closing_chunks(cut, "Cancelled"))
    assert fold(merge_deltas(cut)) == fold(cut)


def test_neighbouring_deltas_of_one_part_become_one() -> None:
    merged = merge_deltas(EVERYTHING)
    deltas = [chunk["delta"] for chunk in merged if chunk["type"].endswith("-delta") and "delta" in chunk]
    assert deltas == ["12", "3", "4", "5", "6"]
    inputs = [chunk["inputTextDelta"] for chunk in merged if "inputTextDelta" in chunk]
    assert inputs == ['{"a": [tr', '{"b": -', 'ue, 1.5e2, "x\\u00e9"]}', '1, "__proto__": 1}', ""]


@pytest.mark.parametrize(
    "chunk",
    [
        {"type": "text-delta", "id": "x", "delta": "a"},
        {"type": "reasoning-end", "id": "x"},
        {"type": "tool-input-delta", "toolCallId": "x", "inputTextDelta": "a"},
        {"type": "tool-output-available", "toolCallId": "x", "output": 1},
    ],
)
def test_a_chunk_for_an_unknown_part_is_refused_by_us_as_by_the_clients(
    fold_in_node: FoldInNode, chunk: Chunk
) -> None:
    theirs = fold_in_node([{"type": "start-step"}, chunk])
    assert theirs["6"]["refused"]
    assert theirs["7"]["refused"]
    with pytest.raises(ChunkOrderError):
        fold([{"type": "start-step"}, chunk])
