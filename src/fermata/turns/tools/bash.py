"""`bash`: run a command in the sandbox."""

from datetime import timedelta
from typing import Any

from pydantic import Field

from fermata.kit.errors import SandboxPathError
from fermata.sandboxes.contract import Sandbox
from fermata.turns.contract import ToolContext
from fermata.turns.tools.checked import Argument, CheckedTool, ToolInput

TIME_LIMIT_FOR = timedelta(seconds=120)
#: Bytes kept of each of stdout and stderr: half from the start, half from the end.
OUTPUT_LIMIT = 50_000


class BashInput(ToolInput):
    command: Argument = Field(min_length=1, description="The command line, run by bash.")
    cwd: Argument | None = Field(
        default=None, description="Directory to run in, relative to the workspace. Default: the workspace."
    )
    detached: bool = Field(
        default=False,
        description="Start the command in the background and return at once, for servers and watchers. Its "
        "output is not returned: redirect it to a file if you need it.",
    )


class Bash(CheckedTool[BashInput]):
    name = "bash"
    text = (
        "Run a bash command in the session's sandbox. Commands start in the workspace, cannot ask for "
        "input, and are ended after 120 seconds. Long output keeps its start and its end. Use `detached` "
        "for commands that should go on running."
    )
    idempotent = False
    input_model = BashInput

    async def act(self, input: BashInput, context: ToolContext) -> Any:
        sandbox = await context.get_sandbox()
        try:
            return await self._run(sandbox, input, context.environment)
        except SandboxPathError as error:
            return self.failure(f"cwd {input.cwd}: {error.message}")

    async def _run(self, sandbox: Sandbox, input: BashInput, environment: dict[str, str]) -> Any:
        argv = ["bash", "-c", input.command]
        if input.detached:
            command_id = await sandbox.start_detached(argv, cwd=input.cwd, environment=environment)
            text = f"Process started in background (command ID: {command_id})."
            return {"success": True, "exitCode": None, "stdout": text, "stderr": ""}
        result = await sandbox.exec(
            argv,
            cwd=input.cwd,
            environment=environment,
            time_limit_for=TIME_LIMIT_FOR,
            output_limit=OUTPUT_LIMIT,
        )
        stderr = result.stderr.decode(errors="replace")
        if result.timed_out:
            line = f"The command did not end within {TIME_LIMIT_FOR.seconds} seconds and was ended."
            stderr = f"{stderr.rstrip()}\n{line}".lstrip()
        return {
            "success": result.exit_code == 0,
            "exitCode": result.exit_code,
            "stdout": result.stdout.decode(errors="replace"),
            "stderr": stderr,
        } | ({"truncated": True} if result.truncated else {})

    def failure(self, error: str) -> dict[str, Any]:
        return {"success": False, "exitCode": None, "stdout": "", "stderr": error}
