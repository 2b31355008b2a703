"""The OpenAPI document: true to the server that serves it, and to the contract's words."""

import asyncio
import sys
from pathlib import Path

from tests.support.serving import Served


async def test_the_document_speaks_the_contracts_words(quick_served: Served) -> None:
    answer = await quick_served.nobody().get("/openapi.json")
    document = answer.json
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    assert schemas["SessionWire"]["properties"]["lifecycleState"]["anyOf"][0]["enum"] == [
        "provisioning",
        "active",
        "hibernating",
        "hibernated",
        "restoring",
        "archived",
        "failed",
    ]
    assert set(document["components"]["securitySchemes"]) == {"ApiKeyAuth", "BearerAuth"}
    create = document["paths"]["/api/sessions"]["post"]
    assert create["security"] == [{"ApiKeyAuth": []}, {"BearerAuth": []}]
    assert not create["requestBody"].get("required")
    assert {"200", "400", "401", "403", "409", "413", "500"} <= set(create["responses"])
    assert document["paths"]["/healthz"]["get"]["security"] == []
    assert "deliberate widening" in document["info"]["description"]


async def test_the_page_of_the_documentation_needs_nothing_from_elsewhere(quick_served: Served) -> None:
    answer = await quick_served.nobody().get("/docs")
    page = answer.raw.decode()
    assert answer.headers["content-type"].startswith("text/html")
    assert "<script" not in page
    assert "src=" not in page
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for path in ("/api/sessions/{sessionId}", "/api/chat", "/api/sandbox"):
        assert path in page


#: What a JSON schema cannot say, by operation and check of schemathesis.
EXEMPT = {
    # Whatever cannot be parsed counts as an empty body; clients rely on it.
    ("POST /api/sessions/{sessionId}/chats", "negative_data_rejection"),
    # Only the last message is looked at, and it must be a user's with something in it.
    ("POST /api/chat", "positive_data_acceptance"),
    ("POST /api/chat/runs", "positive_data_acceptance"),
    # A cursor is opaque: only what the server wrote is one.
    ("GET /api/sessions", "positive_data_acceptance"),
    # 400 by the state of the session: no sandbox yet, the only chat.
    ("POST /api/sandbox/snapshot", "positive_data_acceptance"),
    ("DELETE /api/sessions/{sessionId}/chats/{chatId}", "positive_data_acceptance"),
    # Only a user's message can be deleted; a message that waits must say something.
    (
        "DELETE /api/sessions/{sessionId}/chats/{chatId}/messages/{messageId}",
        "positive_data_acceptance",
    ),
    ("PATCH /api/chat/{chatId}/queue/{messageId}", "positive_data_acceptance"),
}


async def test_schemathesis_finds_no_answer_that_the_document_does_not_promise(
    quick_served: Served, tmp_path: Path
) -> None:
    """All checks (they are on unless turned off), from invented bodies to sequences of calls. NUL characters
    are left to `test_door.py`: every schema would have to forbid them."""
    ada = await quick_served.client()
    config = tmp_path / "schemathesis.toml"
    config.write_text(
        # 412: the header If-Match, which any number is good for, names another version than there is.
        "[checks.positive_data_acceptance]\n"
        'expected-statuses = ["2xx", "401", "403", "404", "409", "412", "429"]\n'
        + "".join(
            f'[[operations]]\ninclude-name = "{name}"\nchecks.{check}.enabled = false\n'
            for name, check in sorted(EXEMPT)
        )
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run",
        f"{quick_served.url}/openapi.json", "--header", f"x-api-key: {ada.key}",
        # Its answer has no end; `test_events.py` reads it.
        "--exclude-path", "/api/events",
        "--max-examples", "6", "--seed", "1", "--generation-database", "none",
        "--generation-allow-x00", "false", "--warnings", "off", "--no-color",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert b"Stateful" in output
