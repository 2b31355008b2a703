"""`todo_write`: the agent's own list of tasks. It lives in the transcript and nowhere else."""

from enum import StrEnum
from typing import Any

from pydantic import Field

from fermata.turns.contract import ToolContext
from fermata.turns.tools.checked import CheckedTool, ToolInput


class TodoStatus(StrEnum):
    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"


class Todo(ToolInput):
    id: str = Field(min_length=1)
    content: str = Field(min_length=1)
    status: TodoStatus


class TodoInput(ToolInput):
    todos: list[Todo] = Field(max_length=200, description="The whole list; it replaces the earlier one.")


class TodoWrite(CheckedTool[TodoInput]):
    name = "todo_write"
    text = (
        "Write down the tasks of longer work and keep them up to date: one in progress at a time, completed "
        "as soon as it is done. The user sees the list."
    )
    idempotent = True
    input_model = TodoInput

    async def act(self, input: TodoInput, context: ToolContext) -> Any:
        todos = [todo.model_dump(mode="json") for todo in input.todos]
        return {"success": True, "message": f"Updated task list with {len(todos)} items", "todos": todos}
