"""Which ids of the host a sandbox's users are.

As root: 65,536 ids that nobody on the host has, so that root inside is nobody outside. As an ordinary user:
root inside is that user, with the user's range of /etc/subuid for the others where newuidmap can give it.
"""

import os
import pwd
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

#: Above what accounts, systemd's dynamic users and containers take, below the sign bit.
_RANGE_START = 0x7F000000
_RANGE_COUNT = 65536
_FEWEST = 1000


class Mode(StrEnum):
    RANGE = "range"
    SUBID = "subid"
    SELF = "self"


@dataclass(frozen=True, slots=True)
class Mapping:
    mode: Mode
    #: As /proc/PID/uid_map takes it, or (SUBID) as the words of newuidmap.
    uids: str
    gids: str
    #: The host's id of root inside, when that is not the id of this process.
    first_id: int | None = None

    @property
    def has_users(self) -> bool:
        """Whether there is more than one user inside."""
        return self.mode is not Mode.SELF


def own_mapping() -> Mapping:
    """What this process may use. Only a started sandbox proves it."""
    if os.geteuid() == 0:
        first, count = _free_range(Path("/proc/self/uid_map"))
        if count < _FEWEST:
            return single_mapping()  # root of a namespace that has hardly another id to give
        line = f"0 {first} {count}\n"
        return Mapping(Mode.RANGE, line, line, first)
    return _subid_mapping() or single_mapping()


def single_mapping() -> Mapping:
    return Mapping(Mode.SELF, f"0 {os.geteuid()} 1\n", f"0 {os.getegid()} 1\n")


def first_id() -> int | None:
    """What `BaseStore` is to be told: the host's id of root inside, None when that is our own."""
    return own_mapping().first_id


def _free_range(uid_map: Path) -> tuple[int, int]:
    """In a container with few ids of its own: the upper half of them."""
    ends = []
    for line in uid_map.read_text().splitlines():
        inside, _, count = (int(word) for word in line.split())
        if inside <= _RANGE_START and inside + count >= _RANGE_START + _RANGE_COUNT:
            return _RANGE_START, _RANGE_COUNT
        ends.append((count, inside))
    count, inside = max(ends)
    share = min(_RANGE_COUNT, count // 2)
    return inside + count - share, share


def _subid_mapping() -> Mapping | None:
    if not shutil.which("newuidmap") or not shutil.which("newgidmap"):
        return None
    uids = _subordinate(Path("/etc/subuid"), os.geteuid())
    gids = _subordinate(Path("/etc/subgid"), os.geteuid())
    if uids is None or gids is None:
        return None
    return Mapping(
        Mode.SUBID,
        f"0 {os.geteuid()} 1 1 {uids[0]} {uids[1]}",
        f"0 {os.getegid()} 1 1 {gids[0]} {gids[1]}",
    )


def _subordinate(path: Path, uid: int) -> tuple[int, int] | None:
    try:
        # newuidmap wants to know its user by name too.
        names = {str(uid), pwd.getpwuid(uid).pw_name}
        lines = path.read_text().splitlines()
    except (KeyError, OSError):
        return None
    for line in lines:
        words = line.strip().split(":")
        if len(words) != 3 or words[0] not in names or not words[1].isdigit() or not words[2].isdigit():
            continue
        if int(words[2]) >= _FEWEST:
            return int(words[1]), min(int(words[2]), _RANGE_COUNT - 1)
    return None
