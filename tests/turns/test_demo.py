"""The demo model in whole turns, with real commands."""

import asyncio

import pytest

from fermata.kit.errors import SandboxGoneError
from fermata.sandboxes.contract import Sandbox
from fermata.testing.memory_journal import MemoryJournal
from fermata.testing.turns import a_turn, check_stream, play
from fermata.turns.llms.demo import MODEL_ID, DemoLlm
from fermata.turns.model import TurnEnd, TurnOutcome
from fermata.turns.tools.standard import standard_tools
from fermata.turns.toolset import Toolset

pytestmark = pytest.mark.asyncio(loop_scope="module")

TWO_BLOCKS = "Please\n```bash\necho one > f\n```\nand\n```bash\ncat f missing\n```\n"


async def demo(text: str, sandbox: Sandbox | None = None, tools: Toolset | None = None) -> TurnOutcome:
    journal = MemoryJournal()
    outcome = await play(
        DemoLlm(),
        tools=tools or standard_tools(),
        journal=journal,
        turn=a_turn(text, model_id=MODEL_ID),
        sandbox=sandbox,
    )
    check_stream(journal, outcome)
    return outcome


async def test_the_demo_model_runs_each_block_and_reports_status_and_output(sandbox: Sandbox) -> None:
    outcome = await demo(TWO_BLOCKS, sandbox)
    assert outcome.end is TurnEnd.COMPLETED
    tools = [part for part in outcome.message["parts"] if part["type"] == "tool-bash"]
    assert [part["input"]["command"] for part in tools] == ["echo one > f", "cat f missing"]
    assert tools[1]["output"]["stdout"] == "one\n"
    report = outcome.message["parts"][-1]["text"]
    assert "`echo one > f` exited with status 0 and wrote nothing." in report
    assert "`cat f missing` exited with status 1:\n\n```\none\ncat: missing: No such file" in report
    assert outcome.usage.input_tokens > outcome.usage.output_tokens > 0


async def test_the_demo_model_explains_itself_without_a_block() -> None:
    outcome = await demo("What can you do? ```python\nprint()\n```")
    text = outcome.message["parts"][-1]["text"]
    assert "demo/shell" in text
    assert "```bash" in text


async def test_the_demo_model_without_a_shell_says_so() -> None:
    outcome = await demo(TWO_BLOCKS, tools=Toolset())
    assert "no bash tool" in outcome.message["parts"][-1]["text"]


async def test_a_stop_ends_the_command_that_the_demo_model_runs(sandbox: Sandbox) -> None:
    stopping, journal = asyncio.Event(), MemoryJournal()

    async def get_running() -> None:
        while (await sandbox.exec(["test", "-e", "begun"])).exit_code != 0:
            await asyncio.sleep(0.01)

    task = asyncio.create_task(
        play(
            DemoLlm(),
            tools=standard_tools(),
            journal=journal,
            turn=a_turn("```bash\ntouch begun; sleep 61.25\n```"),
            stopping=stopping,
            sandbox=sandbox,
        )
    )
    await get_running()
    stopping.set()
    outcome = await task
    check_stream(journal, outcome)
    assert outcome.end is TurnEnd.STOPPED
    listed = await sandbox.exec(
        ["sh", "-c", "ps -eo stat,args | grep '[s]leep 61.25' | grep -v '^Z' | grep -v sh"]
    )
    assert listed.stdout == b""


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("```bash\r\necho a\r\n```\r\n", ["echo a"]),
        ("- one:\n  ```sh\n  if true; then\n    echo b\n  fi\n  ```\n", ["if true; then\n  echo b\nfi"]),
        ("```shell\necho c", ["echo c"]),
        ("```\necho no\n```\n```bash\n\n```\n", []),
    ],
)
async def test_the_demo_model_finds_blocks_as_people_write_them(
    sandbox: Sandbox, text: str, commands: list[str]
) -> None:
    outcome = await demo(text, sandbox)
    tools = [part for part in outcome.message["parts"] if part["type"] == "tool-bash"]
    assert [part["input"]["command"] for part in tools] == commands


async def test_the_demo_model_tells_why_a_command_has_no_status(sandbox: Sandbox) -> None:
    class Gone:
        """A sandbox that goes away."""

        def __getattr__(self, name: str) -> object:
            raise SandboxGoneError("This sandbox is gone.")

    outcome = await demo("```bash\nls\n```", Gone())
    assert (
        outcome.message["parts"][-1]["text"] == "`ls` has no exit status:\n\n```\nThis sandbox is gone.\n```"
    )
