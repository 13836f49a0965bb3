"""The server ends and comes back, in the midst of work."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from functools import partial
from signal import SIGKILL
from typing import Final

import asyncpg
import pytest

from taskflow.worker.events import BrokerTrouble, SessionOpened
from tests.stores.postgres.scene import Scene, terminate
from tests.support.postgres import PostgresServer

MANY: Final = 100

End = Callable[[PostgresServer], None]


@pytest.mark.parametrize(
    "end",
    [partial(PostgresServer.stop, mode="fast"), partial(PostgresServer.stop, mode="immediate"), PostgresServer.kill],
    ids=["fast", "immediate", "killed"],
)
async def test_restarts_under_load_lose_and_repeat_nothing(server: PostgresServer, end: End, capsys: pytest.CaptureFixture[str]) -> None:
    """Three times. The worker's session and its leases survive with the rest, and every run counts."""
    async with Scene(server) as scene:
        scene.takes = 0.02
        async with scene.worker(ttl=20):
            sending = asyncio.create_task(scene.keep_sending(range(3 * MANY)))
            for number in range(3):
                await scene.until_ran([number * 20])
                assert not sending.done()
                await asyncio.to_thread(end, server)
                await asyncio.to_thread(server.start)
            await sending
            await scene.until_done()
        await scene.assert_each_settled_once()
        assert scene.runs.total() == 3 * MANY
        assert sum(isinstance(event, SessionOpened) for event in scene.events) == 1
        troubles = [event for event in scene.events if isinstance(event, BrokerTrouble)]
        assert troubles
        with capsys.disabled():
            print(f"\n{scene.runs.total()} runs of {3 * MANY} jobs over 3 restarts; {len(troubles)} troubles told")


async def test_a_backend_that_crashes_takes_all_connections_with_it_and_no_job(server: PostgresServer) -> None:
    """SIGKILL of one process, as the kernel does when memory runs out: the server ends all others and recovers by itself."""
    async with Scene(server) as scene:
        async with scene.worker(ttl=20):
            sending = asyncio.create_task(scene.keep_sending(range(MANY), by=2))
            await scene.until_ran([20])
            [(pid,)] = server.rows("SELECT pid FROM pg_stat_activity WHERE datname = $1 LIMIT 1", scene.database)
            os.kill(pid, SIGKILL)
            await sending
            await scene.until_done()
        await scene.assert_each_settled_once()
        assert scene.runs.total() == MANY


async def test_no_connection_to_be_had_for_a_while() -> None:
    """Others have them all: whoever sends waits, and what ends meanwhile is told once there is one again."""
    settings = {"max_connections": "14", "superuser_reserved_connections": "0"}
    with PostgresServer(fsync=False, settings=settings) as server:
        async with Scene(server) as scene, scene.worker(ttl=20):
            await scene.send([0])
            await scene.until_done()
            terminate(server, scene.database)
            others = await take_all(server)
            assert len(others) > 5
            sending = asyncio.create_task(scene.send(range(1, 20)))
            await asyncio.sleep(0.3)
            for connection in others:
                await connection.close()
            await sending
            await scene.until_done()
            await scene.assert_each_settled_once()


async def take_all(server: PostgresServer) -> list[asyncpg.Connection]:
    taken: list[asyncpg.Connection] = []
    with contextlib.suppress(asyncpg.TooManyConnectionsError):
        while True:
            taken.append(await asyncpg.connect(server.url(), ssl=False))
    return taken


async def test_a_server_that_is_away_at_first_is_waited_for_by_senders(server: PostgresServer) -> None:
    async with Scene(server) as scene:
        server.stop()
        sending = asyncio.create_task(scene.send(range(10)))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.start)
        await sending
        async with scene.worker():
            await scene.until_done()
        await scene.assert_each_settled_once()
