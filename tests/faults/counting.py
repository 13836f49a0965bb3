"""Increments in a user's table, each completed in its transaction, while workers and connections are killed."""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from contextlib import closing
from typing import Any, Final

import pytest

from tests.cli.processes import TIMEOUT, Running, Shell, until
from tests.support.postgres import shared_postgres

on_each_transactional_broker = pytest.mark.parametrize("new_store", ["sqlite", "postgres"], indirect=True)

_TASKS: Final = """
import os, random, sqlite3, time
from contextlib import closing
from taskflow import Backoff, JobContext, job

URL = os.environ["TASKFLOW_BROKER"]

def pause() -> None:
    if random.random() < 0.5:
        time.sleep(random.uniform(0, MAX_PAUSE))

def outcome(n: int) -> None:
    pause()
    if random.random() < 0.05:
        raise ValueError(f"{n} fails")
"""

_POSTGRES: Final = """
import psycopg

MAX_PAUSE = 0.02

@job(max_attempts=1000, retry=Backoff(base=0.01, max=0.1), keep_result=3600)
def increment(ctx: JobContext, n: int) -> None:
    with psycopg.connect(URL, application_name="user") as connection:
        connection.execute("UPDATE counters SET value = value + 1 WHERE number = %s", (n,))
        pause()
        ctx.complete_in(connection)
        outcome(n)
    outcome(n)
"""

_SQLITE: Final = """
MAX_PAUSE = 0.02

@job(max_attempts=1000, retry=Backoff(base=0.01, max=0.1), keep_result=3600)
def increment(ctx: JobContext, n: int) -> None:
    with closing(sqlite3.connect(URL.removeprefix("sqlite:///").partition("?")[0], timeout=30)) as connection:
        with connection:
            connection.execute("UPDATE counters SET value = value + 1 WHERE number = ?", (n,))
            pause()
            ctx.complete_in(connection)
            outcome(n)
        outcome(n)
"""

_TABLE: Final = "CREATE TABLE counters (number integer PRIMARY KEY, value integer NOT NULL DEFAULT 0)"

_END_ONE: Final = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'user' ORDER BY random() LIMIT 1
"""


class Counters:
    """The user's table in the store's database."""

    def __init__(self, url: str) -> None:
        self.is_postgres = url.startswith("postgresql")
        self._place = url.rpartition("/")[2] if self.is_postgres else url.removeprefix("sqlite:///").partition("?")[0]

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        if self.is_postgres:
            return shared_postgres().rows(sql, database=self._place)
        with closing(sqlite3.connect(self._place, timeout=30)) as connection, connection:
            return connection.execute(sql).fetchall()

    def make(self, number: int) -> None:
        self.ask(_TABLE)
        numbers = f"WITH RECURSIVE n (n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM n WHERE n < {number - 1}) SELECT n FROM n"
        self.ask(f"INSERT INTO counters (number) {numbers} RETURNING number")

    def values(self) -> dict[int, int]:
        """Return how many counters have each value."""
        return dict(self.ask("SELECT value, count(*) FROM counters GROUP BY value"))


def each_is_counted_once(shell: Shell, number: int, *, kills: int) -> None:
    """Run three workers, of which one is killed and replaced this many times, and now and then one of the user's connections. Some runs
    fail, before or after their commit. In the end each job has taken effect once, and succeeded."""
    if shell.environment["TASKFLOW_BROKER"].startswith("sqlite"):
        shell.environment["TASKFLOW_BROKER"] += "?shared=1"
    counters = Counters(shell.environment["TASKFLOW_BROKER"])
    counters.make(number)
    shell.write("tasks.py", _TASKS + (_POSTGRES if counters.is_postgres else _SQLITE))
    shell.run("-c", f"from taskflow import enqueue_sync\nfrom tasks import increment\nenqueue_sync(map(increment.bind, range({number})))")
    workers = [_worker(shell) for _ in range(3)]
    chance = random.Random(number)
    for kill in range(kills):
        while _left(shell) > number - number * (kill + 1) / (kills + 2):
            time.sleep(chance.uniform(0, 0.1))
            if counters.is_postgres:
                counters.ask(_END_ONE)
        workers[kill % 3].signal(signal.SIGKILL)
        workers[kill % 3].end()
        workers[kill % 3] = _worker(shell)
    until(lambda: _left(shell) == 0, timeout=2 * TIMEOUT)
    for worker in workers:
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0, worker.said
    assert (counters.values(), shell.counts()) == ({1: number}, {"succeeded": number})


def _worker(shell: Shell) -> Running:
    return shell.worker("--ttl", "2", "--concurrency", "3")


def _left(shell: Shell) -> int:
    counts = shell.counts()
    return counts.total() - counts["succeeded"] - counts["failed"]
