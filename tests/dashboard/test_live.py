"""Live pages: the store is checked once a second for all watchers, and not at all while no one watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from taskflow import Cron, configure, operate, schedules
from taskflow.dashboard import live
from taskflow.dashboard.live import Sampler
from taskflow.model.errors import BrokerUnavailable
from tests.dashboard.site import ADA, PREFIX, Page, Site
from tests.support.world import World
from tests.unit.app.jobs import nothing

FRAGMENT = {"X-Taskflow-Fragment": "1"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "INTERVAL", 0.05)


def count_looks(memory: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the name of each operation that reads the store's state."""
    looks, kind = list[str](), type(memory.broker.admin)

    def counted(name: str, asked: Any) -> Any:
        async def ask(self: Any, *arguments: Any, **options: Any) -> Any:
            looks.append(name)
            return await asked(self, *arguments, **options)

        return ask

    for name in ("queues", "workers", "metrics", "page"):
        monkeypatch.setattr(kind, name, counted(name, getattr(kind, name)))
    return looks


async def next_event(stream: AsyncIterator[str]) -> dict[str, str]:
    async with asyncio.timeout(20):
        text = await anext(stream)
    return dict(line.split(": ", 1) for line in text.strip().split("\n"))


async def test_a_watcher_hears_of_changes(world: World) -> None:
    stream = Sampler().changes("")
    assert await next_event(stream) == {"retry": "1000"}
    seen = await next_event(stream)
    assert seen["event"] == "state"
    await world.add()
    change = await next_event(stream)
    assert (change["event"], change["id"] != seen["id"]) == ("state", True)
    await world.broker.admin.pause("mail")
    assert (await next_event(stream))["event"] == "state"
    await world.a_session()
    assert (await next_event(stream))["event"] == "state"
    await schedules.put("nightly", nothing.bind(), Cron("0 3 * * *"))
    assert (await next_event(stream))["event"] == "state"
    await schedules.pause("nightly")
    assert (await next_event(stream))["event"] == "state"
    await operate.pause(job="nothing")
    assert (await next_event(stream))["event"] == "state"
    await stream.aclose()  # type: ignore[attr-defined]


async def test_a_watcher_that_reconnects_hears_of_missed_changes(memory: World) -> None:
    sampler = Sampler()
    first = sampler.changes("")
    await next_event(first)
    seen = await next_event(first)
    await first.aclose()  # type: ignore[attr-defined]
    await memory.add()
    again = sampler.changes(seen["id"])
    await next_event(again)
    assert (await next_event(again))["event"] == "state"
    await again.aclose()  # type: ignore[attr-defined]


async def test_all_watchers_share_one_look_and_the_last_one_ends_it(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, sampler = count_looks(memory, monkeypatch), Sampler()
    streams = [sampler.changes("") for _ in range(100)]
    for stream in streams:
        await next_event(stream)
        await next_event(stream)
    monkeypatch.setattr(live, "INTERVAL", 0.5)
    await asyncio.sleep(0.1)
    before = len(looks)
    await asyncio.sleep(0.75)
    assert len(looks) - before <= 6
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(0.01)
    before = len(looks)
    await asyncio.sleep(0.6)
    assert len(looks) == before


@pytest.mark.parametrize(("watchers", "factor"), [(0, 1), (1, 1), (2, 2), (8, 8), (500, 8)])
async def test_looks_become_rarer_with_many_watchers(watchers: int, factor: int) -> None:
    sampler = Sampler()
    sampler._watchers |= {asyncio.Event() for _ in range(watchers)}
    assert sampler.interval == factor * live.INTERVAL


async def test_slow_checks_become_rarer(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(memory.broker.admin)
    queues = kind.queues

    async def slow(self: Any) -> Any:
        await asyncio.sleep(0.1)
        return await queues(self)

    monkeypatch.setattr(kind, "queues", slow)
    sampler = Sampler()
    await sampler.digest()
    assert sampler.interval >= 1.0 > live.INTERVAL


async def test_a_stream_ends_after_a_while_so_that_servers_can_stop(memory: World, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser opens the next one, and is authorized again."""
    monkeypatch.setattr(live, "MAX_STREAM", 0.3)
    await memory.add()
    answer = await site.client.get(f"{PREFIX}/live")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.text.startswith("retry: 1000\n\nevent: state\nid: ")
    change = await site.client.get(f"{PREFIX}/live", headers={"Last-Event-ID": "another"})
    assert "event: state" in change.text
    async with Site(authorize=None) as closed:
        await closed.get("/live", code=403)


async def test_a_store_that_is_away_ends_no_stream(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, is_away = type(memory.broker.admin), True
    queues = kind.queues

    async def away_at_first(self: Any) -> Any:
        if is_away:
            raise BrokerUnavailable("it is away")
        return await queues(self)

    monkeypatch.setattr(kind, "queues", away_at_first)
    configure(enqueue_timeout=0.1)
    stream = Sampler().changes("")
    await next_event(stream)
    assert (await next_event(stream))["event"] == "away"
    is_away = False
    assert (await next_event(stream))["event"] == "state"
    await stream.aclose()  # type: ignore[attr-defined]


async def test_a_page_is_fetched_again_after_a_while_because_its_ages_grow(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_AGE", 0.2)
    stream = Sampler().changes("")
    await next_event(stream)
    assert [(await next_event(stream))["event"] for _ in range(2)] == ["state"] * 2
    await stream.aclose()  # type: ignore[attr-defined]


async def test_a_script_gets_the_content_without_its_frame(memory: World, site: Site) -> None:
    await memory.add(queue="mail")
    whole = await site.get("/queues/mail")
    assert whole.all("main", **{"data-live": f"{PREFIX}/live"})
    assert whole.all("script", type="module")
    for path in ("/", "/jobs", "/failures", "/queues/mail", "/workers", "/schedules", "/charts"):
        part = Page(await site.client.get(PREFIX + path, headers=FRAGMENT))
        assert part.code == 200
        assert {"html", "main", "nav", "script"} & {tag for tag, attributes in part.tags if "aria-label" not in attributes} == set()
        assert part.all("h1")
        whole = await site.get(path)
        assert part.answer.text.strip().split("\n")[0] in whole.answer.text


async def test_equal_requests_of_scripts_share_a_page(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not share it with people who have other rights, nor with a person who opens the page. They reuse what the look has read,
    but a person who opens the page gets the newest state."""
    monkeypatch.setattr(live, "INTERVAL", 30.0)
    looks, access = count_looks(memory, monkeypatch), [ADA]
    async with Site(lambda request: access[-1]) as site:
        answers = await asyncio.gather(*[site.client.get(f"{PREFIX}/jobs", headers=FRAGMENT) for _ in range(20)])
        assert len({answer.text for answer in answers}) == 1
        assert sorted(looks) == ["metrics", "page", "queues", "workers"]
        await site.get("/jobs")
        await site.client.get(f"{PREFIX}/jobs?x=1", headers=FRAGMENT)
        access.append(type(ADA)("eve"))
        await site.client.get(f"{PREFIX}/jobs", headers=FRAGMENT)
        assert [looks.count(name) for name in ("page", "queues", "workers", "metrics")] == [4, 2, 2, 1]
