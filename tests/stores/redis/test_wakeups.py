"""An idle worker sends next to nothing, and starts a job at once all the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

import pytest

from taskflow.broker.redis import wakeups
from taskflow.worker import fetcher
from taskflow.worker.options import WorkerOptions
from tests.stores.redis.scene import verb_of
from tests.stores.scene import Scene
from tests.support.proxy import PASS, Command, Fate, Proxy
from tests.support.servers import RedisServer

LATENCY: Final = 0.15
"""Seconds for a command's way to the server; its answer's way takes none, so that a round trip takes as long."""

SLACK: Final = 0.14
"""Seconds for what a machine with much else to do adds to the round trips; less than one of them, so that one more would be noticed."""

BLOCKING: Final = {"BLPOP", "BRPOP", "BLMOVE", "BLMPOP", "BRPOPLPUSH", "BZPOPMIN", "BZPOPMAX", "BZMPOP", "XREAD", "XREADGROUP", "WAIT"}


@pytest.fixture
def sent(proxy: Proxy) -> Counter[str]:
    counted = Counter[str]()

    def rule(command: Command) -> Fate:
        counted[verb_of(command)] += 1
        return PASS

    proxy.rule = rule
    return counted


def check_round_trips(waits: list[float], number: int) -> None:
    """No more than so many, but for one job that comes when all connections are in use: another is opened then, once, which is two more."""
    *others, longest = sorted(waits)
    assert max(others) < number * LATENCY + SLACK, waits
    assert longest < (number + 2) * LATENCY + SLACK, waits


async def test_an_idle_worker_sends_less_than_one_command_a_second(far_scene: Scene, server: RedisServer, sent: Counter[str]) -> None:
    """Counted on the wire and by the server over 10 s, with a user's own settings; then a job starts at once."""
    async with far_scene.worker(ttl=WorkerOptions().ttl):
        await far_scene.seconds_to_start(0)
        await asyncio.sleep(1)
        sent.clear()
        with server.client() as client:
            client.config_resetstat()
            await asyncio.sleep(10)
            when_idle = sent.copy()
            told = {name: stat["calls"] for name, stat in client.info("commandstats").items()}
        waited = await far_scene.seconds_to_start(1)
    assert when_idle.total() < 8, when_idle  # a heartbeat takes two, a call of upkeep that finds nothing one
    assert sum(told.get(f"cmdstat_{name}", 0) for name in ("evalsha", "eval", "ping")) < 8, told
    assert waited < 2.0  # to look again takes the worker 5 s
    assert not BLOCKING & when_idle.keys()


async def test_a_job_starts_within_two_round_trips_of_its_enqueue(far_scene: Scene, proxy: Proxy, sent: Counter[str]) -> None:
    async with far_scene.worker():
        await far_scene.seconds_to_start(0)
        proxy.latency = LATENCY
        await asyncio.sleep(1)
        waits = [await far_scene.seconds_to_start(number) for number in range(1, 6)]
    assert min(waits) >= 2 * LATENCY  # or the proxy would not slow down anything
    check_round_trips(waits, 2)
    assert not BLOCKING & sent.keys()


async def test_so_it_does_after_minutes_of_idleness_on_a_server_that_cuts_who_is_idle(
    far_scene: Scene, proxy: Proxy, server: RedisServer, monkeypatch: pytest.MonkeyPatch, sent: Counter[str]
) -> None:
    """As many looks and pings as in minutes. The server cuts who says nothing for a second, so the first command connects anew, which is
    two more round trips: the driver tells its name and its version."""
    monkeypatch.setattr(fetcher, "POLL_INTERVAL", 5.0 / 200)
    monkeypatch.setattr(wakeups, "PING_INTERVAL", 25.0 / 200)
    monkeypatch.setattr(wakeups, "PONG_TIMEOUT", 4 * LATENCY)
    with server.client() as client:
        client.config_set("timeout", 1)
    async with far_scene.worker():
        await far_scene.seconds_to_start(0)
        await asyncio.sleep(2)
        proxy.latency = LATENCY
        monkeypatch.setattr(fetcher, "POLL_INTERVAL", 5.0)
        await asyncio.sleep(1.5)
        waits = [await far_scene.seconds_to_start(number) for number in range(1, 4)]
    assert sent["claim"] > 40
    assert sent["PING"] > 4
    check_round_trips(waits, 4)
