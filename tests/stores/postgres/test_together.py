"""Many at once: no job is leased to two, no key has two jobs."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import taskflow
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.ids import IdFactory, key_digest
from taskflow.model.session import Session
from tests.cli.processes import Running, Shell
from tests.stores.postgres.scene import Scene
from tests.support.postgres import shared_postgres
from tests.support.waiting import until

JOBS: Final = 2_000
CLAIMERS: Final = 6

PROCESSES: Final = 4
KEYS: Final = 4
TIMES: Final = 20

DIGESTS: Final = [key_digest("default", "tests.stores.postgres.keyed", f"key {number}") for number in range(KEYS)]

_SENDER: Final = """
import asyncio, random, sys
import taskflow

@taskflow.job(name="tests.stores.postgres.keyed")
async def keyed(key: int) -> None: ...

async def main(number):
    chance = random.Random(number)
    for turn in range({times}):
        key = turn % {keys}
        conflict = chance.choice(["keep", "replace"])
        await keyed.options(key=f"key {{key}}", on_conflict=conflict).delay(key)

taskflow.configure(enqueue_timeout=30)
asyncio.run(main(int(sys.argv[1])))
"""

_LIVE: Final = """
    SELECT count(*) FILTER (WHERE status < 3), count(*) FILTER (WHERE status = 3), count(*) FILTER (WHERE status BETWEEN 1 AND 3)
    FROM unnest($1::bytea[]) AS key JOIN taskflow.jobs ON status <= 3 AND position(key IN sent) > 0 GROUP BY key
"""


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path) as opened:
        opened.write("sender.py", _SENDER.format(times=TIMES, keys=KEYS))
        yield opened


@pytest.mark.parametrize("level", ["read committed", "repeatable read"])
async def test_keyed_enqueues_of_many_processes_never_give_two_live_jobs_with_one_key(
    shell: Shell, scene: Scene, level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a worker, that claims and settles meanwhile: of a key one waits at most, one runs at most, and never two at one time."""
    scene.set("default_transaction_isolation", f"'{level}'")
    running: Counter[int] = Counter()
    runs: Counter[int] = Counter()
    most = 0

    @taskflow.job(name="tests.stores.postgres.keyed")
    async def keyed(key: int) -> None:
        nonlocal most
        running[key] += 1
        most = max(most, running[key])
        await asyncio.sleep(0.002)
        running[key] -= 1
        runs[key] += 1

    shell.environment["TASKFLOW_BROKER"] = f"{scene.straight_url}?pooled=1"
    async with scene.worker():
        senders = [shell.start("sender.py", str(number)) for number in range(PROCESSES)]
        looks = await look_until_over(scene, senders)
        assert all(sender.end() == 0 for sender in senders), [sender.said for sender in senders]
        await until(lambda: is_over(scene))
    totals = await scene.totals()
    with capsys.disabled():
        print(f"\n{level}: {PROCESSES * TIMES} enqueues by {PROCESSES} processes on {KEYS} keys; {looks} looks; {dict(totals)}")
    assert looks > 5
    assert most == 1
    assert totals["enqueue"] == totals["succeed"] + totals["replace"]
    assert totals["succeed"] == runs.total()
    assert totals["replace"] > 0


async def look_until_over(scene: Scene, senders: list[Running]) -> int:
    """How often the jobs of each key were counted, while there are senders."""
    looks = most = 0
    while any(sender.process.poll() is None for sender in senders):
        for waiting, at_work, not_held in await asyncio.to_thread(scene.postgres.rows, _LIVE, DIGESTS, database=scene.database):
            most = max(most, waiting + at_work)
            assert waiting <= 1
            assert at_work <= 1
            assert not_held <= 1, "what waits beside a run is held"
        looks += 1
    assert most == 2, "no look has seen a job that waits for a run with its key"
    return looks


async def is_over(scene: Scene) -> bool:
    return await scene.waiting() == {}


async def test_workers_never_get_the_same_job(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with a store of its own, all of them at once, some from every queue and some from one."""
    database, new_id = shared_postgres().new_database(), IdFactory()
    brokers = [connect(shared_postgres().url(database)) for _ in range(CLAIMERS)]
    for first in range(0, JOBS, 500):
        envelopes = [Envelope(id=new_id(), job="work", payload=b"\x01", queue=f"queue{n % 3}") for n in range(first, first + 500)]
        await brokers[0].enqueue(envelopes)
    claims = await asyncio.gather(*(claim_all(broker, number) for number, broker in enumerate(brokers)))
    taken = Counter(lease.envelope.id for leases in claims for lease in leases)
    with capsys.disabled():
        print(f"\n{JOBS} jobs taken by {CLAIMERS}: {[len(leases) for leases in claims]}")
    assert len(taken) == taken.total() == JOBS
    assert sum(bool(leases) for leases in claims) == CLAIMERS
    for broker in brokers:
        await broker.close()


async def claim_all(broker: Broker, number: int) -> list[Lease]:
    """A few at a time, until there are none, three times in a row: what others have locked is passed over."""
    session = Session(id=os.urandom(16), name=f"worker {number}")
    await broker.register(session)
    found, request, in_vain = list[Lease](), 0, 0
    while in_vain < 3:
        request += 1
        leases = await broker.claim(session.id, request, [] if number % 2 else [f"queue{request % 3}"], 7)
        found += leases
        in_vain = 0 if leases else in_vain + 1
    return found
