"""The example on FastAPI, driven by HTTP, with its worker inside, on Redis and on PostgreSQL."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from httpx import ASGITransport

from taskflow.app.app import default_app
from taskflow.broker.url import connect
from tests.example.projects.hooks import Hooks
from tests.example.projects.tasks import Site
from tests.example.projects.web import create_app
from tests.support.postgres import shared_postgres
from tests.support.servers import shared_redis

TIMEOUT = 30


class Client:
    def __init__(self, http: httpx.AsyncClient, site: Site, hooks: Hooks) -> None:
        self.http = http
        self.site = site
        self.hooks = hooks

    async def start_import(self, *urls: str, after: float = 0) -> str:
        answer = await self.http.post("/imports", json={"urls": urls, "after": after}, headers={"X-Request-Id": "r1"})
        return str(answer.json()["id"])

    async def progress(self, import_id: str) -> Any:
        return (await self.http.get(f"/imports/{import_id}")).json()

    async def ended(self, count: int) -> list[dict[str, Any]]:
        """Return the next calls of webhooks, which tell of jobs that have ended."""
        async with asyncio.timeout(TIMEOUT):
            return [await self.hooks.outbox.get() for _ in range(count)]


@pytest.fixture(params=["redis", "postgres"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    database = ""
    if request.param == "redis":
        url = f"{shared_redis().url}?namespace=projects-{uuid.uuid4().hex}"
    else:
        database = shared_postgres().new_database()
        url = shared_postgres().url(database)
    broker = connect(url)
    site, hooks = Site(broken={"/broken"}), Hooks()
    with default_app().using(broker):
        app = create_app(site, hooks)
        http = httpx.AsyncClient(transport=ASGITransport(app), base_url="http://projects")
        async with app.router.lifespan_context(app), http:
            yield Client(http, site, hooks)
    await broker.close()
    if database:
        shared_postgres().drop_database(database)


async def test_a_burst_of_changes_is_one_sync_of_the_last_revision(client: Client) -> None:
    for revision in ("a", "b", "c"):
        await client.http.post("/projects/7/changes", params={"revision": revision})
    await client.http.post("/projects/8/changes", params={"revision": "z"})
    assert sorted([end["status"] for end in await client.ended(4)]) == ["cancelled", "cancelled", "succeeded", "succeeded"]
    assert client.site.asked == {"/projects/7/c": 1, "/projects/8/z": 1}


async def test_an_import_is_followed_by_its_tag(client: Client) -> None:
    import_id = await client.start_import("/one", "/two", "/broken")
    other = await client.start_import("/three", after=3600)
    assert {(end["job"], *end["tags"]) for end in await client.ended(3)} == {("projects.fetch_page", f"import:{import_id}")}
    assert await client.progress(import_id) == {"succeeded": 2, "failed": 1}
    assert await client.progress(other) == {"scheduled": 1}


async def test_an_error_is_reported_with_its_arguments_and_the_request(client: Client) -> None:
    """Once for each run: the second one is final."""
    await client.start_import("/broken")
    await client.ended(1)
    reports = client.hooks.reports
    assert [(report.job, report.arguments, report.request) for report in reports] == [("projects.fetch_page", {"url": "/broken"}, "r1")] * 2
    assert [report.is_final for report in reports] == [False, True]
    assert all(isinstance(report.error, ConnectionError) for report in reports)


async def test_all_jobs_of_an_import_are_cancelled_together(client: Client) -> None:
    """Others are not; and the end of each is told, though none has run."""
    wanted = await client.start_import("/one", "/two", after=3600)
    other = await client.start_import("/three", after=3600)
    assert (await client.http.delete(f"/imports/{wanted}")).status_code == 204
    assert await client.progress(wanted) == {"cancelled": 2}
    assert await client.progress(other) == {"scheduled": 1}
    assert [end["status"] for end in await client.ended(2)] == ["cancelled"] * 2
    assert not client.site.asked
