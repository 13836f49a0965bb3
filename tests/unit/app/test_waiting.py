"""Waiting for results without polling: a nudge wakes, and waiters share what they read."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from taskflow import JobHandle
from taskflow.app.app import default_app
from taskflow.broker.sqlite import SqliteBroker
from taskflow.model.envelope import Lease
from taskflow.model.ids import parse_id
from taskflow.model.verdict import Settlement
from tests.support.verdicts import succeeded
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add
from tests.unit.app.watched import Watched

A_WHILE = 4.0
"""Seconds in which a waiter that polls would have looked, and one that is nudged has long been woken."""


async def waiters_of(handles: list[JobHandle[int]], watched: Watched) -> list[asyncio.Task[int]]:
    """Tasks that have looked once, and wait."""
    tasks = [asyncio.ensure_future(handle.result(timeout=60)) for handle in handles]
    while sum(len(ids) for ids in watched.reads) < len(set(handles)):  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)  # the answers are on their way back from the writer's thread
    return tasks


async def test_a_waiter_looks_once_before_and_once_after(bench: Bench) -> None:
    watched = Watched(bench.broker)
    with bench.app.using(watched.as_broker):
        handle = await add.delay(1, 2)
        [waiting] = await waiters_of([handle], watched)
        await asyncio.sleep(0.2)
        assert len(watched.reads) == 1, "it does not poll"

        began = time.monotonic()
        await bench.run_all()
        assert await waiting == 3
        assert time.monotonic() - began < A_WHILE
        assert len(watched.reads) == 2


async def test_a_hundred_waiters_for_one_job_share_their_reads(bench: Bench) -> None:
    watched = Watched(bench.broker)
    with bench.app.using(watched.as_broker):
        handle = await add.delay(1, 2)
        waiting = await waiters_of([handle] * 100, watched)
        await bench.run_all()
        assert await asyncio.gather(*waiting) == [3] * 100
    assert len(watched.reads) <= 4
    assert all(ids == [parse_id(handle.id)] for ids in watched.reads), "each id is read once"


async def test_a_hundred_waiters_for_a_hundred_jobs_share_their_reads(bench: Bench) -> None:
    """As far as the jobs end together, as those of one settled batch do."""
    watched = Watched(bench.broker)
    with bench.app.using(watched.as_broker):
        handles = await asyncio.gather(*(add.delay(n, n) for n in range(100)))
        waiting = await waiters_of(handles, watched)
        looked = len(watched.reads)
        await bench.broker.settle([_settlement(lease) for lease in await bench.claim()])
        assert await asyncio.gather(*waiting) == [2 * n for n in range(100)]
    assert looked <= 2
    assert len(watched.reads) - looked <= 4


def _settlement(lease: Lease) -> Settlement:
    (x, y), _ = add.codec.decode_arguments(lease.envelope.payload)
    return succeeded(lease, add.codec.encode_result(x + y))


async def test_a_waiter_that_ends_leaves_nothing_behind(bench: Bench) -> None:
    """Also one that is cancelled: it listens no more."""
    handle = await add.delay(1)
    waiting = asyncio.ensure_future(handle.result())
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(TimeoutError):
        await handle.result(timeout=0.05)
    flag = getattr(bench.broker, "_flag", None)
    if flag is not None:
        assert not flag.is_heard


async def test_a_job_that_ended_before_the_listening_is_not_missed(bench: Bench) -> None:
    """Between the listening and the first look nothing is lost: it listens first."""
    watched = Watched(bench.broker)
    handle = await add.delay(1)
    with bench.app.using(watched.as_broker):
        waiting = asyncio.ensure_future(handle.result(timeout=60))
        await bench.run_all()
        assert await waiting == 2


SETTLES = """
import asyncio, sys
from taskflow.broker.sqlite import SqliteBroker
from taskflow.model.session import Session
from taskflow.model.verdict import Settlement, Succeeded
from taskflow.model.codec import encode_value

async def main():
    broker = SqliteBroker(sys.argv[1])
    session = Session(id=b"s" * 16, name="elsewhere")
    await broker.register(session)
    [lease] = await broker.claim(session.id, 1, [], 1)
    print("claimed", flush=True)
    sys.stdin.readline()
    verdict = Succeeded(encode_value(42))
    await broker.settle([Settlement(id=lease.envelope.id, epoch=lease.epoch, claim=lease.claim, verdict=verdict)])
    await broker.close()

asyncio.run(main())
"""


async def test_another_process_wakes_the_waiter(tmp_path: Path) -> None:
    """On SQLite, by a datagram: with one look before it and one after. (Other processes do not see a memory broker.)"""
    path = tmp_path / "jobs.db"
    broker = SqliteBroker(path)
    watched = Watched(broker)
    try:
        with default_app().using(watched.as_broker):
            handle = await add.delay(1)
            worker = await asyncio.create_subprocess_exec(
                sys.executable, "-c", SETTLES, str(path), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert worker.stdin is not None
            assert worker.stdout is not None
            assert await worker.stdout.readline() == b"claimed\n"
            [waiting] = await waiters_of([handle], watched)
            looks = len(watched.reads)
            worker.stdin.write(b"go\n")
            assert await waiting == 42
            assert len(watched.reads) - looks <= 2
            worker.stdin.close()
            assert await worker.wait() == 0
    finally:
        await broker.close()
