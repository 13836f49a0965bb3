"""The bare loop on SQLite: the least that any worker on a SQLite file must do, to compare with.

One connection, one transaction that settles the batch that was run and takes the next, msgpack for arguments and results,
an increment as the job. No leases, fences, retries, keys, counters, wake-ups or errors.
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
    """Jobs per second, added in batches."""
    began = time.perf_counter()
    for start in range(0, jobs, batch):
        rows = [(os.urandom(16), payload) for _ in range(min(batch, jobs - start))]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO jobs (id, payload) VALUES (?, ?)", rows)
        connection.execute("COMMIT")
    return jobs / (time.perf_counter() - began)


def drain(connection: sqlite3.Connection, batch: int) -> tuple[int, float]:
    """How many jobs were run, and how many a second."""
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
    """Jobs per second with a plain asyncio task for each: what a worker of async functions cannot do without."""
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
    """Jobs per second from so many tasks: one transaction for all that wait at a time, committed in a thread."""
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
