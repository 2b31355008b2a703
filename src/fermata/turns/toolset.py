"""The tools of one turn, by name."""

from collections.abc import Iterable

from fermata.turns.contract import Tool
from fermata.turns.model import ToolDescription


class Toolset:
    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._tools = {tool.description.name: tool for tool in tools}

    @property
    def descriptions(self) -> tuple[ToolDescription, ...]:
        return tuple(tool.description for tool in self._tools.values())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tools)

    def get(self, name: str) -> Tool | None:
        return self._tools.get(name)
