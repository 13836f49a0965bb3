"""The operations of our SQLite broker beside the bare loop: claim and settle by batch, enqueue in bulk, and bytes per job."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgpack

from benchmarks import bare_sqlite
from benchmarks.options import Options
from benchmarks.report import Row, a_pair, in_turn
from taskflow.broker.sqlite import SqliteBroker
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.ids import IdFactory
from taskflow.model.session import Session
from taskflow.model.verdict import Settlement, Succeeded

SESSION = b"benchmark-session"[:16]
BATCHES = (1, 10, 100)
JOBS = {1: 2_000, 10: 10_000, 100: 30_000}
SIZED_JOBS = 100_000
PAYLOAD = msgpack.packb({"data": "x" * 192}) or b""


def measure(options: Options) -> list[Row]:
    """Measure ours and the bare loop in turn, so that changes in the machine's speed affect both."""
    repeats = options.repeats
    rows = [a_pair("enqueue in batches of 1,000", repeats, _enqueue_ours, _enqueue_bare, figure="jobs/s")]
    for batch in BATCHES:
        what = f"claim + settle, batch {batch}"
        rows.append(a_pair(what, repeats, partial(_run_ours, batch), partial(_drain_bare, batch), figure="jobs/s"))
    return rows


def sizes(options: Options) -> list[Row]:
    what = f"{SIZED_JOBS:,} queued, payload {len(PAYLOAD)} bytes"
    return in_turn(what, options.repeats, lambda: {"bytes/job": bytes_a_job()}, part="bytes")


def bytes_a_job() -> float:
    """Return the file's bytes, including indexes, per queued job with a payload of 200 bytes."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "queue.db")
        asyncio.run(_fill(path, SIZED_JOBS))
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            [pages] = connection.execute("PRAGMA page_count").fetchone()
            [size] = connection.execute("PRAGMA page_size").fetchone()
    return float(pages * size / SIZED_JOBS)


# --- ours ------------------------------------------------------------------------------------------------


def _enqueue_ours() -> float:
    with TemporaryDirectory() as folder:
        return asyncio.run(_fill(Path(folder, "queue.db"), JOBS[100]))


async def _fill(path: Path, jobs: int) -> float:
    broker = SqliteBroker(path)
    await broker.read([bytes(16)])  # opens the file
    began = time.perf_counter()
    for envelopes in _batches(jobs, 1_000):
        await broker.enqueue(envelopes)
    rate = jobs / (time.perf_counter() - began)
    await broker.close()
    return rate


def _run_ours(batch: int) -> float:
    return asyncio.run(_drain_ours(batch))


async def _drain_ours(batch: int) -> float:
    with TemporaryDirectory() as folder:
        path, jobs = Path(folder, "queue.db"), JOBS[batch]
        await _fill(path, jobs)
        broker = SqliteBroker(path)
        await broker.register(Session(id=SESSION, name="benchmark"))
        began, request, done = time.perf_counter(), 0, 0
        settling: asyncio.Task[object] | None = None
        while True:
            request += 1
            leases = await broker.claim(SESSION, request, ("default",), batch)
            if settling is not None:
                await settling
            if not leases:
                break
            done += len(leases)
            settling = asyncio.create_task(broker.settle([_settlement(lease) for lease in leases]))
        rate = done / (time.perf_counter() - began)
        await broker.close()
    if done != jobs:
        raise AssertionError(f"{done} of {jobs} jobs were claimed")
    return rate


def _settlement(lease: Lease) -> Settlement:
    result = msgpack.packb(len(msgpack.unpackb(lease.envelope.payload))) or b""
    return Settlement(id=lease.envelope.id, epoch=lease.epoch, claim=lease.claim, verdict=Succeeded(result))


def _batches(jobs: int, size: int) -> list[Sequence[Envelope]]:
    new_id = IdFactory()
    envelopes = [Envelope(id=new_id(), job="benchmark", payload=PAYLOAD) for _ in range(jobs)]
    return [envelopes[start : start + size] for start in range(0, jobs, size)]


# --- the bare loop -----------------------------------------------------------------------------------------


def _enqueue_bare() -> float:
    with TemporaryDirectory() as folder, closing(bare_sqlite.open_file(Path(folder, "bare.db"), "FULL")) as connection:
        return bare_sqlite.enqueue(connection, JOBS[100], 1_000, PAYLOAD)


def _drain_bare(batch: int) -> float:
    with TemporaryDirectory() as folder, closing(bare_sqlite.open_file(Path(folder, "bare.db"), "FULL")) as connection:
        bare_sqlite.enqueue(connection, JOBS[batch], 1_000, PAYLOAD)
        done, rate = bare_sqlite.drain(connection, batch)
    if done != JOBS[batch]:
        raise AssertionError(f"{done} of {JOBS[batch]} jobs were run")
    return rate
