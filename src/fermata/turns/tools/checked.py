"""What every tool shares: its input is checked before it acts, and its failures are results."""

import posixpath
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from fermata.kit.errors import FermataError, LeaseLostError
from fermata.sandboxes.contract import Sandbox
from fermata.turns.contract import ToolContext
from fermata.turns.model import ToolDescription


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value


#: A string that can be an argument of a program or a path.
Argument = Annotated[str, AfterValidator(_without_nul)]


class ToolInput(BaseModel):
    """Base of input models: camelCase on the wire, unknown keys ignored."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")


I = TypeVar("I", bound=ToolInput)  # noqa: E741


class CheckedTool(ABC, Generic[I]):
    name: ClassVar[str]
    text: ClassVar[str]
    idempotent: ClassVar[bool]
    input_model: type[I]

    def __init__(self) -> None:
        schema = self.input_model.model_json_schema()
        self._description = ToolDescription(self.name, self.text, _without_titles(schema))

    @property
    def description(self) -> ToolDescription:
        return self._description

    async def run(self, input: Any, context: ToolContext) -> Any:
        try:
            checked = self.input_model.model_validate(input)
            return await self.act(checked, context)
        except ValidationError as error:
            return self.failure(f"Invalid input for {self.name}: {_sentence(error)}")
        except LeaseLostError:
            raise
        except FermataError as error:
            return self.failure(error.message)

    def failure(self, error: str) -> dict[str, Any]:
        return {"success": False, "error": error}

    @abstractmethod
    async def act(self, input: I, context: ToolContext) -> Any:
        """Do the work of one call; errors of the sandbox become the result's `error`."""


def shown_path(sandbox: Sandbox, path: str) -> str:
    """`path` as the model and the page see it: relative to the workspace when it lies inside."""
    absolute = posixpath.normpath(posixpath.join(sandbox.working_directory, path))
    inside = sandbox.working_directory.rstrip("/") + "/"
    return absolute.removeprefix(inside)


def _sentence(error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False, include_input=False):
        field = ".".join(str(item) for item in problem["loc"]) or "input"
        problems.append(f"{field}: {problem['msg']}")
    return "; ".join(problems)


def _without_titles(schema: Any) -> Any:
    """The schema without pydantic's titles, which only cost the model tokens."""
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_titles(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }
