"""Connections are ended by the server, cut and swallowed by the network."""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
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

# --- what a new one costs ------------------------------------------------------------------------------------------


async def test_a_new_connection_asks_the_server_for_no_types(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the driver would, by a statement that takes longer than all others, for each array among our columns."""
    asked = list[object]()
    introspect = vars(asyncpg.Connection)["_introspect_types"]

    async def note_and_introspect(self: asyncpg.Connection, types: object, timeout: float | None) -> object:
        asked.append(types)
        return await introspect(self, types, timeout)

    monkeypatch.setattr(asyncpg.Connection, "_introspect_types", note_and_introspect)
    async with scene.worker():
        await scene.send(range(30))
        await scene.until_done()
    assert asked == []


async def test_a_sibling_does_not_check_the_schema_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's heartbeat is one. The check would take longer than anything else that the server does for the first job."""
    broker = connect(scene.straight_url)
    await broker.read([bytes(16)])

    async def refuse(*arguments: Any) -> None:
        raise AssertionError("checked again")

    monkeypatch.setattr(schema, "check_owner", refuse)
    sibling = broker.sibling()
    await sibling.read([bytes(16)])
    await sibling.close()
    await broker.close()


async def test_connections_that_were_not_needed_for_a_while_are_closed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but one, and none of those that are in use again and again."""
    monkeypatch.setattr("taskflow.broker.postgres.connect.pool.SURPLUS_AFTER", 0.3)
    broker = connect(scene.straight_url)
    assert isinstance(broker, PostgresBroker)
    pool = ConnectionPool(broker.server)
    for kept in (2, 1):
        await asyncio.gather(*[pool.fetch("SELECT pg_sleep(0.1)") for _ in range(5)])
        assert connections(scene) == 5
        for _ in range(8):
            await asyncio.gather(*[pool.fetch("SELECT pg_sleep(0.1)") for _ in range(kept)])
        await until(partial(has_connections, scene, kept), within=5)
    await pool.close()
    await broker.close()


async def test_an_idle_worker_holds_three_connections(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for its statements, one that listens, one for its heartbeats."""
    monkeypatch.setattr("taskflow.broker.postgres.connect.pool.SURPLUS_AFTER", 0.3)
    async with scene.worker():
        await scene.send(range(500))
        await scene.until_ran(range(500))
        await until(lambda: connections(scene) <= 3)


def has_connections(scene: Scene, number: int) -> bool:
    return connections(scene) == number


def connections(scene: Scene) -> int:
    return len(scene.postgres.rows("SELECT FROM pg_stat_activity WHERE application_name = 'taskflow' AND datname = $1", scene.database))


async def test_a_statement_that_the_server_cancelled_is_sent_again_on_the_same_connection(scene: Scene) -> None:
    """A new one would plan all of it anew, and be cancelled again."""
    scene.postgres.execute("CREATE SEQUENCE turns", scene.database)
    scene.set("statement_timeout", "100")
    broker = connect(scene.straight_url)
    assert isinstance(broker, PostgresBroker)
    pool = ConnectionPool(broker.server)
    [[before]] = await pool.fetch("SELECT pg_backend_pid()")
    slow_twice = "SELECT pg_backend_pid(), pg_sleep(CASE WHEN nextval('turns') < 3 THEN 10 ELSE 0 END)"
    [[after, _]] = await pool.fetch(slow_twice)
    assert after == before
    await pool.close()


async def test_a_transaction_that_fails_leaves_no_connection_behind(scene: Scene) -> None:
    broker = connect(scene.straight_url)
    assert isinstance(broker, PostgresBroker)
    pool = ConnectionPool(broker.server)
    with pytest.raises(BrokerError, match="division by zero"):
        async with pool.transaction() as fetch:
            await fetch("SELECT 1 / 0")
    assert connections(scene) == 0
    assert [row[0] for row in await pool.fetch("SELECT 1")] == [1]
    await pool.close()


async def test_a_statement_that_is_always_cancelled_fails_in_the_end(scene: Scene) -> None:
    scene.set("statement_timeout", "50")
    broker = connect(scene.straight_url)
    assert isinstance(broker, PostgresBroker)
    pool = ConnectionPool(broker.server)
    with pytest.raises(BrokerUnavailable, match="statement timeout"):
        await pool.fetch("SELECT pg_sleep(10)")
    await pool.close()


# --- ended by the server ------------------------------------------------------------------------------------------


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


_SENDER: Final = """
import asyncio, taskflow

@taskflow.job(name="tests.stores.note")
async def note(number: int, padding: bytes = b"") -> None: ...

async def send(number):
    await note.delay(number)

async def send_many(number):
    await taskflow.enqueue([note.bind(number)])

"""
