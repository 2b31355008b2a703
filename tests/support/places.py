"""One client, its session and its sandbox, on a server in this process."""

from typing import Any

from fermata.runs import store as runs
from tests.support.processes import Seen, chat, shell
from tests.support.serving import Answer, Client, Served
from tests.support.watched import WatchedProvider


class Place:
    """A server with a watched provider, one client and its session."""

    def __init__(self, served: Served, provider: WatchedProvider, client: Client) -> None:
        self.served = served
        self.provider = provider
        self.client = client
        self.session: dict[str, Any] = {}

    @property
    def sandbox_id(self) -> str:
        return f"session-{self.session['id']}"

    async def open(self, **body: Any) -> dict[str, Any]:
        self.session = await self.client.open(**body)
        return self.session

    async def start(self) -> Answer:
        return await self.client.post(
            "/api/sandbox", {"sessionId": self.session["id"], "repoUrl": self.session["cloneUrl"]}
        )

    async def pause(self) -> Answer:
        return await self.client.post("/api/sandbox/snapshot", {"sessionId": self.session["id"]})

    async def reconnect(self) -> Any:
        return (await self.client.get(f"/api/sandbox/reconnect?sessionId={self.session['id']}")).json

    async def status(self) -> Any:
        return (await self.client.get(f"/api/sandbox/status?sessionId={self.session['id']}")).json

    async def state(self) -> str:
        found = (await self.client.get(f"/api/sessions/{self.session['id']}")).json["session"]
        return str(found["lifecycleState"])

    async def say(self, *commands: str, message_id: str = "m", seen: Seen | None = None) -> Seen:
        return await chat(self.client, self.session, shell(*commands), message_id, seen)

    async def stop(self) -> Answer:
        return await self.client.post(f"/api/chat/{self.session['chat']['id']}/stop")

    async def is_settled(self) -> bool:
        live = await self.served.fermata.database.read(
            lambda found: [
                runs.find_live(found, kind, self.sandbox_id) for kind in ("provision", "hibernate", "destroy")
            ]
        )
        return not any(live)
