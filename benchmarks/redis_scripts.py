"""How long one call of each script blocks the server with very many jobs queued, from the server's slow log."""

from __future__ import annotations

import asyncio
import secrets
import statistics
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, Final

from benchmarks.loops import run_in_fastest_loop
from benchmarks.processes import a_worker, using
from benchmarks.servers import RedisServer
from benchmarks.tasks import noop
from taskflow import enqueue
from taskflow.broker.admin import View
from taskflow.broker.protocol import Broker
from taskflow.broker.redis.scripts import Scripts
from taskflow.model.envelope import Lease
from taskflow.model.record import Status
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, Session
from taskflow.model.verdict import Settlement, Succeeded
from tests.support.listing import listed

LOGGED: Final = 200_000
SCRIPTS: Final = ("add", "claim", "succeed", "query", "apply", "grow", "promote", "fade", "arm")
LEASES: Final = 10_000

Durations = dict[str, list[int]]
"""The microseconds of each call, by script and phase."""


def hold_times(queued: int) -> None:
    """Print how long calls of each script block the server."""
    durations = run_in_fastest_loop(_measure(queued))
    print(f"\n{f'one script call, {queued:,} jobs queued':52} {'calls':>7} {'median ms':>10} {'max ms':>10}")
    for name, taken in durations.items():
        print(f"{name:52} {len(taken):>7,} {statistics.median(taken) / 1e3:>10.3f} {max(taken) / 1e3:>10.3f}")


async def _measure(queued: int) -> Durations:
    durations: Durations = {}
    with RedisServer(**{"slowlog-max-len": str(LOGGED), "slowlog-log-slower-than": "-1"}) as server:
        async with using(server.url) as broker:
            names = _load(server)

            async def phase(title: str, work: Awaitable[object]) -> None:
                server.client.config_set("slowlog-log-slower-than", 0)
                await work
                server.client.config_set("slowlog-log-slower-than", -1)
                for name, taken in _logged(server, names).items():
                    durations[f"{name} ({title})"] = taken

            await enqueue(noop.bind() for _ in range(queued))
            await phase("1,000 jobs", enqueue(noop.bind() for _ in range(20_000)))
            await phase("32 callers of delay()", _by_callers(noop.delay, 32, 100))
            await phase("a worker drains for 3 s", _work(server.url, 3.0))
            await phase("100 callers await results", _await_results(server.url))
            await phase("10,000 due at one instant", _bring_due(broker, 10_000))
            await phase("1,000 ids", _ids(broker))
            await phase("admin", _administer(broker))
            await phase(f"{LEASES:,} leases, 1,000 a claim", _hold(broker))
    return durations


def _load(server: RedisServer) -> dict[bytes, str]:
    """Load the scripts, and return their names by digest. A script that isn't loaded is sent as EVAL, whose text the log truncates."""
    scripts = Scripts(Rules())
    for name in SCRIPTS:
        server.client.script_load(scripts[name].text)
    return {scripts[name].sha: name for name in SCRIPTS}


def _logged(server: RedisServer, names: dict[bytes, str]) -> Durations:
    """Return the durations since the last call."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    entries: Any = server.client.slowlog_get(LOGGED)
    for entry in entries:
        command = entry["command"].split(b" ")
        if command[0] == b"EVALSHA" and command[1] in names:
            found[names[command[1]]].append(entry["duration"])
    server.client.slowlog_reset()
    return found


async def _by_callers(call: Callable[[], Awaitable[object]], callers: int, times: int) -> None:
    async def caller() -> None:
        for _ in range(times):
            await call()

    await asyncio.gather(*(caller() for _ in range(callers)))


async def _work(url: str, seconds: float) -> None:
    """Run a worker for some seconds. The jobs queued before come first, so the last job has a higher priority."""
    urgent = noop.options(priority=1)
    async with a_worker(url):
        await asyncio.sleep(seconds)
        await (await urgent.delay()).result(10)


async def _await_results(url: str) -> None:
    urgent = noop.options(priority=1)

    async def call() -> None:
        await (await urgent.delay()).result(10)

    async with a_worker(url):
        await _by_callers(call, 100, 10)


async def _bring_due(broker: Broker, jobs: int) -> None:
    await enqueue(noop.options(after=0.5).bind() for _ in range(jobs))
    await asyncio.sleep(1.0)
    while (await broker.upkeep(1_000)).readied:
        pass


async def _ids(broker: Broker) -> None:
    kind = noop.options(queue="aside")
    handles = await enqueue(kind.bind() for _ in range(1_000))
    ids = [handle._id for handle in handles]
    for _ in range(5):
        await broker.read(ids)
    await broker.cancel(ids)
    await broker.admin.retry(ids)
    await broker.cancel(ids)
    await broker.admin.purge(View(queue="aside", statuses=(Status.CANCELLED,)))


async def _administer(broker: Broker) -> None:
    for _ in range(20):
        await broker.admin.queues()
        await broker.admin.workers()
        await broker.admin.metrics()
    await listed(broker.admin, View(statuses=(Status.SUCCEEDED,)))
    await broker.admin.purge(View(statuses=(Status.SUCCEEDED,)))


async def _hold(broker: Broker) -> None:
    """Use one session with very many leases: send heartbeats, settle a thousand jobs at a time, and hand back the others when leaving."""
    session = Session(id=secrets.token_bytes(16), name="benchmark")
    await broker.register(session)
    leases: list[Lease] = []
    for request in range(1, 1 + LEASES // 1_000):
        leases += await broker.claim(session.id, request, ("default",), 1_000)
    for _ in range(5):
        await broker.beat(Beat(session=session.id, claims=tuple(lease.claim for lease in leases), seen=LEASES // 1_000))
    for first in range(0, 3_000, 1_000):
        await broker.settle([_settlement(lease) for lease in leases[first : first + 1_000]])
    await broker.beat(Beat(session=session.id, leaving=True))


def _settlement(lease: Lease) -> Settlement:
    return Settlement(id=lease.envelope.id, epoch=lease.epoch, claim=lease.claim, verdict=Succeeded(b"\xc0"))
