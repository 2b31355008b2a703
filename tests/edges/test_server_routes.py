"""/healthz and /api/ai/models."""

from tests.support.serving import Served


async def test_health_tells_of_database_sandboxes_and_models(served: Served) -> None:
    answer = await served.nobody().get("/healthz")
    assert answer.status == 200
    body = answer.json
    assert body["status"] == "ok"
    assert body["database"] == served.fermata.database.dialect_name
    assert body["sandboxes"]["provider"] == "memory"
    assert body["sandboxes"]["usable"] is True
    assert body["models"]


async def test_a_server_that_is_ending_sends_balancers_elsewhere(quick_served: Served) -> None:
    ada = await quick_served.client()
    quick_served.app.draining = True
    answer = await quick_served.nobody().get("/healthz")
    assert (answer.status, answer.json["status"]) == (503, "draining")
    assert int(answer.headers["retry-after"]) > 0
    assert (await ada.get("/api/sessions")).status == 200


async def test_models_are_listed_for_everybody(quick_served: Served) -> None:
    answer = await quick_served.nobody().get("/api/ai/models")
    assert answer.status == 200
    assert quick_served.fermata.catalogue.default_model_id in [model["id"] for model in answer.json["models"]]
