"""The whole agent in one screen: call the model, run the tools it asks for, until it asks for none.

A turn may be picked up by another process at any point. Finished model calls and recorded results are
reused. A model call that was cut is made again: what viewers have seen of it stays in the message, closed,
and is not part of the model's history. A tool call with an intent and no result is run again only when
that is harmless; otherwise the model is told that its effect is not known.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from fermata.kit.errors import FermataError, LeaseLostError, ModelError
from fermata.sandboxes.contract import Sandbox
from fermata.turns import chunks as make
from fermata.turns.contract import Journal, Llm, Tool, ToolContext
from fermata.turns.encoder import CallEncoder, plain
from fermata.turns.model import FinishReason, ModelCall, ToolCall, ToolResult, TurnEnd, TurnOutcome
from fermata.turns.progress import Progress, Step, Turn
from fermata.turns.reader import EventReader, StoppedError, run_or_stop
from fermata.turns.toolset import Toolset

log = structlog.get_logger(__name__)

#: Seconds in which the events of a fast model are gathered into one entry of the journal.
GATHER_FOR = 0.02

CUT_CALL = "Not run: the server restarted while this call was written. The answer starts again below."
OUTCOME_UNKNOWN = (
    "The server restarted while this call was running, and the call was not run again. It is not known "
    "whether it took effect wholly, in part, or not at all. Before repeating it, check what it would have "
    "changed: files, the state of git, running processes, or the service that it calls."
)
BROKE = "The turn failed for a reason on the server's side. It has been logged; please try again."


async def run_turn(
    *,
    turn: Turn,
    llm: Llm,
    tools: Toolset,
    journal: Journal,
    get_sandbox: Callable[[], Awaitable[Sandbox]],
    stopping: asyncio.Event,
) -> TurnOutcome:
    """Run a turn, or the rest of it, to its end.

    Set `stopping` to end it early, with the partial answer kept. Cancellation, a lost lease and a failing
    journal end everything that was started, write nothing more, and propagate: the turn is not over, and
    running it again with the same arguments goes on from the journal.
    """
    progress = Progress(turn, journal)
    await progress.load()
    try:
        while not (progress.steps and await _run_tools(progress, tools, get_sandbox, stopping)):
            if len(progress.steps) >= turn.max_steps:
                said = progress.say(
                    f"I stopped after {turn.max_steps} steps, the limit of one turn. Send a message to go on."
                )
                return progress.outcome(TurnEnd.COMPLETED, FinishReason.OTHER, said=(said,))
            await _call_model(progress, llm, tools, stopping)
        return progress.outcome(TurnEnd.COMPLETED, progress.steps[-1].finished.reason)
    except StoppedError:
        return progress.outcome(TurnEnd.STOPPED, FinishReason.STOP)
    except LeaseLostError:
        raise
    except Exception as error:
        if progress.journal_failed:
            raise
        if not isinstance(error, ModelError):
            log.exception("turn_failed", chat_id=turn.chat_id, message_id=turn.message_id)
        sentence = error.message if isinstance(error, ModelError) else BROKE
        return progress.outcome(TurnEnd.FAILED, FinishReason.ERROR, error=sentence)


async def _call_model(progress: Progress, llm: Llm, tools: Toolset, stopping: asyncio.Event) -> None:
    """One model call, streamed and recorded."""
    _check(stopping)
    turn = progress.turn
    progress.emit(*progress.fold.closing_chunks(CUT_CALL))
    await progress.take_steering()
    messages = turn.history + progress.messages()
    call = ModelCall(turn.model_id, turn.instructions, messages, tools.descriptions)
    progress.emit(make.start_step())
    number = progress.fold.steps_started
    encoder = CallEncoder(number, progress.taken)
    async with EventReader(llm, call, stopping) as reader:
        await progress.flush()
        while events := await reader.batch():
            progress.emit(*(chunk for event in events for chunk in encoder.encode(event)))
            if encoder.finished is None:
                await progress.flush()
                await reader.pause(GATHER_FOR)
    if encoder.finished is None:
        _check(stopping)
        raise ModelError("The model's answer ended before it was complete.")
    if encoder.finished.reason is FinishReason.ERROR:
        raise ModelError("The model ended its answer with an error.")
    await progress.record_step(Step(number, encoder.answer(), encoder.finished))


async def _run_tools(
    progress: Progress,
    tools: Toolset,
    get_sandbox: Callable[[], Awaitable[Sandbox]],
    stopping: asyncio.Event,
) -> bool:
    """Answer the calls of the newest recorded step, in order. True when there are none: the turn is over."""
    step = progress.steps[-1]
    for call in step.calls:
        if call.broken is not None or call.call_id in progress.results:
            continue
        _check(stopping)
        context = ToolContext(call.call_id, get_sandbox, progress.turn.environment)
        await progress.record_result(await _answer(progress, tools, call, context, stopping))
    if not progress.answering:
        progress.finish_step()
    return not step.calls


async def _answer(
    progress: Progress, tools: Toolset, call: ToolCall, context: ToolContext, stopping: asyncio.Event
) -> ToolResult:
    known_before = call.call_id in progress.intended
    if not known_before:
        await progress.record_intent(call)
    tool = tools.get(call.tool)
    if tool is None:
        names = ", ".join(tools.names) or "none"
        error = f"There is no tool named {call.tool}. The tools are: {names}."
        return ToolResult(call.call_id, call.tool, None, error)
    if known_before and not tool.idempotent:
        return ToolResult(call.call_id, call.tool, None, OUTCOME_UNKNOWN)
    return await _run(tool, call, context, stopping)


async def _run(tool: Tool, call: ToolCall, context: ToolContext, stopping: asyncio.Event) -> ToolResult:
    try:
        output = plain(await run_or_stop(tool.run(call.input, context), stopping))
    except (StoppedError, LeaseLostError):
        raise
    except FermataError as error:
        return ToolResult(call.call_id, call.tool, None, error.message)
    except Exception:
        log.exception("tool_failed", tool=call.tool, call_id=call.call_id)
        return ToolResult(call.call_id, call.tool, None, "The tool failed for a reason on the server's side.")
    return ToolResult(call.call_id, call.tool, output)


def _check(stopping: asyncio.Event) -> None:
    if stopping.is_set():
        raise StoppedError
