"""An idle worker sends next to nothing, and starts a job at once all the same."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Final

import pytest

from taskflow.broker import topics
from taskflow.broker.redis import RedisBroker, wakeups
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope
from taskflow.model.session import Session
from taskflow.worker import fetcher
from taskflow.worker.options import WorkerOptions
from tests.stores.redis.scene import Scene, verb_of
from tests.stores.scene import elapsed_since
from tests.support.binaries import ServerBinary
from tests.support.proxy import PASS, Command, Fate, Proxy
from tests.support.servers import RedisServer, redis_binaries
from tests.support.waiting import until

LATENCY: Final = 0.15
"""Seconds for a command's way to the server; its answer's way takes none, so that a round trip takes as long."""

SLACK: Final = 0.14
"""Seconds for what a machine with much else to do adds to the round trips; less than one of them, so that one more would be noticed."""

BLOCKING: Final = {"BLPOP", "BRPOP", "BLMOVE", "BLMPOP", "BRPOPLPUSH", "BZPOPMIN", "BZPOPMAX", "BZMPOP", "XREAD", "XREADGROUP", "WAIT"}


class Ledger:
    """A proxy's rule that lets all pass, and counts what it is."""

    def __init__(self) -> None:
        self.verbs: Counter[str] = Counter()

    def __call__(self, command: Command) -> Fate:
        self.verbs[verb_of(command)] += 1
        return PASS


async def seconds_to_start(scene: Scene, number: int) -> float:
    """From just before the enqueue to the job's first line."""
    began_at = time.monotonic()
    await asyncio.gather(scene.send([number]), scene.until_ran([number], within=10))
    return elapsed_since(began_at)


def check_round_trips(waits: list[float], number: int) -> None:
    """No more than so many, but for one job that comes when all connections are in use: another is opened then, once, which is two more."""
    *others, longest = sorted(waits)
    assert max(others) < number * LATENCY + SLACK, waits
    assert longest < (number + 2) * LATENCY + SLACK, waits


async def subscribers(server: RedisServer) -> int:
    def ask() -> int:
        with server.client() as client:
            return len(client.pubsub_channels("{taskflow:0}:n:*"))

    return await asyncio.to_thread(ask)


async def test_an_idle_worker_sends_less_than_one_command_a_second(
    far_scene: Scene, proxy: Proxy, server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted on the wire and by the server over 10 s, with a user's own settings; then a job starts at once."""
    proxy.rule = ledger = Ledger()
    async with far_scene.worker(ttl=WorkerOptions().ttl):
        await seconds_to_start(far_scene, 0)
        await asyncio.sleep(1)
        ledger.verbs.clear()
        with server.client() as client:
            client.config_resetstat()
        await asyncio.sleep(10)
        sent = ledger.verbs.copy()
        with server.client() as client:
            told = {name: stat["calls"] for name, stat in client.info("commandstats").items()}
        waited = await seconds_to_start(far_scene, 1)
    with capsys.disabled():
        print(f"\nidle for 10 s: {dict(sent)}; the server counts {told}; then a job started within {waited * 1000:.1f} ms")
    assert sent.total() < 8  # a heartbeat takes two, a call of upkeep that finds nothing one
    assert told.get("cmdstat_evalsha", 0) + told.get("cmdstat_eval", 0) + told.get("cmdstat_ping", 0) < 8
    assert waited < 2.0  # to look again takes the worker 5 s
    assert not BLOCKING & sent.keys()


async def test_a_job_starts_within_two_round_trips_of_its_enqueue(far_scene: Scene, proxy: Proxy) -> None:
    proxy.rule = ledger = Ledger()
    async with far_scene.worker():
        await seconds_to_start(far_scene, 0)
        proxy.latency = LATENCY
        await asyncio.sleep(1)
        waits = [await seconds_to_start(far_scene, number) for number in range(1, 6)]
    assert min(waits) >= 2 * LATENCY  # or the proxy would not slow down anything
    check_round_trips(waits, 2)
    assert not BLOCKING & ledger.verbs.keys()


@pytest.mark.parametrize("cuts", [False, True], ids=["", "on a server that cuts who is idle"])
async def test_so_it_does_after_minutes_of_idleness(
    far_scene: Scene, proxy: Proxy, server: RedisServer, monkeypatch: pytest.MonkeyPatch, cuts: bool
) -> None:
    """As many looks and pings as in minutes. Where the server cuts who says nothing for a second, the first command connects anew, which is
    two more: the driver tells its name and its version."""
    monkeypatch.setattr(fetcher, "LOOK_AGAIN", 5.0 / 200)
    monkeypatch.setattr(wakeups, "PING_EVERY", 25.0 / 200)
    monkeypatch.setattr(wakeups, "PONG_WITHIN", 4 * LATENCY)
    proxy.rule = ledger = Ledger()
    with server.client() as client:
        client.config_set("timeout", int(cuts))
    async with far_scene.worker():
        await seconds_to_start(far_scene, 0)
        await asyncio.sleep(2)
        proxy.latency = LATENCY
        monkeypatch.setattr(fetcher, "LOOK_AGAIN", 5.0)
        await asyncio.sleep(1.5)
        waits = [await seconds_to_start(far_scene, number) for number in range(1, 4)]
    assert ledger.verbs["claim"] > 40
    assert ledger.verbs["PING"] > 4
    check_round_trips(waits, 4 if cuts else 2)


@pytest.mark.parametrize("found", redis_binaries()[:2], ids=lambda found: found.name)
async def test_so_it_does_when_its_subscription_was_cut_meanwhile(found: ServerBinary, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut and subscribed anew: at once. Enqueued in the very moment of the cut: as soon as it is subscribed again."""
    with RedisServer(found.path) as server, Proxy("127.0.0.1", server.port) as proxy, server.client() as client:
        async with Scene(server, proxy.url()) as scene, scene.worker():
            await seconds_to_start(scene, 0)
            await until(lambda: _has_subscribers(server, 1), 5)
            number_of_listeners = await subscribers(server)
            assert client.client_kill_filter(_type="pubsub") == number_of_listeners
            await until(lambda: _has_subscribers(server, number_of_listeners), 5)
            await asyncio.sleep(0.3)
            proxy.latency = LATENCY
            after = await seconds_to_start(scene, 1)
            proxy.latency = 0.0
            await asyncio.sleep(0.3)
            at_once = list[float]()
            for number in range(2, 12):
                client.client_kill_filter(_type="pubsub")
                at_once.append(await seconds_to_start(scene, number))
    with capsys.disabled():
        print(f"\n{found.name}: after a cut {after * 1000:.0f} ms; in the moment of a cut {max(at_once) * 1000:.0f} ms at worst")
    assert after < 2 * LATENCY + SLACK
    assert max(at_once) < 0.5


async def _has_subscribers(server: RedisServer, number: int) -> bool:
    return await subscribers(server) >= number


async def test_who_got_a_portion_asks_before_it_waits_whatever_was_told_meanwhile(server: RedisServer) -> None:
    """Told while a claim was under way, the server's promise to tell is used up, and the client may believe in it still."""
    broker, session = connect(server.url), Session(id=bytes(16), name="worker", ttl=60.0)
    topic = topics.queue("default")
    assert isinstance(broker, RedisBroker)
    await broker.register(session)
    with broker.listen([topic]) as listener:
        await listener.wait(0.01)
        redis_listener = broker._per_loop.here().listener
        await until(lambda: topic in redis_listener._armed)
        await broker.enqueue([Envelope(id=n.to_bytes(16, "big"), job="work", payload=bytes(400_000)) for n in range(6)])
        await until(lambda: topic not in redis_listener._armed)
        redis_listener.armed([topic], redis_listener.times)
        assert await listener.wait(5.0)
        claimed, request = 0, 0
        while claimed < 6:
            redis_listener.armed([topic], redis_listener.times)
            request += 1
            leases = await broker.claim(session.id, request, ["default"], 100)
            claimed += len(leases)
            assert len(leases) < 6
            assert claimed == 6 or await listener.wait(1.0)
    await broker.close()
