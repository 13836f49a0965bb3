"""`/api/v1`: the JSON that openapi.json describes, under the same `authorize` as the pages."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from taskflow import Cron, schedules
from taskflow.app.app import default_app
from taskflow.dashboard import Access
from taskflow.dashboard.api import RESOURCES, openapi
from taskflow.model.clock import ManualClock
from taskflow.model.codec import Limits, encode_by_name
from taskflow.model.ids import id_text
from taskflow.model.measures import Measure, pack_measures
from tests.dashboard.hostile import TEXTS, HostileStore
from tests.dashboard.site import PREFIX, Site
from tests.support.verdicts import failed
from tests.support.world import World
from tests.unit.app.jobs import nothing

DESCRIPTION = openapi(f"{PREFIX}/api/v1")
NOBODY = id_text(bytes(16))


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=pytest.fail)


async def get(site: Site, path: str, code: int = 200, **query: str) -> Any:
    """Return the answer, which must match the description."""
    answer = await site.client.get(f"{PREFIX}/api/v1{path}", params=query)
    assert (answer.status_code, answer.headers["content-type"]) == (code, "application/json")
    document = strict(answer.text)
    kind = "/jobs/{id}" if path.startswith("/jobs/") else path
    if code == 200 and kind in DESCRIPTION["paths"]:
        assert set(query) <= set(RESOURCES[kind][2])
        schema = DESCRIPTION["paths"][kind]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        Draft202012Validator({**schema, "components": DESCRIPTION["components"]}).validate(document)
    return document


async def test_the_api_has_the_content_of_the_pages(world: World, site: Site) -> None:
    session = await world.a_session("web-1:7", queues=("mail",))
    payload = encode_by_name({"to": "ada", "password": "xyzzy"}, job="work", limits=Limits())
    lease = await world.running(session, queue="mail", payload=payload)
    await world.settle(failed(lease))
    await schedules.put("nightly", nothing.bind(), Cron("0 3 * * *"))
    await site.post("/queues/other", action="pause", reason="repair")
    job_id = id_text(lease.envelope.id)
    assert [(queue["name"], queue["counts"]["failed"]) for queue in await get(site, "/queues")] == [("mail", 1), ("other", 0)]
    assert [worker["name"] for worker in await get(site, "/workers")] == ["web-1:7"]
    assert [job["id"] for job in (await get(site, "/jobs", status="failed", queue="mail"))["jobs"]] == [job_id]
    assert [group["sample"] for group in await get(site, "/failures", queue="mail")] == [job_id]
    assert [each["name"] for each in await get(site, "/schedules")] == ["nightly"]
    assert [each["action"]["reason"] for each in await get(site, "/audit")] == ["repair"]
    found = await get(site, f"/jobs/{job_id}")
    assert found["arguments"] == {"to": "ada", "password": "[hidden]"}
    assert found["reasons"][0]["cure"].startswith("when the cause is fixed")
    async with Site(lambda request: Access("eve")) as other:
        assert (await get(other, f"/jobs/{job_id}"))["arguments"] is None


async def test_jobs_come_in_pages(memory: World, site: Site) -> None:
    await memory.enqueue(*[memory.an_envelope() for _ in range(5)])
    first = await get(site, "/jobs", limit="3")
    last = await get(site, "/jobs", limit="3", cursor=first["cursor"])
    assert (len(first["jobs"]), len(last["jobs"]), last["cursor"]) == (3, 2, None)


async def test_it_has_the_history(site: Site, memory: World) -> None:
    async with World(type(memory.harness), clock=ManualClock(datetime.now(UTC))) as world:
        with default_app().using(world.broker):
            measure = Measure(runs={"succeeded": 3}, waits={10: 3}, times={20: 3}, waited=1, ran=1)
            await world.broker.admin.record_measures(bytes(16), pack_measures({("mail", "letter"): measure}))
            [runs] = await get(site, "/history", hours="2")
    assert (runs["queue"], runs["runs"], runs["waits"]) == ("mail", {"succeeded": 3}, [0.001024, 0.001024])


async def test_errors_are_json(memory: World, site: Site) -> None:
    assert await get(site, f"/jobs/{NOBODY}", 404) == {"error": f"Job {NOBODY} is unknown, or no longer kept."}
    assert "expected one of" in (await get(site, "/jobs", 400, status="odd"))["error"]
    assert await get(site, "/nothing", 404) == {"error": "There is no such page."}
    async with Site(authorize=None) as closed:
        for path in (*RESOURCES, "/openapi.json"):
            assert "closed" in (await get(closed, path.replace("{id}", NOBODY), 403))["error"]


async def test_its_description_is_served_for_the_place_where_it_is_mounted(memory: World, site: Site) -> None:
    assert await get(site, "/openapi.json") == strict(json.dumps(DESCRIPTION, default=str))


@pytest.mark.parametrize("form", TEXTS)
async def test_unusual_text_and_numbers_make_valid_json(site: Site, form: str) -> None:
    store = HostileStore(TEXTS[form])
    with default_app().using(store):  # type: ignore[arg-type]  # it has what the dashboard asks for  # pyright: ignore[reportArgumentType]
        for path in ("/queues", "/workers", "/jobs", f"/jobs/{store.records[2].id.hex()}", "/failures", "/schedules", "/history", "/audit"):
            answer = await site.client.get(f"{PREFIX}/api/v1{path}")
            assert answer.status_code == 200
            strict(answer.text)
            assert answer.text.isascii()


async def test_the_bytes_of_unreadable_fields_stay_hidden(site: Site) -> None:
    """They may contain arguments or secrets."""
    store = HostileStore("mail")
    with default_app().using(store):  # type: ignore[arg-type]  # it has what the dashboard asks for  # pyright: ignore[reportArgumentType]
        found = (await site.client.get(f"{PREFIX}/api/v1/jobs")).json()["jobs"]
    assert found[0]["unreadable"] == [
        {"column": "mail", "problem": "mail"},
        {"column": "headers", "problem": "TypeError: expected bytes"},
    ]
