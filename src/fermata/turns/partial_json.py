"""What can be read of JSON text that is still arriving, exactly as the `ai` package reads it.

A port of its `parsePartialJson`: viewers see a tool's input grow while the model writes it, and the
message that the server stores must hold the same value that they saw.
"""

import json
from typing import Any

#: No value can be read yet.
NOTHING: Any = object()

_DIGITS = frozenset("0123456789")
_HEX = frozenset("0123456789abcdefABCDEF")
_LITERALS = ("true", "false", "null")


def parse_partial_json(text: str) -> Any:
    """The value of `text`, of `text` with its open ends closed, or `NOTHING`."""
    value = _parse(text)
    return _parse(_close(text)) if value is NOTHING else value


def parse_json(text: str) -> Any:
    """Strict JSON: no NaN, no Infinity. `ValueError` otherwise."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _parse(text: str) -> Any:
    try:
        value = parse_json(text)
        return NOTHING if _pollutes(value) else value
    except (ValueError, RecursionError):
        return NOTHING


def _pollutes(value: Any) -> bool:
    """Keys that the package refuses, because they would reach into JavaScript's prototypes."""
    if isinstance(value, dict):
        inner = value.get("constructor")
        if "__proto__" in value or (isinstance(inner, dict) and "prototype" in inner):
            return True
        return any(_pollutes(item) for item in value.values())
    return isinstance(value, list) and any(_pollutes(item) for item in value)


def _close(text: str) -> str:
    """Cut `text` behind the last place where a value could end, and close what is open there."""
    scanner = _Scanner()
    for index, char in enumerate(text):
        scanner.step(char, index, text)
    return text[: scanner.valid + 1] + scanner.endings(text)


class _Scanner:
    """A stack of what the text is inside of. `valid` is the last index that is kept."""

    def __init__(self) -> None:
        self.stack = ["root"]
        self.valid = -1
        self.literal_start = 0
        self.escape_digits = 0

    def step(self, char: str, index: int, text: str) -> None:
        state = self.stack[-1] if self.stack else ""
        match state:
            case "root":
                self._value(char, index, "finish")
            case "object-start":
                if char == '"':
                    self.stack[-1] = "object-key"
                elif char == "}":
                    self._pop(index)
            case "object-comma" if char == '"':
                self.stack[-1] = "object-key"
            case "object-key" if char == '"':
                self.stack[-1] = "object-after-key"
            case "object-after-key" if char == ":":
                self.stack[-1] = "object-before-value"
            case "object-before-value":
                self._value(char, index, "object-after-value")
            case "object-after-value":
                self._after_object_value(char, index)
            case "array-start":
                if char == "]":
                    self._pop(index)
                else:
                    self.valid = index
                    self._value(char, index, "array-after-value")
            case "array-after-value":
                if char == ",":
                    self.stack[-1] = "array-comma"
                elif char == "]":
                    self._pop(index)
                else:
                    self.valid = index
            case "array-comma":
                self._value(char, index, "array-after-value")
            case "number":
                self._number(char, index)
            case "literal":
                self._literal(char, index, text)
            case _:
                self._string(state, char, index)

    def _pop(self, index: int) -> None:
        self.valid = index
        self.stack.pop()

    def _value(self, char: str, index: int, after: str) -> None:
        if char == '"':
            inside = "string"
        elif char in "ftn":
            inside = "literal"
            self.literal_start = index
        elif char == "-" or char in _DIGITS:
            inside = "number"
        elif char == "{":
            inside = "object-start"
        elif char == "[":
            inside = "array-start"
        else:
            return
        if char != "-":
            self.valid = index
        self.stack[-1:] = [after, inside]

    def _after_object_value(self, char: str, index: int) -> None:
        if char == ",":
            self.stack[-1] = "object-comma"
        elif char == "}":
            self._pop(index)

    def _after_array_value(self, char: str, index: int) -> None:
        if char == ",":
            self.stack[-1] = "array-comma"
        elif char == "]":
            self._pop(index)

    def _string(self, state: str, char: str, index: int) -> None:
        match state:
            case "string":
                if char == '"':
                    self._pop(index)
                elif char == "\\":
                    self.stack.append("escape")
                else:
                    self.valid = index
            case "escape":
                self.stack.pop()
                if char == "u":
                    self.escape_digits = 0
                    self.stack.append("unicode-escape")
                else:
                    self.valid = index
            case "unicode-escape" if char in _HEX:
                self.escape_digits += 1
                if self.escape_digits == 4:
                    self._pop(index)

    def _number(self, char: str, index: int) -> None:
        if char in _DIGITS:
            self.valid = index
        elif char not in "eE-.":
            self.stack.pop()
            if char in ",}" and self.stack[-1] == "object-after-value":
                self._after_object_value(char, index)
            elif char in ",]" and self.stack[-1] == "array-after-value":
                self._after_array_value(char, index)

    def _literal(self, char: str, index: int, text: str) -> None:
        partial = text[self.literal_start : index + 1]
        if any(literal.startswith(partial) for literal in _LITERALS):
            self.valid = index
            return
        self.stack.pop()
        if self.stack[-1] == "object-after-value":
            self._after_object_value(char, index)
        elif self.stack[-1] == "array-after-value":
            self._after_array_value(char, index)

    def endings(self, text: str) -> str:
        closers = []
        for state in reversed(self.stack):
            if state == "string":
                closers.append('"')
            elif state.startswith("object-"):
                closers.append("}")
            elif state.startswith("array-"):
                closers.append("]")
            elif state == "literal":
                partial = text[self.literal_start :]
                closers.extend(
                    literal[len(partial) :] for literal in _LITERALS if literal.startswith(partial)
                )
        return "".join(closers)
