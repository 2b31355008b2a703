"""`demo/shell`: a stand-in for a model that runs without a network and without a key.

It runs every fenced bash block of the user's last message through the `bash` tool, one call a block, and
reports each exit status and output. Everything else of the product is real around it.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import chain
from textwrap import dedent

from fermata.turns.model import (
    FinishReason,
    Message,
    ModelCall,
    ModelEvent,
    ModelFinished,
    Text,
    TextAdded,
    TextEnded,
    TextStarted,
    ToolCall,
    ToolInputAdded,
    ToolInputEnded,
    ToolInputStarted,
    ToolMessage,
    ToolResult,
    Usage,
    UserMessage,
)

MODEL_ID = "demo/shell"

#: At most this much of an output is repeated in the report.
OUTPUT_LIMIT = 4_000

_BLOCK = re.compile(
    r"^[ \t]*```(?:bash|sh|shell)[ \t]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)

_EXPLANATION = (
    "I am demo/shell, a built-in stand-in for a language model. I need no key and no network, and I do not "
    "understand prose. Send me a message with fenced bash blocks, for example\n\n"
    "```bash\npwd && ls -la\n```\n\n"
    "and I will run each block in this session's sandbox and report its exit status and output. "
    "Choose another model for this chat to work with a real one."
)


class DemoLlm:
    @asynccontextmanager
    async def stream(self, call: ModelCall) -> AsyncIterator[AsyncIterator[ModelEvent]]:
        yield _events(call)

    async def close(self) -> None:
        """Nothing is held."""


async def _events(call: ModelCall) -> AsyncIterator[ModelEvent]:
    asked, results = _since_user(call.messages)
    blocks = [dedent(block) for block in _BLOCK.findall(asked.replace("\r\n", "\n")) if block.strip()]
    usage_in = sum(_words(message) for message in call.messages) + len(call.instructions.split())
    if not blocks:
        text, command = _EXPLANATION, None
    elif not any(tool.name == "bash" for tool in call.tools):
        text, command = "I can only run commands, and this turn has no bash tool.", None
    elif len(results) < len(blocks):
        command = blocks[len(results)].strip("\n")
        text = "" if results else f"Running {len(blocks)} command{'s' if len(blocks) > 1 else ''}."
    else:
        text, command = _report(blocks, results), None
    asked_for = () if command is None else _call(f"demo_{len(results)}", command)
    for event in chain(_text(text), asked_for):
        # As with a network, other tasks run between two events.
        await asyncio.sleep(0)
        yield event
    usage_out = len(text.split()) + len((command or "").split())
    reason = FinishReason.STOP if command is None else FinishReason.TOOL_CALLS
    yield ModelFinished(reason, reason.value, Usage(usage_in, usage_out))


def _since_user(messages: tuple[Message, ...]) -> tuple[str, list[ToolResult]]:
    """The text of the newest user message, and the results after it."""
    asked = ""
    results: list[ToolResult] = []
    for message in messages:
        if isinstance(message, UserMessage):
            asked = "\n".join(part.text for part in message.parts if isinstance(part, Text))
            results = []
        elif isinstance(message, ToolMessage):
            results += message.results
    return asked, results


def _text(text: str) -> Iterator[ModelEvent]:
    if text:
        yield TextStarted("0")
        for line in text.splitlines(keepends=True):
            yield TextAdded("0", line)
        yield TextEnded("0")


def _call(call_id: str, command: str) -> Iterator[ModelEvent]:
    yield ToolInputStarted(call_id, "bash")
    yield ToolInputAdded(call_id, json.dumps({"command": command}, ensure_ascii=False))
    yield ToolInputEnded(ToolCall(call_id, "bash", {"command": command}))


def _report(blocks: list[str], results: list[ToolResult]) -> str:
    return "\n\n".join(_one(block, result) for block, result in zip(blocks, results, strict=False))


def _one(block: str, result: ToolResult) -> str:
    first = block.strip().splitlines()[0]
    if result.error is not None or not isinstance(result.output, dict):
        return f"`{first}` has no result: {result.error or result.output}"
    status = result.output.get("exitCode")
    head = f"`{first}` " + ("has no exit status" if status is None else f"exited with status {status}")
    output = "\n".join(
        str(text).rstrip("\n") for name in ("stdout", "stderr", "error") if (text := result.output.get(name))
    )
    if not output:
        return f"{head} and wrote nothing."
    if len(output) > OUTPUT_LIMIT:
        output = output[: OUTPUT_LIMIT // 2] + "\n…\n" + output[-OUTPUT_LIMIT // 2 :]
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", output)), default=0))
    return f"{head}:\n\n{fence}\n{output}\n{fence}"


def _words(message: Message) -> int:
    """Words stand in for tokens: this model reads no more than words."""
    match message:
        case UserMessage(parts):
            return sum(len(part.text.split()) for part in parts if isinstance(part, Text))
        case ToolMessage(results):
            return sum(len(str(result.output or result.error).split()) for result in results)
        case _:
            return sum(len(part.text.split()) for part in message.parts if isinstance(part, Text))
