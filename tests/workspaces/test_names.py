import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fermata.kit.errors import InvalidRequestError
from fermata.workspaces.model import (
    BranchUpdate,
    RepositoryName,
    branch_prefix,
    check_branch,
    check_name,
    check_owner,
    clone_url,
    generate_branch,
    parse_repository_url,
)


@pytest.mark.parametrize("owner", ["a", "A1", "vercel-labs", "x" * 39, "0-0"])
def test_an_owner_by_githubs_rules_is_accepted(owner: str) -> None:
    assert check_owner(owner) == owner


@pytest.mark.parametrize(
    "owner", ["", "-a", "a-", "a--b", "x" * 40, "a_b", "a.b", "a/b", "a b", "é", "..", "a\n", "\u0661"]
)
def test_any_other_owner_is_refused(owner: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^Invalid repository owner$"):
        check_owner(owner)


@pytest.mark.parametrize("name", ["a", "a.b", "_", "-", "...", ".github", "x" * 100, "a.git.x", "git"])
def test_a_repository_name_by_githubs_rules_is_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a.git", "a.GIT", ".git", "x" * 101, "a/b", "a b", "a\n", "é", "a\0"]
)
def test_any_other_repository_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^Invalid repository name$") as caught:
        check_name(name, field=("repoName",))
    assert caught.value.field == ("repoName",)


def test_a_repository_name_cannot_be_made_of_invalid_parts() -> None:
    with pytest.raises(InvalidRequestError):
        RepositoryName("..", "x")
    with pytest.raises(InvalidRequestError):
        RepositoryName("x", "..")


def test_two_spellings_name_one_repository_and_each_is_kept() -> None:
    one, other = RepositoryName("Recoupable", "Notes"), RepositoryName("recoupable", "nOTES")
    assert one == other
    assert len({one, other}) == 1
    assert (str(one), str(other)) == ("Recoupable/Notes", "recoupable/nOTES")
    assert one != RepositoryName("recoupable", "notes2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://github.com/vercel-labs/open-agents", ("vercel-labs", "open-agents")),
        ("https://github.com/a/b.git", ("a", "b")),
        ("https://github.com/a/b/", ("a", "b")),
        ("https://github.com/a/b.git/", ("a", "b")),
        ("HTTPS://GitHub.COM/A/B", ("A", "B")),
        ("https://github.com/a/.github", ("a", ".github")),
        ("https://github.com/a/b.c", ("a", "b.c")),
    ],
)
def test_a_repository_url_of_github_is_read(text: str, expected: tuple[str, str]) -> None:
    name = parse_repository_url(text)
    assert name is not None
    assert (name.owner, name.name) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "github.com/a/b",
        "http://github.com/a/b",
        "git@github.com:a/b.git",
        "ssh://git@github.com/a/b",
        "https://x-access-token:t@github.com/a/b",
        "https://t@github.com/a/b",
        "https://github.com:443/a/b",
        "https://www.github.com/a/b",
        "https://github.com.example.org/a/b",
        "https://example.org/https://github.com/a/b",
        "https://github.com/a",
        "https://github.com/a/",
        "https://github.com/a/b/c",
        "https://github.com/a/b/tree/main",
        "https://github.com/a/b//",
        "https://github.com//a/b",
        "https://github.com/a/b?x=1",
        "https://github.com/a/b#x",
        "https://github.com/a/b.git.git",
        "https://github.com/a/..",
        "https://github.com/a/.git",
        "https://github.com/a/b ",
        " https://github.com/a/b",
        "https://github.com/a/b\n",
        "https://github.com/a/%2e%2e",
        "https://github.com/-a/b",
        "https://g\u0131thub.com/a/b",
        "http\u017f://github.com/a/b",
    ],
)
def test_any_other_text_is_no_repository_url(text: str) -> None:
    assert parse_repository_url(text) is None


def test_the_clone_url_of_a_name_reads_as_that_name() -> None:
    name = RepositoryName("recoupable", "x.y")
    assert clone_url(name) == "https://github.com/recoupable/x.y"
    assert parse_repository_url(clone_url(name)) == name


# Pieces that the rules are about, between ordinary text, so that most examples are near the border.
_PIECES = st.sampled_from(
    [*"/.@{}-~^:?*[]\\+!$#'= \t\n\x01\x7fé🙂", "..", ".lock", "@{", "HEAD", "refs/heads/", "lock"]
)
_BRANCHES = st.lists(_PIECES | st.text(min_size=1, max_size=3), max_size=6).map("".join)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty")
    subprocess.run(["git", "init", "--quiet", path], check=True)
    return path


@settings(max_examples=200, deadline=None)
@given(branch=_BRANCHES)
@example("HEAD")
@example("-x")
@example("a.lock/b")
@example("a/.b")
@example("a./b")
@example("x.lock.")
@example("@{-1}")
@example("a@{u}")
def test_branches_are_judged_as_git_judges_them(repository: Path, branch: str) -> None:
    # Git lets the first two pass here, but no other command takes them for a branch; the rest cannot be
    # an argument.
    if (
        branch in ("", "@")
        or "\0" in branch
        or any("\ud800" <= character <= "\udfff" for character in branch)
    ):
        return
    argv = ["git", "check-ref-format", "--branch", branch]
    git_accepts = subprocess.run(argv, cwd=repository, capture_output=True).returncode == 0
    try:
        check_branch(branch)
    except InvalidRequestError:
        accepted = False
    else:
        accepted = True
    assert accepted == git_accepts


@pytest.mark.parametrize(
    "branch",
    ["", "a\0b", "\ud800", "a" * 245, "é" * 123, "0123456789abcdef" * 2 + "01234567", "é" * 122 + "x"],
)
def test_branches_that_would_make_trouble_later_are_refused_too(branch: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^Invalid branch$"):
        check_branch(branch)


def test_a_branch_of_the_longest_allowed_name_can_be_made(repository: Path) -> None:
    branch = check_branch("é" * 122)
    environment = {**os.environ, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "LC_ALL": "C"}
    environment |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    tree = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
    commit = subprocess.run(
        ["git", "commit-tree", "-m", "x", tree],
        cwd=repository,
        env=environment,
        check=True,
        capture_output=True,
    )
    subprocess.run(["git", "branch", branch, commit.stdout.decode().strip()], cwd=repository, check=True)


@pytest.mark.parametrize(
    ("account", "prefix"),
    [
        ("Ada Lovelace", "al"),
        ("ada", "ad"),
        ("Éva Ősz", "eo"),
        ("Jean-Luc Picard", "jl"),
        ("x", "nb"),
        ("", "nb"),
        (None, "nb"),
        ("武田", "nb"),
        ("42", "nb"),
        ("  grace   brewster hopper ", "gb"),
        ("ada@example.org", "ae"),
    ],
)
def test_a_branch_starts_with_the_letters_of_who_asked(account: str | None, prefix: str) -> None:
    assert branch_prefix(account) == prefix


def test_generated_branches_are_valid_and_differ() -> None:
    branches = {generate_branch("Ada Lovelace") for _ in range(50)}
    assert len(branches) == 50
    for branch in branches:
        letters, _, digits = check_branch(branch).partition("/")
        assert letters == "al"
        assert len(digits) == 8
        assert int(digits, 16) >= 0


def test_an_update_names_commits_by_their_full_ids() -> None:
    commit = "a" * 40
    BranchUpdate("main", None, commit)
    for old, new in ((None, "abc"), ("HEAD", commit), (commit, "A" * 40)):
        with pytest.raises(InvalidRequestError, match="hexadecimal"):
            BranchUpdate("main", old, new)
    with pytest.raises(InvalidRequestError, match=r"^Invalid branch$"):
        BranchUpdate("../main", None, commit)
