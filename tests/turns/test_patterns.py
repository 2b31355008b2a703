"""File name patterns: their meaning, and that no pattern takes long."""

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermata.turns.tools.patterns import PathPattern, PatternError, expand_braces, literal_prefix


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.py", "a.py", True),
        ("*.py", "d/a.py", False),
        ("**/*.py", "a.py", True),
        ("**/*.py", "d/e/a.py", True),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("a/**/b", "ab", False),
        ("a/**", "a/x/y", True),
        ("a/**", "a", False),
        ("**", "x/y", True),
        ("**/**/x", "x", True),
        ("[!a]b", "bb", True),
        ("[!a]b", "ab", False),
        ("[]]", "]", True),
        ("[a", "[a", True),
        ("[a-c]", "b", True),
        ("\\*", "*", True),
        ("\\*", "x", False),
        ("a.c", "abc", False),
        ("*a*b*", "xxaxxbxx", True),
        ("*a*b", "xxaxbxbb", True),
        ("*ab", "aab", True),
    ],
)
def test_a_pattern_matches(pattern: str, path: str, matches: bool) -> None:
    assert PathPattern(pattern).matches(path) is matches


@given(st.text("ab*?[!]-", max_size=6), st.text("ab-]", min_size=1, max_size=6))
def test_within_one_name_a_pattern_means_what_it_means_to_python(pattern: str, name: str) -> None:
    if "**" in pattern or pattern == "":
        return
    try:
        mine = PathPattern(pattern).matches(name)
    except PatternError:
        return
    assert mine == fnmatch.fnmatchcase(name, pattern)


@pytest.mark.parametrize("pattern", ["*a" * 60 + "b", "/".join(["**", "a"] * 40), "?*" * 60 + "b"])
def test_no_pattern_is_tried_in_more_ways_than_there_is_time_for(pattern: str) -> None:
    # With backtracking these would go on for years.
    assert not PathPattern(pattern).matches("a" * 250)
    assert not PathPattern(pattern).matches("/".join("a" * 120) + "/b")


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("a.{b,c}", ["a.b", "a.c"]),
        ("{a,{b,c}}/{d,e}", ["a/d", "a/e", "b/d", "b/e", "c/d", "c/e"]),
        ("{a}", ["{a}"]),
        ("{a,b", ["{a,b"]),
        ("x{,.y}", ["x", "x.y"]),
    ],
)
def test_braces_are_alternatives(pattern: str, expanded: list[str]) -> None:
    assert expand_braces(pattern) == expanded


def test_too_many_alternatives_are_refused() -> None:
    with pytest.raises(PatternError):
        expand_braces("{a,b}" * 12)


def test_the_fixed_start_of_a_pattern_is_told_apart() -> None:
    assert literal_prefix("src/app/*.py") == ("src/app", "*.py")
    assert literal_prefix("*.py") == ("", "*.py")
    assert literal_prefix("a/b") == ("a", "b")
