"""A job in a file that cannot be read, and a worker that drains it."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from tests.cli.inprocess import Cli

TASKS = """
from taskflow import job

@job
async def work(n: int) -> int:
    return n
"""


@pytest.mark.parametrize(("column", "value"), [("sent", b"\xc1"), ("state", b"\xc1"), ("job", b"work\xff")])
def test_a_drain_counts_a_job_that_cannot_be_read_as_failed(cli: Cli, column: str, value: bytes) -> None:
    """Its neighbours are done, and the command ends with 1."""
    cli.write("tasks.py", TASKS)
    work = cli.load("tasks").work
    for number in range(3):
        work.delay_sync(number)
    with closing(sqlite3.connect(cli.folder / "queue.db", isolation_level=None)) as connection:
        given = "CAST(? AS TEXT)" if column == "job" else "?"
        connection.execute(f"UPDATE taskflow_jobs SET {column} = {given} WHERE seq = 2", (value,))

    cli("worker", "tasks", "--drain", code=1)

    jobs = cli.jobs()
    assert sorted(job["status"] for job in jobs) == ["failed", "succeeded", "succeeded"]
    [bad] = [job for job in jobs if job["status"] == "failed"]
    assert [found["column"] for found in bad["unreadable"]] == [column]
