"""Scripts that the server forgets, slow ways, and replies that cannot be read: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from tests.stores.redis.scene import Scene, verb_of
from tests.support.proxy import GARBLE, PASS, Command, Fate, Proxy, delay, delay_reply
from tests.support.servers import RedisServer
from tests.support.waiting import until

JOBS: Final = 1_500
VERBS: Final = ("add", "claim", "succeed", "apply")


@contextmanager
def flushing(server: RedisServer) -> Iterator[list[int]]:
    """The server forgets all scripts, as often as it can be told to. How often, as the only item."""
    is_over, flushed = threading.Event(), [0]

    def flush_on() -> None:
        with server.client() as client:
            while not is_over.wait(0.001):
                client.script_flush()
                flushed[0] += 1

    thread = threading.Thread(target=flush_on)
    thread.start()
    try:
        yield flushed
    finally:
        is_over.set()
        thread.join()


async def test_scripts_flushed_in_a_loop_are_taught_again(
    far_scene: Scene, server: RedisServer, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    async with far_scene.worker():
        with flushing(server) as flushed:
            jobs = 0
            while jobs < JOBS or flushed[0] <= 100:
                await far_scene.send(range(jobs, jobs + 15))
                jobs += 15
            await far_scene.until_done()
    await far_scene.assert_each_settled_once()
    sent: dict[bytes, int] = {}
    for (name, _), number in proxy.counts.items():
        sent[name] = sent.get(name, 0) + number
    with capsys.disabled():
        print(f"\n{flushed[0]} times SCRIPT FLUSH under {jobs} jobs; {sent.get(b'EVALSHA')} EVALSHA, {sent.get(b'EVAL')} EVAL")
    assert sent[b"EVAL"] > 20


class Slow:
    """A proxy's rule: delays on both ways, of up to `most` seconds."""

    def __init__(self, most: float, seed: int) -> None:
        self.delayed = 0
        self._most = most
        self._chance = random.Random(seed)

    def __call__(self, command: Command) -> Fate:
        self.delayed += 1
        how = self._chance.choice((delay, delay_reply))
        return how(self._chance.random() * self._most)


async def test_delays_on_both_ways_lose_nothing(far_scene: Scene, proxy: Proxy) -> None:
    proxy.rule = slow = Slow(0.05, seed=4)
    async with far_scene.worker():
        for first in range(0, 300, 30):
            await far_scene.send(range(first, first + 30))
        await far_scene.until_done()
    await far_scene.assert_each_settled_once()
    assert slow.delayed > 20


class Garbles:
    """A proxy's rule: a third of the replies to these verbs begin with what no reply begins with."""

    def __init__(self, seed: int) -> None:
        self.garbled = 0
        self._chance = random.Random(seed)

    def __call__(self, command: Command) -> Fate:
        if verb_of(command) not in (*VERBS, "SUBSCRIBE", "query") or self._chance.random() > 0.35:
            return PASS
        self.garbled += 1
        return GARBLE


async def test_garbled_replies_lose_nothing(far_scene: Scene, proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    """What was garbled may have taken effect, and the connection is not used again."""
    async with far_scene.worker():
        proxy.rule = garbles = Garbles(seed=5)
        for number in range(200):
            await far_scene.send([number])
        await far_scene.until_done()
        proxy.rule = lambda _command: PASS
        await until(lambda: garbles.garbled > 50, 1)
    await far_scene.assert_each_settled_once()
    with capsys.disabled():
        print(f"\n{garbles.garbled} replies garbled under 200 jobs")
