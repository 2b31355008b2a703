"""A local HTTP server that answers as OpenAI's and Anthropic's APIs do, for tests of the door to them."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from aiohttp import web

#: The key that the server accepts, for tests that look for it where it must not be.
KEY = "sk-test-0123456789abcdef"


class VendorServer:
    """Each request gets the next answer: a list of SSE events, or `(status, headers, body)` for an error.

    An `asyncio.Event` among the events is waited for; an exception drops the connection.
    """

    def __init__(self, *answers: Sequence[Any] | tuple[int, dict[str, str], Any]) -> None:
        self._answers = list(answers)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        #: Set when a client has gone away in the middle of an answer.
        self.dropped = asyncio.Event()
        self.url = ""

    async def __aenter__(self) -> "VendorServer":
        app = web.Application()
        app.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append({"path": request.path, **await request.json()})
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        answer = self._answers.pop(0)
        if isinstance(answer, tuple):
            status, headers, body = answer
            return web.json_response(body, status=status, headers=headers)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            for event in answer:
                if isinstance(event, asyncio.Event):
                    await event.wait()
                elif isinstance(event, Exception):
                    assert request.transport is not None
                    request.transport.close()
                    return response
                else:
                    await response.write(_frame(event))
        except (asyncio.CancelledError, ConnectionResetError):
            self.dropped.set()
            raise
        await response.write_eof()
        return response


def _frame(event: Any) -> bytes:
    if isinstance(event, str):
        return f"data: {event}\n\n".encode()
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event)}\n\n".encode()


def openai_chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-test",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def openai_usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return {**openai_chunk({}), "choices": [], "usage": usage}


def anthropic_answer(*blocks: tuple[dict[str, Any], list[dict[str, Any]]], stop: str) -> list[Any]:
    """The events of an answer of content blocks, each with its deltas."""
    usage = {
        "input_tokens": 20,
        "output_tokens": 1,
        "cache_read_input_tokens": 5,
        "cache_creation_input_tokens": 0,
    }
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-test",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    events: list[Any] = [{"type": "message_start", "message": message}]
    for index, (block, deltas) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": stop, "stop_sequence": None}
    events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 7}})
    return [*events, {"type": "message_stop"}]
