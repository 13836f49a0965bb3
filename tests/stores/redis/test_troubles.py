"""Redis forgets its scripts, its replies are late, lost or garbled, it comes back with lost changes, or its memory is used up."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import pytest

from taskflow import StoreFull, configure
from taskflow.broker.url import connect
from taskflow.model.errors import BrokerRefused
from taskflow.worker.events import SessionOpened
from tests.stores.jobs import envelopes, registered
from tests.stores.redis.scene import verb_of
from tests.stores.scene import TIMEOUT, Scene
from tests.support.binaries import ServerBinary
from tests.support.proxy import DROP_REPLY, GARBLE, PASS, Command, Fate, Proxy, delay, delay_reply
from tests.support.servers import RedisServer, redis_binaries
from tests.support.verdicts import succeeded


async def test_scripts_flushed_in_a_loop_are_taught_again(far_scene: Scene, server: RedisServer, proxy: Proxy) -> None:
    flushed = jobs = 0

    async def flush_on() -> None:
        nonlocal flushed
        with server.client() as client:
            while True:
                await asyncio.to_thread(client.script_flush)
                flushed += 1

    flushing = asyncio.create_task(flush_on())
    async with far_scene.worker():
        while jobs < 900 or flushed <= 100:
            await far_scene.send(range(jobs, jobs + 15))
            jobs += 15
        flushing.cancel()
        await far_scene.until_done()
    await far_scene.assert_each_settled_once()
    assert sum(number for (name, _), number in proxy.counts.items() if name == b"EVAL") > 20


FATES: Final[Mapping[str, Callable[[random.Random], Fate]]] = {
    "delays on both ways": lambda chance: chance.choice((delay, delay_reply))(chance.random() * 0.05),
    "garbled replies": lambda _: GARBLE,
    "lost replies": lambda _: DROP_REPLY,
}


@pytest.mark.parametrize("name", FATES)
async def test_troubles_on_the_way_lose_and_repeat_nothing(far_scene: Scene, proxy: Proxy, name: str) -> None:
    """A garbled or lost command may have taken effect, and the connection is not used again. Large payloads are sent ahead of their
    calls."""
    configure(enqueue_timeout=TIMEOUT)
    hit, chance = Counter[str](), random.Random(5)

    def rule(command: Command) -> Fate:
        """A third meets its fate."""
        if verb_of(command) not in ("add", "claim", "succeed", "apply", "SUBSCRIBE", "query") or chance.random() > 0.35:
            return PASS
        hit[verb_of(command)] += 1
        return FATES[name](chance)

    async with far_scene.worker():
        proxy.rule = rule
        for number in range(100):
            await far_scene.send([number], padding=bytes(2_000 * (number % 2)))
        await far_scene.until_done()
        proxy.rule = lambda _command: PASS
    await far_scene.assert_each_settled_once()
    assert (await far_scene.totals())["enqueue"] == 100
    assert hit.total() > 25, hit


MANY: Final = 200


async def test_without_persistence_all_is_gone_and_the_worker_begins_anew(server: RedisServer) -> None:
    """Its session is gone with the other data: it opens another, and runs later jobs."""
    async with Scene(server.url) as scene:
        async with scene.worker():
            await scene.send(range(MANY))
            await scene.until_done()
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await scene.send(range(MANY, 2 * MANY))
            await scene.until_done(range(MANY, 2 * MANY))
            assert (await scene.told(range(MANY))) == {"gone": MANY}
            assert (await scene.totals())["succeed"] == MANY
        assert sum(isinstance(event, SessionOpened) for event in scene.events) == 2


ROOM: Final = 6_000_000
"""Bytes beyond those that an empty server uses."""


def make_scarce(server: RedisServer, room: int) -> None:
    """Allow this many bytes more than are used now, or fewer: then it is full and remains full, however many jobs are run."""
    with server.client() as client:
        client.config_set("maxmemory", max(1, client.info("memory")["used_memory"] + room))


@pytest.mark.parametrize("found", redis_binaries(), ids=lambda found: found.name)
async def test_a_full_server_refuses_new_jobs_and_is_worked_off(found: ServerBinary) -> None:
    """It is full until the end: claims, heartbeats, settlements and upkeep need no room."""
    with RedisServer(found.path, settings={"maxmemory-policy": "noeviction"}) as server:
        async with Scene(server.url) as scene:
            make_scarce(server, ROOM)
            sent = await scene.fill(b"x" * 4_000)
            assert sent > 100
            make_scarce(server, -ROOM)
            with pytest.raises(StoreFull, match="maxmemory"):
                await scene.note.delay(-1)
            async with scene.worker():
                await scene.until_done()
                with pytest.raises(StoreFull):
                    await scene.note.delay(-1)
                with server.client() as client:
                    client.config_set("maxmemory", 0)
                await scene.send(range(sent, sent + 20))
                await scene.until_done()
            await scene.assert_each_settled_once()


@pytest.mark.parametrize("policy", ["noeviction", "volatile-ttl"])
async def test_large_calls_that_are_refused_take_no_room_from_others(server: RedisServer, policy: str) -> None:
    """As jobs run, new ones are accepted, even when many are refused; and only the memory limit refuses them."""
    with server.client() as client:
        client.config_set("maxmemory-policy", policy)
    make_scarce(server, 2 * ROOM)
    broker = connect(server.url)
    session = await registered(broker)

    async def is_taken() -> bool:
        try:
            await broker.enqueue(envelopes(20, payload=bytes(20_000)))
        except StoreFull:
            return False
        return True

    while await is_taken():
        pass
    taken = 0
    for request in range(1, 401):
        [lease] = await broker.claim(session.id, request, ["default"], 1)
        await broker.settle([succeeded(lease)])
        taken += sum([await is_taken() for _ in range(3)])
    assert taken >= 10
    with server.client() as client:
        assert {client.ttl(key) for key in client.scan_iter("*:c:*")} <= {-1, -2}
    await broker.close()


async def test_a_server_that_may_evict_jobs_is_refused_unless_the_url_allows_it(server: RedisServer) -> None:
    """No key that a job needs expires, only lists of listeners."""
    with server.client() as client:
        for policy in ("allkeys-lru", "allkeys-lfu", "allkeys-random"):
            client.config_set("maxmemory-policy", policy)
            async with Scene(server.url) as scene:
                with pytest.raises(BrokerRefused, match=f"maxmemory-policy {policy}.*noeviction.*evicting=1"):
                    await scene.note.delay(0)
                with pytest.raises(BrokerRefused, match=policy):
                    async with scene.worker():
                        pass
        async with Scene(server.url, f"{server.url}?evicting=1") as scene, scene.worker():
            await scene.send(range(10))
            await scene.until_ran(range(10))
        for policy in ("noeviction", "volatile-lru", "volatile-ttl"):
            client.config_set("maxmemory-policy", policy)
            async with Scene(server.url) as scene, scene.worker():
                await scene.send(range(10))
                await scene.until_done()
                expiring = await asyncio.to_thread(lambda: [key for key in client.scan_iter("*") if client.ttl(key) != -1])
                assert all(b":waiting:" in key for key in expiring)
