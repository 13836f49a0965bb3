"""The bare loop on SQLite, which does the least that any worker on a SQLite file must do.

It has one connection, and one transaction that settles a batch and takes the next. It uses msgpack for arguments and results,
and a trivial function as the job. It has no leases, fences, retries, keys, counters, wake-ups or error handling.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from pathlib import Path

import msgpack

SCHEMA = """
CREATE TABLE jobs (seq INTEGER PRIMARY KEY, id BLOB NOT NULL, payload BLOB, result BLOB, state INTEGER NOT NULL DEFAULT 0);
CREATE INDEX ready ON jobs (seq) WHERE state = 0;
"""


def open_file(path: Path, synchronous: str, *, any_thread: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=not any_thread)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.executescript(SCHEMA)
    return connection


def enqueue(connection: sqlite3.Connection, jobs: int, batch: int, payload: bytes) -> float:
    """Add jobs in batches. Return jobs per second."""
    began = time.perf_counter()
    for start in range(0, jobs, batch):
        rows = [(os.urandom(16), payload) for _ in range(min(batch, jobs - start))]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO jobs (id, payload) VALUES (?, ?)", rows)
        connection.execute("COMMIT")
    return jobs / (time.perf_counter() - began)


def drain(connection: sqlite3.Connection, batch: int) -> tuple[int, float]:
    """Run all jobs. Return their number, and jobs per second."""
    began, done = time.perf_counter(), 0
    settled: list[tuple[bytes, int]] = []
    while taken := _settle_and_take(connection, settled, batch):
        settled = [(_pack(len(msgpack.unpackb(payload))), seq) for seq, payload in taken]
        done += len(taken)
    return done, done / (time.perf_counter() - began)


def _settle_and_take(connection: sqlite3.Connection, settled: list[tuple[bytes, int]], batch: int) -> list[tuple[int, bytes]]:
    connection.execute("BEGIN IMMEDIATE")
    if settled:
        connection.executemany("UPDATE jobs SET state = 2, result = ?, payload = NULL WHERE seq = ?", settled)
    taken = connection.execute("SELECT seq, payload FROM jobs WHERE state = 0 ORDER BY seq LIMIT ?", (batch,)).fetchall()
    connection.executemany("UPDATE jobs SET state = 1 WHERE seq = ?", [(seq,) for seq, _ in taken])
    connection.execute("COMMIT")
    return taken


def _pack(value: int) -> bytes:
    packed = msgpack.packb(value)
    assert packed is not None
    return bytes(packed)


async def drain_in_tasks(connection: sqlite3.Connection, batch: int) -> float:
    """Run each job in a plain asyncio task, which a worker of async functions needs. Return jobs per second."""
    began, done = time.perf_counter(), 0
    settled: list[tuple[bytes, int]] = []
    loop = asyncio.get_running_loop()
    while taken := _settle_and_take(connection, settled, batch):
        tasks = [loop.create_task(_run(payload)) for _, payload in taken]
        settled = [(await task, seq) for task, (seq, _) in zip(tasks, taken, strict=True)]
        done += len(taken)
    return done / (time.perf_counter() - began)


async def _run(payload: bytes) -> bytes:
    return _pack(len(msgpack.unpackb(payload)))


async def send(connection: sqlite3.Connection, jobs: int, callers: int, payload: bytes) -> float:
    """Send from `callers` tasks. One transaction adds all waiting jobs and commits in a thread. Return jobs per second."""
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[None]] = []

    async def caller() -> None:
        for _ in range(jobs // callers):
            committed = loop.create_future()
            waiting.append(committed)
            await committed

    async def commit_all() -> None:
        left = jobs // callers * callers
        while left:
            batch = waiting[:]
            waiting.clear()
            if batch:
                await asyncio.to_thread(_insert, connection, len(batch), payload)
            for committed in batch:
                committed.set_result(None)
            left -= len(batch)
            await asyncio.sleep(0)

    began = time.perf_counter()
    await asyncio.gather(commit_all(), *(caller() for _ in range(callers)))
    return jobs / (time.perf_counter() - began)


def _insert(connection: sqlite3.Connection, jobs: int, payload: bytes) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT INTO jobs (id, payload) VALUES (?, ?)", [(os.urandom(16), payload) for _ in range(jobs)])
    connection.execute("COMMIT")
