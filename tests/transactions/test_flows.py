"""Flows that are sent in a caller's transaction: all of their jobs exist if and only if it commits."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from taskflow import Flow, Status, Worker, group, job, run_sync
from taskflow.app.app import default_app
from taskflow.broker.url import connect
from taskflow.model.ids import parse_id
from taskflow.worker.options import WorkerOptions
from tests.support.listing import listed


@job(name="transactions.double")
async def double(n: int) -> int:
    return 2 * n


@job(name="transactions.total")
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@pytest.fixture(params=["postgresql", "sqlite"])
def connection(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """The user's connection to the broker's database."""
    with contextlib.ExitStack() as stack:
        if request.param == "postgresql":
            url = request.getfixturevalue("postgres_database")
            opened: Any = stack.enter_context(psycopg.connect(url))
        else:
            url = f"sqlite:///{tmp_path}/app.db?shared=1"
            opened = stack.enter_context(contextlib.closing(sqlite3.connect(tmp_path / "app.db", isolation_level="IMMEDIATE")))
        broker = connect(url)
        with default_app().using(broker):
            run_sync(broker.admin.queues())
            yield opened
        run_sync(broker.close())


def flow() -> Flow[int]:
    return group(double.bind(n) | double for n in range(3)) | total


def test_the_jobs_of_a_flow_exist_if_and_only_if_the_transaction_commits(connection: Any) -> None:
    within = flow().options(connection=connection)
    rolled_back = within.delay_sync()
    assert run_sync(rolled_back.status()) is None
    connection.rollback()
    handle = within.delay_sync()
    connection.commit()
    assert run_sync(rolled_back.status()) is None
    assert len(run_sync(listed(default_app().broker().admin))) == 7
    assert [run_sync(each.status()) for each in handle.flow.jobs][1::2] == [Status.HELD] * 3

    async def work() -> int:
        async with Worker(options=WorkerOptions(subscribers=())):
            return await handle.result(timeout=30)

    assert asyncio.run(work()) == 12


@pytest.mark.slow
def test_a_flow_of_ten_thousand_jobs_in_a_transaction(connection: Any) -> None:
    """It is complete, and others see none of it before the commit."""
    large = (group(double.bind(n) for n in range(9_999)) | total).options(connection=connection)
    handle = large.delay_sync()
    assert run_sync(handle.flow.jobs[0].status()) is None
    connection.commit()
    jobs = run_sync(default_app().broker().admin.flow(parse_id(handle.flow.id), limit=20_000))
    assert [job.status for job in jobs] == [Status.READY] * 9_999 + [Status.HELD]
    assert (jobs[-1].awaits, run_sync(handle.flow.cancel())) == (9_999, 10_000)
