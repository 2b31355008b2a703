"""The demo model in whole turns with real commands, the catalogue, and the prompt."""

import asyncio
import subprocess
import sys

import pytest

from fermata.kit.errors import ModelError
from fermata.sandboxes.contract import Sandbox
from fermata.testing.memory_journal import MemoryJournal
from fermata.testing.turns import a_turn, check_stream, play
from fermata.turns.llms.catalogue import Catalogue
from fermata.turns.llms.demo import MODEL_ID, DemoLlm
from fermata.turns.model import ModelCall, Text, TurnEnd, TurnOutcome, UserMessage
from fermata.turns.prompt import Surroundings, instructions
from fermata.turns.tools.standard import standard_tools
from fermata.turns.toolset import Toolset

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


def test_without_keys_there_is_the_demo_model() -> None:
    catalogue = Catalogue()
    assert catalogue.default_model_id == MODEL_ID
    assert [model["id"] for model in catalogue.list_models()["models"]] == [MODEL_ID]
    assert catalogue.list_models()["models"][0]["modelType"] == "language"


def test_the_catalogue_lists_the_default_first_and_what_the_settings_name() -> None:
    catalogue = Catalogue(
        default_model="openai/mine",
        openai_base_url="http://localhost:1/v1",
        models=("openai/other", MODEL_ID),
    )
    assert [model["id"] for model in catalogue.list_models()["models"]] == [
        "openai/mine",
        "openai/other",
        MODEL_ID,
    ]
    keyed = Catalogue(anthropic_api_key="k")
    assert keyed.default_model_id.startswith("anthropic/")


@pytest.mark.parametrize("model_id", ["anthropic/claude", "nothing", "demo/other", "openai/", ""])
async def test_a_model_that_is_not_configured_is_an_error_that_lists_what_is(model_id: str) -> None:
    catalogue = Catalogue(openai_base_url="http://localhost:1/v1")
    with pytest.raises(ModelError, match=r"It has: .*demo/shell"):
        catalogue.resolve(model_id)
    outcome = await play(catalogue, turn=a_turn(model_id=model_id))
    assert outcome.end is TurnEnd.FAILED
    assert "demo/shell" in str(outcome.error)


async def test_the_catalogue_answers_for_the_demo_model() -> None:
    catalogue = Catalogue()
    call = ModelCall(MODEL_ID, "", (UserMessage((Text("hello"),)),), ())
    async with catalogue.stream(call) as events:
        assert [event async for event in events]
    await catalogue.close()


def test_no_vendors_library_is_imported_before_a_vendor_is_called() -> None:
    code = (
        "import sys, fermata.turns.loop, fermata.turns.llms.catalogue as c, fermata.turns.tools.standard\n"
        "c.Catalogue(openai_api_key='k', anthropic_api_key='k', gateway_api_key='k')\n"
        "assert not {'pydantic_ai', 'openai', 'anthropic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_prompt_says_where_the_model_works_and_stays_the_same() -> None:
    surroundings = Surroundings(repository="acme/site", branch="fix", extra="Speak Dutch.")
    text = instructions(surroundings)
    assert text == instructions(surroundings)
    for words in ("/workspace", "`acme/site`", "branch `fix`", "Never force-push", "Speak Dutch."):
        assert words in text
    assert "branch" not in instructions(Surroundings())
