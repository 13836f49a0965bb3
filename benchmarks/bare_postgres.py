"""The bare loop on PostgreSQL: one statement settles a batch of jobs and takes the next. See `bare_loop`.

A job that is taken has a deadline in its row, so a killed worker's jobs are not lost.

`python -m benchmarks.bare_postgres drain URL JOBS BATCH` and `... wake URL TIMES` are the worker processes, which report on stdout.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from benchmarks.bare_loop import STAMP, Loop, SettleAndTake, Taken, note_of
from benchmarks.loops import run_in_fastest_loop
from benchmarks.postgres_server import dsn_of

TABLE: Final = """
CREATE TABLE IF NOT EXISTS jobs (
    id bytea PRIMARY KEY,
    seq bigint GENERATED ALWAYS AS IDENTITY,
    state smallint NOT NULL DEFAULT 0,
    deadline bigint,
    payload bytea,
    result bytea
);
CREATE INDEX IF NOT EXISTS ready ON jobs (seq) WHERE state = 0;
"""

SETTLE_AND_TAKE: Final = """
WITH settled AS (
    UPDATE jobs SET state = 2, result = given.result, payload = NULL, deadline = NULL
    FROM unnest($1::bytea[], $2::bytea[]) AS given (id, result) WHERE jobs.id = given.id
)
UPDATE jobs SET state = 1, deadline = $4
WHERE ctid = ANY (ARRAY(SELECT ctid FROM jobs WHERE state = 0 ORDER BY seq LIMIT $3 FOR UPDATE SKIP LOCKED))
RETURNING id, payload
"""

ADD: Final = "INSERT INTO jobs (id, payload) SELECT * FROM unnest($1::bytea[], $2::bytea[])"
ADD_ONE: Final = "INSERT INTO jobs (id, payload) VALUES ($1, $2)"
ADD_AND_TELL: Final = f"WITH added AS ({ADD_ONE}) SELECT pg_notify('nudges', '')"

BATCH: Final = 1_000

# A plan that was made while the table was empty must not scan the whole table once it is full.
SETTINGS: Final = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "jit": "off"}


def add(url: str, jobs: int) -> float:
    """Add jobs by the thousand. Return jobs per second."""
    return run_in_fastest_loop(_add(url, jobs))


async def _add(url: str, jobs: int) -> float:
    async with _connected(url) as connection:
        began = time.perf_counter()
        for start in range(0, jobs, BATCH):
            number = min(BATCH, jobs - start)
            await connection.execute(ADD, [os.urandom(16) for _ in range(number)], list(map(note_of, range(start, start + number))))
        return jobs / (time.perf_counter() - began)


@asynccontextmanager
async def adding(url: str) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """Yield a function that adds a job, which returns its start time, and sends a nudge."""
    async with _connected(url) as connection:
        yield lambda: connection.execute(ADD_AND_TELL, os.urandom(16), STAMP)


@asynccontextmanager
async def commands(url: str, callers: int) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """Yield a function that adds one row in a separate statement through the driver's pool, which has a connection for each caller."""
    async with _connected(url), asyncpg.create_pool(dsn_of(url), min_size=callers, max_size=callers) as pool:
        yield lambda: pool.execute(ADD_ONE, os.urandom(16), STAMP)


@asynccontextmanager
async def lone_command(url: str) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """Yield a function that does the least that the driver can do: execute a prepared statement on a connection."""
    async with _connected(url) as connection:
        statement = await connection.prepare(ADD_ONE)
        yield lambda: statement.fetch(os.urandom(16), STAMP)


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Yield a connection to a database that has the table."""
    connection = await asyncpg.connect(dsn_of(url), server_settings=SETTINGS)
    try:
        await connection.execute(TABLE)
        yield connection
    finally:
        await connection.close()


# --- the worker process ----------------------------------------------------------------------------------------


@asynccontextmanager
async def _taking(url: str) -> AsyncIterator[SettleAndTake]:
    async with _connected(url) as connection:
        statement = await connection.prepare(SETTLE_AND_TAKE)

        async def settle_and_take(settled: list[bytes], number: int, until: int) -> Taken:
            return [(row[0], row[1]) for row in await statement.fetch(settled[0::2], settled[1::2], number, until)]

        yield settle_and_take


async def drain(url: str, jobs: int, batch: int) -> dict[str, float]:
    async with _taking(url) as settle_and_take:
        return await Loop(settle_and_take, batch).drain(jobs)


async def wake(url: str, times: int) -> list[float]:
    """Run jobs when a notification arrives on a separate connection. Return the times of the jobs' first lines."""
    async with _taking(url) as settle_and_take, _connected(url) as listener:
        nudges = asyncio.Queue[object]()

        async def heard() -> AsyncIterator[object]:
            while True:
                yield await nudges.get()

        await listener.add_listener("nudges", lambda *told: nudges.put_nowait(told))
        return await Loop(settle_and_take, 100).wake(heard(), times)


def main(what: str, url: str, *numbers: str) -> None:
    work: Any = {"drain": drain, "wake": wake}[what]
    print(json.dumps(run_in_fastest_loop(work(url, *map(int, numbers)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
