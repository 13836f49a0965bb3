"""Connections: what they cost, and statements that the server cancels."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg
import pytest

from taskflow import BrokerError, BrokerUnavailable
from taskflow.broker.postgres import schema
from taskflow.broker.postgres.broker import PostgresBroker
from taskflow.broker.postgres.connect.pool import ConnectionPool
from taskflow.broker.url import connect
from taskflow.worker import fetcher
from tests.stores.postgres.scene import Scene
from tests.support.waiting import until


@pytest.fixture
async def pool(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ConnectionPool]:
    monkeypatch.setattr("taskflow.broker.postgres.connect.pool.SURPLUS_AFTER", 0.3)
    broker = connect(scene.straight_url)
    assert isinstance(broker, PostgresBroker)
    pool = ConnectionPool(broker.server)
    yield pool
    await pool.close()


def connections(scene: Scene) -> int:
    return len(scene.postgres.rows("SELECT FROM pg_stat_activity WHERE application_name = 'taskflow' AND datname = $1", scene.database))


async def test_a_new_connection_asks_the_server_for_no_types(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the driver would, by a statement that takes longer than all others, for each array among our columns."""

    async def refuse(*arguments: Any) -> object:
        raise AssertionError("types are asked for")

    monkeypatch.setattr(asyncpg.Connection, "_introspect_types", refuse)
    async with scene.worker():
        await scene.send(range(30))
        await scene.until_done()


async def test_a_sibling_does_not_check_the_schema_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's heartbeat is one. The check would take longer than anything else that the server does for the first job."""
    await scene.store.read([bytes(16)])

    async def refuse(*arguments: Any) -> None:
        raise AssertionError("checked again")

    monkeypatch.setattr(schema, "check_owner", refuse)
    sibling = scene.store.sibling()
    await sibling.read([bytes(16)])
    await sibling.close()


async def test_connections_that_were_not_needed_for_a_while_are_closed(scene: Scene, pool: ConnectionPool) -> None:
    """All but one, and none of those that are in use again and again. An idle worker has one that listens and one for heartbeats, too."""
    for kept in (2, 1):
        await asyncio.gather(*[pool.fetch("SELECT pg_sleep(0.1)") for _ in range(5)])
        assert connections(scene) == 5
        for _ in range(8):
            await asyncio.gather(*[pool.fetch("SELECT pg_sleep(0.1)") for _ in range(kept)])
        await until(lambda: connections(scene) == kept, within=5)  # noqa: B023 - it is awaited here
    async with scene.worker():
        await scene.send(range(500))
        await scene.until_ran(range(500))
        await until(lambda: connections(scene) <= 1 + 3)


async def test_a_statement_that_the_server_cancelled_is_sent_again_on_the_same_connection(scene: Scene, pool: ConnectionPool) -> None:
    """A new one would plan all of it anew, and be cancelled again. One that is always cancelled fails in the end."""
    scene.postgres.execute("CREATE SEQUENCE turns", scene.database)
    scene.set("statement_timeout", "100")
    [[before]] = await pool.fetch("SELECT pg_backend_pid()")
    slow_twice = "SELECT pg_backend_pid(), pg_sleep(CASE WHEN nextval('turns') < 3 THEN 10 ELSE 0 END)"
    [[after, _]] = await pool.fetch(slow_twice)
    assert after == before
    with pytest.raises(BrokerUnavailable, match="statement timeout"):
        await pool.fetch("SELECT pg_sleep(10)")


async def test_a_transaction_that_fails_leaves_no_connection_behind(scene: Scene, pool: ConnectionPool) -> None:
    with pytest.raises(BrokerError, match="division by zero"):
        async with pool.transaction() as fetch:
            await fetch("SELECT 1 / 0")
    assert connections(scene) == 0
    assert [row[0] for row in await pool.fetch("SELECT 1")] == [1]


_SENDER: Final = """
import asyncio, taskflow

@taskflow.job(name="tests.stores.note")
async def note(number: int, padding: bytes = b"") -> None: ...

async def send(number):
    await note.delay(number)

async def send_many(number):
    await taskflow.enqueue([note.bind(number)])

"""


@pytest.mark.parametrize("sends", ["note.delay_sync({})", "asyncio.run(send({}))", "asyncio.run(send_many({}))"])
async def test_a_program_that_ends_as_soon_as_it_has_sent_has_told_the_workers(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, sends: str
) -> None:
    """A worker that hears nothing looks for itself after 5 s, or here never."""
    monkeypatch.setattr(fetcher, "POLL_INTERVAL", 3600.0)
    async with scene.worker():
        await scene.seconds_to_start(0)
        async with scene.from_afar():  # the worker's listener is connected
            pass
        for number in (1, 2):
            environment = {**os.environ, "TASKFLOW_BROKER": scene.straight_url}
            program = await asyncio.create_subprocess_exec(sys.executable, "-c", _SENDER + sends.format(number), env=environment)
            assert await program.wait() == 0
            await scene.until_ran([number], within=10)
