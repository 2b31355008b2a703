"""The tools that every turn has."""

from fermata.turns.tools.bash import Bash
from fermata.turns.tools.files import Edit, Read, Write
from fermata.turns.tools.glob import Glob
from fermata.turns.tools.grep import Grep
from fermata.turns.tools.todo import TodoWrite
from fermata.turns.toolset import Toolset


def standard_tools() -> Toolset:
    return Toolset((Bash(), Read(), Write(), Edit(), Grep(), Glob(), TodoWrite()))
