"""A neighbour writes junk of every kind under the keys of a namespace while jobs are sent and worked: all of them are done."""

from __future__ import annotations

import random
from typing import Any, Final

import pytest

from taskflow.broker.console import View
from taskflow.worker import fetcher
from tests.stores.redis.scene import Scene
from tests.support.listing import listed
from tests.support.servers import RedisServer

PREFIX: Final = b"{taskflow:0}:"
ROUNDS: Final = 40
NAMES: Final = (
    *(
        b"names",
        b"texts",
        b"meta",
        b"counts",
        b"totals",
        b"alive",
        b"dead",
        b"ready",
        b"due",
        b"expiring",
        b"fade",
        b"crowded",
        b"keys",
        b"held",
    ),
    *(
        b"waiting:",
        b"nudged",
        b"upkeepers",
        b"awaited",
        b"spoilt",
        b"reindexing",
        b"reindexed",
        b"ready_list:1:0",
        b"returned:1:0",
        b"priorities:1",
        b"kept:1:0",
        b"kept:1:1",
        b"bad:x",
        b"stopping:short",
        b"zzz",
        b"",
    ),
)
SCORES: Final = (0.0, -1.0, 1e18, 1e300, float("inf"), float("-inf"))


class Neighbour:
    def __init__(self, client: Any, seed: int) -> None:
        self._client = client
        self._chance = random.Random(seed)
        # of two copies of one fact one is left
        self._spared = self._chance.choice((b"names", b"texts"))
        self.done = list[tuple[bytes, bytes, bytes]]()

    def act(self) -> None:
        key = self._a_key()
        name = key[len(PREFIX) :]
        if name.startswith((b"j:", b"bad:")) or name in (self._spared, b"paused"):
            return
        kind: bytes = self._client.type(key)
        if kind == b"none" or self._chance.random() < 0.15:
            self._client.delete(key)
            kind = self._chance.choice((b"hash", b"zset", b"set", b"list", b"string"))
        junk = self._junk()
        match kind:
            case b"hash":
                field = self._one_of(self._client.hkeys(key))
                if (name, field) != (b"meta", b"layout"):  # another version's is refused, and is to be
                    self._client.hset(key, field, junk)
            case b"zset":
                self._client.zadd(key, {self._one_of(self._client.zrange(key, 0, -1)): self._chance.choice(SCORES)})
            case b"set":
                self._client.sadd(key, junk)
            case b"list":
                self._client.rpush(key, junk)
            case _:
                self._client.set(key, junk)
        self.done.append((name, kind, junk))

    def _a_key(self) -> bytes:
        keys = self._client.keys(PREFIX + b"*")
        if self._chance.random() < 0.7 and keys:
            return bytes(self._chance.choice(keys))
        return PREFIX + self._chance.choice(
            (*NAMES, b"ready_list:" + self._junk(), b"priorities:" + self._junk(), b"leases:" + self._chance.randbytes(16))
        )

    def _one_of(self, members: list[bytes]) -> bytes:
        return self._chance.choice(members) if members and self._chance.random() < 0.6 else self._junk()

    def _junk(self) -> bytes:
        chance = self._chance
        texts = (b"", b"\xff\xc1", b"-1", b"nan", b"1e300", b"inf", b"9223372036854775807", b"q:x", b"1:2")
        return chance.choice((*texts, chance.randbytes(16), b"\x02" + chance.randbytes(48), b"\xdc\x00\x24" + chance.randbytes(40)))


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_a_neighbour_writes_all_jobs_are_done(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(fetcher, "LOOK_AGAIN", 0.25)
    with RedisServer() as server, server.client() as client:
        neighbour = Neighbour(client, seed)
        async with Scene(server) as scene, scene.worker():
            for first in range(0, 10 * ROUNDS, 10):
                scene.takes = 0.005
                await scene.send(range(first, first + 5))
                for _ in range(1 + seed % 3):
                    neighbour.act()
                await scene.send(range(first + 5, first + 10))
                try:
                    await scene.until_done(range(first, first + 10), within=20)
                except AssertionError as error:
                    error.add_note(f"seed {seed}, the last writes: {neighbour.done[-6:]}")
                    raise
            console = scene.store.console
            await console.queues()
            await console.workers()
            await console.metrics()
            await listed(console)
            await console.purge(View(), limit=10_000)
