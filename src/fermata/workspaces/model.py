"""Names of repositories and branches, by the rules of GitHub and of git. Pure."""

import re
import secrets
import unicodedata
from dataclasses import dataclass

from fermata.kit.errors import InvalidRequestError

DEFAULT_BRANCH = "main"

_OWNER = re.compile(r"[A-Za-z0-9](?:-?[A-Za-z0-9])*")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_URL = re.compile(r"(?ai:https://github\.com)/(?P<owner>[^/]+)/(?P<name>[^/]+?)(?:\.git)?/?")
_OBJECT_ID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
#: Git refuses these anywhere in a reference: control characters, space, and what its revision syntax uses.
_BRANCH_REFUSED = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|$)")
#: In bytes of UTF-8. GitHub's limit of 255 for the whole reference, less `refs/heads/`.
_BRANCH_LIMIT = 244


@dataclass(frozen=True, slots=True, eq=False)
class RepositoryName:
    """Owner and name, valid by construction, so that they are also safe as parts of a path or a URL.

    As on GitHub the spelling is kept and compared without regard to case: `A/b` and `a/B` are one
    repository, equal and with the same hash.
    """

    owner: str
    name: str

    def __post_init__(self) -> None:
        check_owner(self.owner)
        check_name(self.name)

    @property
    def key(self) -> tuple[str, str]:
        """Owner and name in lower case: one value for every spelling of one repository."""
        return self.owner.lower(), self.name.lower()

    def __eq__(self, other: object) -> bool:
        return self.key == other.key if isinstance(other, RepositoryName) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True, slots=True)
class Head:
    """The tip of a branch: the branch without `refs/heads/`, the commit as its full hexadecimal id."""

    branch: str
    commit: str


@dataclass(frozen=True, slots=True)
class BranchUpdate:
    """Move `branch` from commit `old` to its descendant `new`; `old` is None for a branch to be made."""

    branch: str
    old: str | None
    new: str

    def __post_init__(self) -> None:
        check_branch(self.branch)
        for commit in (self.old, self.new):
            if commit is not None and not is_object_id(commit):
                raise InvalidRequestError("A commit is named by its full hexadecimal id")


def check_owner(owner: str, *, field: tuple[str | int, ...] = ()) -> str:
    if len(owner) > 39 or not _OWNER.fullmatch(owner):
        raise InvalidRequestError("Invalid repository owner", field=field)
    return owner


def check_name(name: str, *, field: tuple[str | int, ...] = ()) -> str:
    if not _NAME.fullmatch(name) or name in (".", "..") or name.lower().endswith(".git"):
        raise InvalidRequestError("Invalid repository name", field=field)
    return name


def check_branch(branch: str, *, field: tuple[str | int, ...] = ()) -> str:
    """What `git check-ref-format --branch` accepts, up to 244 bytes.

    A branch named like a commit id is refused too, as GitHub does: every later command would be ambiguous.
    """
    refused = (
        not branch
        or branch in ("HEAD", "@")
        or branch.startswith(("-", "/", "."))
        or branch.endswith(("/", "."))
        or _BRANCH_REFUSED.search(branch) is not None
        or is_object_id(branch)
        or len(branch.encode("utf-8", "replace")) > _BRANCH_LIMIT
        or any("\ud800" <= character <= "\udfff" for character in branch)
    )
    if refused:
        raise InvalidRequestError("Invalid branch", field=field)
    return branch


def is_object_id(text: str) -> bool:
    """Whether `text` is a full object id, SHA-1 or SHA-256, in lower case."""
    return _OBJECT_ID.fullmatch(text) is not None


def parse_repository_url(text: str) -> RepositoryName | None:
    """The repository that `https://github.com/<owner>/<name>` names, or None for any other text.

    One `.git` and one slash at the end are allowed; credentials, ports, queries and other hosts are not.
    """
    found = _URL.fullmatch(text)
    if found is None:
        return None
    try:
        return RepositoryName(found["owner"], found["name"])
    except InvalidRequestError:
        return None


def clone_url(name: RepositoryName) -> str:
    """The URL that stands for a repository on the wire, whichever host keeps it."""
    return f"https://github.com/{name.owner}/{name.name}"


def branch_prefix(account_name: str | None) -> str:
    """Two lower-case letters: the initials of the first two words, else the first two letters, else `nb`."""
    plain = unicodedata.normalize("NFKD", account_name or "").encode("ascii", "ignore").decode().lower()
    words: list[str] = re.findall(r"[a-z]+", plain)
    if len(words) > 1:
        return words[0][0] + words[1][0]
    return words[0][:2] if words and len(words[0]) > 1 else "nb"


def generate_branch(account_name: str | None) -> str:
    """A fresh branch such as `ab/12cd34ef`."""
    return f"{branch_prefix(account_name)}/{secrets.token_hex(4)}"
