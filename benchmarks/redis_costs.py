"""What remains of jobs on Redis after they have been dropped."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Final

from benchmarks.loops import run_in_fastest_loop
from benchmarks.servers import RedisServer
from benchmarks.tasks import noop
from taskflow import Worker, enqueue
from taskflow.app.app import default_app
from taskflow.broker.redis import RedisBroker
from taskflow.broker.redis.server import RedisTarget
from taskflow.model.rules import Rules
from taskflow.worker.options import WorkerOptions
from tests.support.processes import HOST

ROUND: Final = 50_000


def leftovers(jobs: int) -> None:
    """Print which keys exist after `jobs` jobs that were not kept, beside the keys after one job."""
    run_in_fastest_loop(_pass_through(jobs))


# --- after many jobs ---------------------------------------------------------------------------------------------


async def _pass_through(jobs: int) -> None:
    """Run the jobs, and print the keys before and after. Ids stay known for `repeat_for`, which is short here."""
    rules = Rules(repeat_for=0.5)
    with RedisServer() as server:
        broker = RedisBroker(RedisTarget(host=HOST, port=server.port), rules=rules)
        with default_app().using(broker):
            await _run_all(1)
            await _forget_all(broker, rules)
            before, keys = server.occupied(), _keys(server)
            began = time.perf_counter()
            done = 0
            while done < jobs:
                done += await _run_all(min(ROUND, jobs - done))
            await _forget_all(broker, rules)
            print(f"\n{done:,} jobs through in {time.perf_counter() - began:.0f} s, keep_result=0")
            print(f"used memory {before:,} bytes before, {server.occupied():,} after; keys before and after, by kind:")
            after = _keys(server)
            for kind in sorted({*keys, *after}):
                print(f"  {kind:12} {keys[kind]:>8,} {after[kind]:>8,}")
        await broker.close()


async def _run_all(jobs: int) -> int:
    await enqueue(noop.options(keep_result=0).bind() for _ in range(jobs))
    async with Worker(options=WorkerOptions(subscribers=())) as worker:
        await worker.drained()
    return worker.tally.runs


async def _forget_all(broker: RedisBroker, rules: Rules) -> None:
    """Run maintenance twice: the first round drops kept jobs, and the second one ids that have expired since."""
    for _ in range(2):
        await asyncio.sleep(rules.repeat_for + 0.1)
        while True:
            upkept = await broker.upkeep(1_000)
            if not upkept.dropped and upkept.next_in > 0:
                break


def _keys(server: RedisServer) -> Counter[str]:
    """Count keys by the part between the shard's prefix and the next colon."""
    return Counter(key.partition(b"}:")[2].split(b":")[0].decode() for key in server.client.scan_iter(count=1_000))
