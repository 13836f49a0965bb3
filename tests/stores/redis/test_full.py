"""A server whose memory is used up: new jobs are refused, and what is there is worked off."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from taskflow import StoreFull
from taskflow.broker.url import connect
from taskflow.model.errors import BrokerRefused
from tests.stores.jobs import envelopes, registered
from tests.stores.scene import Scene
from tests.support.binaries import ServerBinary
from tests.support.servers import RedisServer, redis_binaries
from tests.support.verdicts import succeeded

ROOM: Final = 6_000_000
"""Bytes beyond what an empty server takes."""


def make_scarce(server: RedisServer, room: int) -> None:
    """So many bytes more than are used now, or fewer: then it is full and stays full, whatever is worked off."""
    with server.client() as client:
        client.config_set("maxmemory", max(1, client.info("memory")["used_memory"] + room))


@pytest.mark.parametrize("found", redis_binaries(), ids=lambda found: found.name)
async def test_a_full_server_refuses_new_jobs_and_is_worked_off(found: ServerBinary) -> None:
    """It stays full to the last: nothing of what it takes to claim, beat, settle and keep up needs room."""
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
async def test_what_is_refused_of_large_calls_takes_no_room_from_others(server: RedisServer, policy: str) -> None:
    """As jobs are worked off new ones are taken, also when many are refused; and what refuses them is the memory, and nothing else."""
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


async def test_a_server_that_may_evict_jobs_is_refused_unless_told_otherwise(server: RedisServer) -> None:
    """None of our keys expires that a job needs, only lists of listeners."""
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
