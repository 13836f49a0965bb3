"""A server whose memory is used up: new jobs are refused, and what is there is worked off."""

from __future__ import annotations

import asyncio
import os
from typing import Final

import pytest

from taskflow import StoreFull
from taskflow.broker.redis import RedisBroker, RedisTarget
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerRefused
from taskflow.model.ids import IdFactory
from taskflow.model.session import Session
from tests.stores.redis.scene import Scene
from tests.support.binaries import ServerBinary
from tests.support.servers import HOST, RedisServer, redis_binaries
from tests.support.verdicts import succeeded

ROOM: Final = 6_000_000
"""Bytes beyond what an empty server takes."""

BALLAST: Final = b"x" * 4_000


def make_scarce(server: RedisServer, room: int) -> None:
    """So many bytes more than are used now, or fewer: then it is full and stays full, whatever is worked off."""
    with server.client() as client:
        client.config_set("maxmemory", max(1, client.info("memory")["used_memory"] + room))


def end_scarcity(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("maxmemory", 0)


@pytest.mark.parametrize("found", redis_binaries(), ids=lambda found: found.name)
async def test_a_full_server_refuses_new_jobs_and_is_worked_off(found: ServerBinary, capsys: pytest.CaptureFixture[str]) -> None:
    """It stays full to the last: nothing of what it takes to claim, beat, settle and keep up needs room."""
    with RedisServer(found.path, settings={"maxmemory-policy": "noeviction"}) as server:
        async with Scene(server) as scene:
            make_scarce(server, ROOM)
            sent = await scene.fill(BALLAST)
            make_scarce(server, -ROOM)
            with pytest.raises(StoreFull, match="maxmemory"):
                await scene.note.delay(-1)
            async with scene.worker():
                await scene.until_done()
                with pytest.raises(StoreFull):
                    await scene.note.delay(-1)
                end_scarcity(server)
                await scene.send(range(sent, sent + 20))
                await scene.until_done()
            await scene.assert_each_settled_once()
    with capsys.disabled():
        print(f"\n{found.name}: full after {sent} jobs, all of them done while it was full")
    assert sent > 100


@pytest.mark.parametrize("policy", ["noeviction", "volatile-ttl"])
async def test_what_is_refused_of_large_calls_takes_no_room_from_others(server: RedisServer, policy: str) -> None:
    """As jobs are worked off new ones are taken, also when many are refused; and what refuses them is the memory, and nothing else."""
    with server.client() as client:
        client.config_set("maxmemory-policy", policy)
    make_scarce(server, 2 * ROOM)
    broker, an_id = RedisBroker(RedisTarget(host=HOST, port=server.port)), IdFactory()
    session = Session(id=os.urandom(16), name="worker")

    async def is_taken() -> bool:
        try:
            await broker.enqueue([Envelope(id=an_id(), job="work", payload=bytes(20_000)) for _ in range(20)])
        except StoreFull:
            return False
        return True

    try:
        await broker.register(session)
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
    finally:
        await broker.close()


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
async def test_a_server_that_may_evict_jobs_is_refused_unless_told_otherwise(server: RedisServer, policy: str) -> None:
    with server.client() as client:
        client.config_set("maxmemory-policy", policy)
    async with Scene(server) as scene:
        with pytest.raises(BrokerRefused, match=f"maxmemory-policy {policy}.*noeviction.*evicting=1"):
            await scene.note.delay(0)
        with pytest.raises(BrokerRefused, match=policy):
            async with scene.worker():
                pass
    async with Scene(server, f"{server.url}?evicting=1") as scene, scene.worker():
        await scene.send(range(10))
        await scene.until_ran(range(10))


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru", "volatile-ttl"])
async def test_a_server_that_evicts_what_expires_is_welcome(server: RedisServer, policy: str) -> None:
    """None of our keys expires that a job needs, only lists of listeners."""
    with server.client() as client:
        client.config_set("maxmemory-policy", policy)
    async with Scene(server) as scene, scene.worker():
        await scene.send(range(10))
        await scene.until_done()
        with server.client() as client:
            expiring = await asyncio.to_thread(lambda: [key for key in client.scan_iter("*") if client.ttl(key) != -1])
        assert all(b":waiting:" in key for key in expiring)
