"""The Python client of Fermata's HTTP API, for programs and for the command line.

    async with Client("http://127.0.0.1:8000", key) as client:
        opened = await client.create_session(title="Fix the build")
        async for chunk in client.chat(opened["session"]["id"], opened["chat"]["id"], "Run the tests"):
            print(chunk)

A stream that is cut is rejoined at the chunk where it was cut, as long as the server comes back.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import aiohttp

#: Attempts in a row that bring no new chunk before a stream is given up.
REJOIN_ATTEMPTS = 20


class ApiError(Exception):
    """The server refused. `status` is the HTTP status, the text is the server's sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Client:
    def __init__(self, url: str, api_key: str) -> None:
        self._url = url.rstrip("/")
        self._headers = {"x-api-key": api_key}
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=600)
        self._http = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._http is not None
        await self._http.close()

    async def create_session(self, **fields: Any) -> dict[str, Any]:
        """`{"session": ..., "chat": ...}`; the fields are those of POST /api/sessions."""
        return await self._json("POST", "/api/sessions", fields)

    async def get_session(self, session_id: str) -> dict[str, Any]:
        answer = await self._json("GET", f"/api/sessions/{session_id}")
        session: dict[str, Any] = answer["session"]
        return session

    async def delete_session(self, session_id: str) -> None:
        await self._json("DELETE", f"/api/sessions/{session_id}")

    async def start_sandbox(self, session_id: str, repo_url: str) -> dict[str, Any]:
        """Create or wake the session's sandbox; returns when it is ready."""
        return await self._json("POST", "/api/sandbox", {"sessionId": session_id, "repoUrl": repo_url})

    async def pause_sandbox(self, session_id: str) -> dict[str, Any]:
        return await self._json("POST", "/api/sandbox/snapshot", {"sessionId": session_id})

    async def get_messages(self, session_id: str, chat_id: str) -> list[dict[str, Any]]:
        answer = await self._json("GET", f"/api/sessions/{session_id}/chats/{chat_id}")
        messages: list[dict[str, Any]] = answer["messages"]
        return messages

    async def stop(self, chat_id: str) -> bool:
        return bool((await self._json("POST", f"/api/chat/{chat_id}/stop"))["stopped"])

    async def chat(self, session_id: str, chat_id: str, text: str) -> AsyncIterator[dict[str, Any]]:
        """Send a message and yield the chunks of its answer, once each, over cut connections too."""
        message = {"id": str(uuid.uuid4()), "role": "user", "parts": [{"type": "text", "text": text}]}
        body = {"sessionId": session_id, "chatId": chat_id, "messages": [message]}
        seen, run_id, idle = 0, "", 0
        while True:
            before = seen
            try:
                # The message's id makes sending it again harmless: the server rejoins its turn.
                async with self._ask(body, run_id, seen) as response:
                    run_id = response.headers["x-workflow-run-id"]
                    async for data in _events(response):
                        if data == "[DONE]":
                            return
                        seen += 1
                        yield json.loads(data)
            except aiohttp.ClientError:
                if idle == REJOIN_ATTEMPTS:
                    raise
            idle = idle + 1 if seen == before else 0
            if idle > REJOIN_ATTEMPTS:
                raise ApiError(502, "The stream was cut and could not be rejoined.")
            await asyncio.sleep(min(0.05 * 2**idle, 2))

    def _ask(self, body: dict[str, Any], run_id: str, seen: int) -> "_Checked":
        if run_id:
            return self._request("GET", f"/api/chat/{run_id}/stream?startIndex={seen}")
        return self._request("POST", "/api/chat", body)

    def _request(self, method: str, path: str, body: Any = None) -> "_Checked":
        assert self._http is not None, "use the client in `async with`"
        return _Checked(self._http.request(method, self._url + path, json=body))

    async def _json(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        async with self._request(method, path, body) as response:
            answer: dict[str, Any] = await response.json()
            return answer


class _Checked:
    """A response whose error status is raised as `ApiError`."""

    def __init__(self, request: Any) -> None:
        self._request = request

    async def __aenter__(self) -> aiohttp.ClientResponse:
        response: aiohttp.ClientResponse = await self._request.__aenter__()
        if response.status < 400:
            return response
        text = await response.text()
        await self._request.__aexit__(None, None, None)
        try:
            sentence = json.loads(text)["error"]
        except (ValueError, KeyError, TypeError):
            sentence = f"The server answered {response.status}."
        raise ApiError(response.status, sentence)

    async def __aexit__(self, *error: Any) -> None:
        await self._request.__aexit__(*error)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """The `data` of each server-sent event. A cut connection ends it without `[DONE]`."""
    lines: list[str] = []
    buffer = b""
    async for piece in response.content.iter_any():
        *whole, buffer = (buffer + piece).split(b"\n")
        for raw in whole:
            line = raw.decode()
            if line.startswith("data: "):
                lines.append(line[6:])
            elif not line and lines:
                yield "\n".join(lines)
                lines = []
