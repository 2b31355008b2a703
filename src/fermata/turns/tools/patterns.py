"""File name patterns with the meaning they have in editors and shells: `*`, `?`, `[...]`, `{a,b}`, `**`."""

import re

#: Alternatives that one pattern may expand to.
_ALTERNATIVES_LIMIT = 64


class PatternError(ValueError):
    """The pattern cannot be used; the message says why."""


def expand_braces(pattern: str) -> list[str]:
    """`a.{b,c}` as `a.b` and `a.c`, nested ones too. A brace without a comma or an end is itself."""
    results, waiting = [], [pattern]
    while waiting:
        text = waiting.pop(0)
        group = _first_group(text)
        if group is None:
            results.append(text)
            continue
        start, end, options = group
        waiting[:0] = [text[:start] + option + text[end:] for option in options]
        if len(results) + len(waiting) > _ALTERNATIVES_LIMIT:
            raise PatternError(f"the pattern has more than {_ALTERNATIVES_LIMIT} alternatives")
    return results


def _first_group(text: str) -> tuple[int, int, list[str]] | None:
    """Start, end and options of the first group of braces that holds a comma."""
    for start in (index for index, char in enumerate(text) if char == "{"):
        depth, options, begin = 0, [], start + 1
        for index in range(start, len(text)):
            char = text[index]
            depth += (char == "{") - (char == "}")
            if (char == "," and depth == 1) or depth == 0:
                options.append(text[begin:index])
                begin = index + 1
            if depth == 0:
                if len(options) > 1:
                    return start, index + 1, options
                break
    return None


class PathPattern:
    """A pattern for whole relative paths. `*` and `?` stay within one name; `**` as a name is any number of
    directories. Names that begin with a dot match like others: the caller decides what to look at.

    Matching takes time in the product of both lengths, whatever the pattern: it comes from a model.
    """

    def __init__(self, pattern: str) -> None:
        #: One matcher for each name; None is `**`.
        self._names = [None if name == "**" else _compile(name) for name in pattern.split("/")]

    def matches(self, path: str) -> bool:
        end = len(self._names)
        states = self._with_skips({0})
        for name in path.split("/"):
            reached: set[int] = set()
            for state in states - {end}:
                matcher = self._names[state]
                if matcher is None:
                    reached |= {state, end} if state == end - 1 else {state}
                elif matcher.match(name):
                    reached.add(state + 1)
            states = self._with_skips(reached)
        return end in states

    def _with_skips(self, states: set[int]) -> set[int]:
        """With the states behind each `**`, which may stand for no directory; the last one needs a name."""
        result = set(states)
        for state in states:
            while state < len(self._names) - 1 and self._names[state] is None:
                state += 1
                result.add(state)
        return result


def _compile(name: str) -> re.Pattern[str]:
    *heads, tail = _fixed_pieces(name)
    # Between two stars the first fit is as good as any other: atomic groups keep it, so no backtracking.
    middle = "".join(f"(?>.*?{piece})" for piece in heads[1:])
    text = (heads[0] + middle + ".*" if heads else "") + tail
    try:
        return re.compile(text + r"\Z", re.DOTALL)
    except re.error:
        raise PatternError(f"{name!r} is not a valid pattern") from None


def _fixed_pieces(name: str) -> list[str]:
    """Regular expressions of what stands between the stars."""
    pieces, index = [""], 0
    while index < len(name):
        char = name[index]
        index += 1
        if char == "*":
            pieces.append("")
        elif char == "?":
            pieces[-1] += "."
        elif char == "[" and (close := _bracket_end(name, index)) is not None:
            body = name[index:close]
            negated = body[:1] in ("!", "^")
            escaped = re.sub(r"([\\\[\]&~|^])", r"\\\1", body[negated:])
            pieces[-1] += f"[{'^' if negated else ''}{escaped}]"
            index = close + 1
        elif char == "\\" and index < len(name):
            pieces[-1] += re.escape(name[index])
            index += 1
        else:
            pieces[-1] += re.escape(char)
    return pieces


def _bracket_end(segment: str, begin: int) -> int | None:
    """Index of the `]` that closes a set; one directly at its start belongs to it."""
    first = begin + (segment[begin : begin + 1] in ("!", "^")) + 1
    end = segment.find("]", first)
    return None if end < 0 else end


def literal_prefix(pattern: str) -> tuple[str, str]:
    """The leading directories without wildcards, and the rest: `src/app/*.py` is `src/app` and `*.py`."""
    segments = pattern.split("/")
    count = 0
    while count < len(segments) - 1 and not re.search(r"[*?\[\\]", segments[count]):
        count += 1
    return "/".join(segments[:count]), "/".join(segments[count:])
