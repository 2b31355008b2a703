"""The catalogue of models, the description of tools, and the prompt."""

import subprocess
import sys

import pytest

from fermata.kit.errors import ModelError
from fermata.testing.turns import a_turn, play
from fermata.turns.llms.catalogue import Catalogue
from fermata.turns.llms.demo import MODEL_ID
from fermata.turns.model import ModelCall, Text, TurnEnd, UserMessage
from fermata.turns.prompt import Surroundings, instructions
from fermata.turns.tools.standard import standard_tools


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


def test_no_library_of_vendors_is_imported_before_one_is_called() -> None:
    code = (
        "import sys, fermata.turns.loop, fermata.turns.llms.catalogue as c, fermata.turns.tools.standard\n"
        "c.Catalogue(openai_api_key='k', anthropic_api_key='k', gateway_api_key='k')\n"
        "assert not {'pydantic_ai', 'openai', 'anthropic', 'httpx2', 'aiohttp'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_prompt_says_where_the_model_works_and_stays_the_same() -> None:
    surroundings = Surroundings(repository="acme/site", branch="fix", extra="Speak Dutch.")
    text = instructions(surroundings)
    assert text == instructions(surroundings)
    for words in ("/workspace", "`acme/site`", "branch `fix`", "Never force-push", "Speak Dutch."):
        assert words in text
    assert "branch" not in instructions(Surroundings())


def test_every_tool_describes_its_input_with_the_names_of_the_wire() -> None:
    described = {tool.name: set(tool.input_schema["properties"]) for tool in standard_tools().descriptions}
    assert described == {
        "bash": {"command", "cwd", "detached"},
        "read": {"filePath", "offset", "limit"},
        "write": {"filePath", "content"},
        "edit": {"filePath", "oldString", "newString", "replaceAll", "startLine"},
        "grep": {"pattern", "path", "glob", "caseSensitive"},
        "glob": {"pattern", "path", "limit"},
        "todo_write": {"todos"},
    }
