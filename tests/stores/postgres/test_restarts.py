"""The server ends and comes back, in the midst of work."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from signal import SIGKILL
from typing import Final

import asyncpg

from tests.stores.postgres.scene import Scene, terminate
from tests.support.postgres import PostgresServer

MANY: Final = 100

End = Callable[[PostgresServer], None]


async def test_a_backend_that_crashes_takes_all_connections_with_it_and_no_job(server: PostgresServer) -> None:
    """SIGKILL of one process, as the kernel does when memory runs out: the server ends all others and recovers by itself."""
    async with Scene(server) as scene:
        async with scene.worker(ttl=20):
            sending = asyncio.create_task(scene.keep_sending(range(MANY), by=2, ahead=MANY // 4))
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
