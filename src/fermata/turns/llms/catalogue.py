"""Which models this server has, and the door to each.

A model id is `vendor/model`. `openai/...` and `anthropic/...` go to the vendor itself when it is configured;
every other id, and those too when it is not, goes to the AI Gateway, which knows the models of all vendors
by such ids. `demo/shell` is always there.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from typing import Protocol as TypingProtocol

from fermata.kit.errors import ModelError
from fermata.turns.contract import Llm
from fermata.turns.llms import demo
from fermata.turns.llms.vendor import Protocol, Vendor
from fermata.turns.llms.vendors import VendorLlm
from fermata.turns.model import ModelCall, ModelEvent

OPENAI_URL = "https://api.openai.com/v1"
ANTHROPIC_URL = "https://api.anthropic.com"
GATEWAY_URL = "https://ai-gateway.vercel.sh/v1"

#: Listed, and the first of them the default, when the vendor has a key and the settings name no models.
_WELL_KNOWN = {
    "openai": ("openai/gpt-5.4", "openai/gpt-5.4-mini"),
    "anthropic": ("anthropic/claude-sonnet-5-5", "anthropic/claude-haiku-5-5"),
    "gateway": ("openai/gpt-5.4", "anthropic/claude-haiku-4.5", "moonshotai/kimi-k3"),
}


class ClosingLlm(Llm, TypingProtocol):
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Door:
    llm: ClosingLlm
    #: Prefix that is taken off before the vendor is asked; empty when the vendor knows whole ids.
    prefix: str


class Catalogue:
    """Itself an `Llm`: a call goes to the model that it names, and an unknown one is a `ModelError`."""

    def __init__(
        self,
        *,
        default_model: str | None = None,
        openai_api_key: str | None = None,
        openai_base_url: str | None = None,
        anthropic_api_key: str | None = None,
        anthropic_base_url: str | None = None,
        gateway_api_key: str | None = None,
        gateway_url: str = GATEWAY_URL,
        models: Sequence[str] = (),
    ) -> None:
        """A vendor is configured when it has a key; an OpenAI-compatible server at `openai_base_url` may do
        without one. `models` are further ids to list; an unlisted id of a configured vendor works too."""
        self._demo = demo.DemoLlm()
        self._doors: dict[str, _Door] = {}
        if openai_api_key or openai_base_url:
            title = "OpenAI" if openai_base_url is None else "The model server"
            vendor = Vendor(title, Protocol.OPENAI, openai_api_key, openai_base_url or OPENAI_URL)
            self._doors["openai"] = _Door(VendorLlm(vendor), "openai/")
        if anthropic_api_key:
            vendor = Vendor(
                "Anthropic", Protocol.ANTHROPIC, anthropic_api_key, anthropic_base_url or ANTHROPIC_URL
            )
            self._doors["anthropic"] = _Door(VendorLlm(vendor), "anthropic/")
        if gateway_api_key:
            vendor = Vendor("The AI Gateway", Protocol.GATEWAY, gateway_api_key, gateway_url)
            self._doors["gateway"] = _Door(VendorLlm(vendor), "")
        own_server = openai_base_url is not None
        known = [
            model
            for name in self._doors
            if not (name == "openai" and own_server)
            for model in _WELL_KNOWN[name]
        ]
        listed = [*models, *known, demo.MODEL_ID]
        self.default_model_id = default_model or next(iter(listed))
        self._listed = tuple(dict.fromkeys([self.default_model_id, *listed]))

    def list_models(self) -> dict[str, list[dict[str, Any]]]:
        """The answer of `GET /api/ai/models`, the default model first."""
        return {"models": [_model_object(model) for model in self._listed]}

    @property
    def summary(self) -> str:
        """One line for the start-up text and /healthz."""
        if not self._doors:
            return f"{self.default_model_id} (offline; no vendor has a key)"
        return f"{self.default_model_id} by default; configured: {', '.join(self._doors)}"

    def resolve(self, model_id: str) -> Llm:
        """The door to a model; `ModelError` when this server has none."""
        self._door(model_id)
        return self

    @asynccontextmanager
    async def stream(self, call: ModelCall) -> AsyncIterator[AsyncIterator[ModelEvent]]:
        door = self._door(call.model_id)
        named = replace(call, model_id=call.model_id.removeprefix(door.prefix))
        async with door.llm.stream(named) as events:
            yield events

    async def close(self) -> None:
        for door in self._doors.values():
            await door.llm.close()

    def _door(self, model_id: str) -> _Door:
        if model_id == demo.MODEL_ID:
            return _Door(self._demo, "")
        vendor, slash, name = model_id.partition("/")
        if slash and name and vendor != "demo":
            door = (None if vendor == "gateway" else self._doors.get(vendor)) or self._doors.get("gateway")
            if door is not None:
                return door
        raise ModelError(
            f"This server has no model {model_id}. It has: {', '.join(self._listed)}. "
            "Others can be used once a key for their vendor is configured."
        )


def _model_object(model_id: str) -> dict[str, Any]:
    """A model as the AI Gateway describes one."""
    vendor, _, name = model_id.partition("/")
    described = {
        "id": model_id,
        "name": name or model_id,
        "modelType": "language",
        "specification": {"specificationVersion": "v2", "provider": vendor, "modelId": model_id},
    }
    if model_id == demo.MODEL_ID:
        described["name"] = "Demo shell"
        described["description"] = "Runs the bash blocks of a message. Needs no key and no network."
    return described
