"""Jobs in the sender's transaction: their cost, commits per second of several senders, and how soon a job begins after the commit."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Final

import asyncpg

from benchmarks.loops import run_in_fastest_loop
from benchmarks.options import Options
from benchmarks.places import PLACES
from benchmarks.processes import a_worker, using
from benchmarks.report import Measured, Row, in_turn, of_latencies
from benchmarks.tasks import noop, stamp
from taskflow import run_sync
from taskflow.app.app import default_app
from taskflow.broker.url import connect

INSERT: Final = "a plain INSERT instead"
"""What is compared: the same transaction with a row of about the job's size in a table with a primary key."""

TRANSACTIONS: Final = 600
WARM: Final = 50
CLIENTS: Final = 16
SENT_FOR: Final = 5.0
TIMES: Final = 200
EVERY: Final = 0.02

TABLES: Final = (
    "CREATE TABLE orders (id {serial} PRIMARY KEY, note text)",
    "CREATE TABLE plain (id {serial} PRIMARY KEY, job text, payload {bytes}, sent_at {number})",
)
PAYLOAD: Final = bytes(40)

Transaction = Callable[[asyncpg.Connection], Awaitable[None]]


def transactions(options: Options) -> list[Row]:
    repeats = options.repeats
    alone = "a transaction with a row and a job"
    at_once = f"{CLIENTS} clients, each transaction with a row and a job"
    return [
        *in_turn(
            f"PostgreSQL: {alone}",
            repeats,
            partial(_postgres_alone, _with_job, options),
            partial(_postgres_alone, _with_insert, options),
            part="PostgreSQL",
            beside=INSERT,
        ),
        *in_turn(
            f"SQLite: {alone}",
            repeats,
            partial(_sqlite_alone, True, options),
            partial(_sqlite_alone, False, options),
            part="SQLite",
            beside=INSERT,
        ),
        *in_turn(
            f"PostgreSQL: {at_once}",
            repeats,
            partial(_postgres_at_once, _with_job, options),
            partial(_postgres_at_once, _with_insert, options),
            part="clients",
            beside=INSERT,
        ),
        *in_turn("PostgreSQL: from the commit to the job's first line", repeats, partial(_postgres_lags, options), part="PostgreSQL lag"),
        *in_turn("SQLite: from the commit to the job's first line", repeats, partial(_sqlite_lags, options), part="SQLite lag"),
    ]


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _a_database(options: Options) -> AsyncIterator[str]:
    with PLACES["PostgreSQL"](options.under) as url:
        async with using(url) as broker:
            await broker.read([bytes(16)])  # creates the schema
            connection = await asyncpg.connect(url.partition("?")[0])
            for table in TABLES:
                await connection.execute(table.format(serial="bigserial", bytes="bytea", number="bigint"))
            await connection.close()
            yield url


async def _with_job(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await connection.execute("INSERT INTO orders (note) VALUES ($1)", "an order")
        await noop.options(connection=connection).delay()


async def _with_insert(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        await connection.execute("INSERT INTO orders (note) VALUES ($1)", "an order")
        await connection.execute("INSERT INTO plain (job, payload, sent_at) VALUES ($1, $2, $3)", noop.name, PAYLOAD, time.time_ns())


def _postgres_alone(transaction: Transaction, options: Options) -> Measured:
    return run_in_fastest_loop(_one_after_another(transaction, options))


async def _one_after_another(transaction: Transaction, options: Options) -> Measured:
    async with _a_database(options) as url:
        connection = await asyncpg.connect(url.partition("?")[0])
        for _ in range(WARM):
            await transaction(connection)
        began_at = time.perf_counter()
        for _ in range(TRANSACTIONS):
            await transaction(connection)
        lasted = time.perf_counter() - began_at
        await connection.close()
    return {"ms": 1e3 * lasted / TRANSACTIONS}


def _postgres_at_once(transaction: Transaction, options: Options) -> Measured:
    return run_in_fastest_loop(_at_once(transaction, options))


async def _at_once(transaction: Transaction, options: Options) -> Measured:
    async with _a_database(options) as url:
        connections = [await asyncpg.connect(url.partition("?")[0]) for _ in range(CLIENTS)]
        committed = 0

        async def client(connection: asyncpg.Connection) -> None:
            nonlocal committed
            while time.perf_counter() < ends_at:
                await transaction(connection)
                committed += 1

        for connection in connections:
            await transaction(connection)
        ends_at = time.perf_counter() + SENT_FOR
        await asyncio.gather(*map(client, connections))
        for connection in connections:
            await connection.close()
    return {"commits/s": committed / SENT_FOR}


def _postgres_lags(options: Options) -> Measured:
    return run_in_fastest_loop(_postgres_commits(options))


async def _postgres_commits(options: Options) -> Measured:
    async with _a_database(options) as url, a_worker(url):
        connection = await asyncpg.connect(url.partition("?")[0])
        committed, handles = [], []
        for _ in range(TIMES):
            await asyncio.sleep(EVERY)
            async with connection.transaction():
                handles.append(await stamp.options(connection=connection).delay())
            committed.append(time.monotonic())
        await asyncio.sleep(0.5)
        started = [await handle.result(1) for handle in handles]
        await connection.close()
    return of_latencies([max(0.0, start - at) for start, at in zip(started, committed, strict=True)])


# --- SQLite ----------------------------------------------------------------------------------------------------------


@contextmanager
def _a_file(options: Options) -> Iterator[tuple[str, sqlite3.Connection]]:
    with PLACES["SQLite"](options.under) as url:
        url += "?shared=1"
        broker = connect(url)
        with default_app().using(broker):
            run_sync(broker.read([bytes(16)]))
            connection = sqlite3.connect(url.removeprefix("sqlite:///").removesuffix("?shared=1"))
            for table in TABLES:
                connection.execute(table.format(serial="integer", bytes="blob", number="integer"))
            yield url, connection
            connection.close()
        run_sync(broker.close())


def _sqlite_alone(with_job: bool, options: Options) -> Measured:
    with _a_file(options) as (_, connection):

        def transaction() -> None:
            with connection:
                connection.execute("INSERT INTO orders (note) VALUES (?)", ("an order",))
                if with_job:
                    noop.options(connection=connection).delay_sync()
                else:
                    row = (noop.name, PAYLOAD, time.time_ns())
                    connection.execute("INSERT INTO plain (job, payload, sent_at) VALUES (?, ?, ?)", row)

        for _ in range(WARM):
            transaction()
        began_at = time.perf_counter()
        for _ in range(TRANSACTIONS):
            transaction()
        lasted = time.perf_counter() - began_at
    return {"ms": 1e3 * lasted / TRANSACTIONS}


def _sqlite_lags(options: Options) -> Measured:
    with _a_file(options) as (url, connection):
        return run_in_fastest_loop(_sqlite_commits(url, connection))


async def _sqlite_commits(url: str, connection: sqlite3.Connection) -> Measured:
    async with using(url), a_worker(url):
        committed, handles = [], []
        for _ in range(TIMES):
            await asyncio.sleep(EVERY)
            with connection:
                handles.append(await stamp.options(connection=connection).delay())
            committed.append(time.monotonic())
        await asyncio.sleep(0.5)
        started = [await handle.result(1) for handle in handles]
    return of_latencies([max(0.0, start - at) for start, at in zip(started, committed, strict=True)])
