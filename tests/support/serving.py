"""A whole server for tests: the real object graph, a real port, a real client. Sandboxes live in memory."""

import asyncio
import io
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import uvicorn
from yarl import URL

from fermata.accounts.model import Account
from fermata.edges.http.app import App, create_app
from fermata.kit.settings import load_settings
from fermata.sandboxes.contract import SandboxProvider
from fermata.sandboxes.providers.memory import MemoryProvider
from fermata.turns.llms.catalogue import Catalogue
from fermata.wiring import Fermata, open_fermata


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.raw)

    @property
    def error(self) -> str:
        """The sentence of an error, whose envelope is checked on the way."""
        body = self.json
        assert body["status"] == "error"
        assert self.headers["access-control-allow-origin"] == "*"
        return str(body["error"])


@dataclass
class Client:
    """Speaks HTTP as one account; without a key, as nobody."""

    url: str
    http: aiohttp.ClientSession
    key: str | None = None
    account: Account | None = None

    async def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """`body` is sent as JSON, and bytes as they are."""
        sent = {"x-api-key": self.key} if self.key else {}
        data = None if body is None else io.BytesIO(body if isinstance(body, bytes) else orjson.dumps(body))
        async with self.http.request(
            method, URL(self.url + path, encoded=True), data=data, headers={**sent, **(headers or {})}
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.request("GET", path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.request("POST", path, body, **options)

    async def patch(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.request("PATCH", path, body, **options)

    async def delete(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.request("DELETE", path, body, **options)

    async def open(self, **body: Any) -> dict[str, Any]:
        """A new session, and its chat under `chat`."""
        answer = await self.post("/api/sessions", body)
        assert answer.status == 200, answer.raw
        return {**answer.json["session"], "chat": answer.json["chat"]}


@dataclass
class Served:
    fermata: Fermata
    app: App
    url: str
    http: aiohttp.ClientSession

    async def client(self, name: str = "Ada Lovelace") -> Client:
        """A new account with a key of its own."""
        account = await self.fermata.accounts.create_account(name)
        key = await self.fermata.accounts.create_key(account.id, "test")
        return Client(self.url, self.http, str(key), account)

    def nobody(self) -> Client:
        return Client(self.url, self.http)


@asynccontextmanager
async def serve(
    data_dir: Path,
    *,
    database_url: str | None = None,
    catalogue: Catalogue | None = None,
    around_provider: Callable[[SandboxProvider], SandboxProvider] | None = None,
    **settings: str,
) -> AsyncIterator[Served]:
    """A server on a free port. Sandboxes start only when asked for, unless `orchestrator` says otherwise."""
    environment = {"FERMATA_DATA_DIR": str(data_dir), "FERMATA_ORCHESTRATOR": "false"}
    environment |= {f"FERMATA_{name.upper()}": value for name, value in settings.items()}
    if database_url is not None:
        environment["FERMATA_DATABASE_URL"] = database_url
    provider = MemoryProvider(data_dir / "sandboxes")
    async with open_fermata(
        load_settings(environment), provider=provider, catalogue=catalogue, around_provider=around_provider
    ) as fermata:
        app = create_app(fermata)
        async with listen(app) as url, aiohttp.ClientSession() as http:
            yield Served(fermata, app, url, http)


@asynccontextmanager
async def listen(app: App) -> AsyncIterator[str]:
    """Serve the application in this event loop until the block ends."""
    # Named TCP, because asyncio turns Nagle's delay off only for sockets that say so.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        assert not task.done(), "the server ended before it had begun"
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
