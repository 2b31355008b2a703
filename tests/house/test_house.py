"""The house itself: sizes, docstrings, error codes, documented settings."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from fermata.edges.cli import EXIT
from fermata.edges.http.errors import STATUS
from fermata.kit import errors
from fermata.kit.settings import describe_settings

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "fermata"
FILES = sorted(SOURCE.rglob("*.py"))

#: Lines that a file may have.
FILE_LIMIT = 600
#: Lines that a function may have, without its docstring: a screen.
SCREEN = 60
#: Functions over a screen, by `file:name`. This list may only shrink.
LONG_FUNCTIONS: set[str] = set()


def test_no_file_is_longer_than_its_limit() -> None:
    long = {str(path.relative_to(ROOT)): count for path in FILES if (count := _lines(path)) > FILE_LIMIT}
    assert long == {}


def test_the_median_file_is_short() -> None:
    counts = sorted(_lines(path) for path in FILES if path.name != "__init__.py")
    assert counts[len(counts) // 2] <= 180


def test_a_function_fits_a_screen() -> None:
    long = {name for path in FILES for name in _long_functions(path)}
    assert long == LONG_FUNCTIONS


def test_every_room_says_what_it_is_for() -> None:
    for path in SOURCE.rglob("__init__.py"):
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring, path
        assert len(docstring) > 40, path


def test_error_codes_are_unique_and_have_a_status_and_an_exit_status() -> None:
    classes = [
        item
        for item in vars(errors).values()
        if isinstance(item, type) and issubclass(item, errors.FermataError)
    ]
    codes = [item.code for item in classes if item is not errors.FermataError]
    assert len(codes) == len(set(codes)) + codes.count("internal") - 1
    assert set(STATUS) == set(errors.ErrorKind)
    assert set(EXIT) <= set(errors.ErrorKind)


def test_nothing_is_left_open_in_the_code() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX)\b")
    assert [str(path) for path in FILES if marks.search(path.read_text())] == []


def test_every_setting_is_documented_with_its_default_and_sentence() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    for variable, default, sentence in describe_settings():
        shown = f"`{default}`" if default else ""
        assert f"| `{variable}` | {shown} | {sentence} |" in page, variable


def test_links_in_the_documentation_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("name", ["serve", "test", "demo"])
def test_the_makefile_keeps_what_the_readme_promises(name: str) -> None:
    done = subprocess.run(["make", "-n", name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _lines(path: Path) -> int:
    return path.read_text().count("\n")


def _long_functions(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0]
        is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        start = first.end_lineno if is_docstring else node.lineno
        assert start is not None
        assert node.end_lineno is not None
        if node.end_lineno - start > SCREEN and "versions" not in path.parts:
            found.append(f"{path.relative_to(SOURCE)}:{node.name}")
    return found
