"""The scene of every store on a PostgreSQL server, and what can be done to its connections and databases."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from taskflow import JobHandle
from tests.stores import scene
from tests.support.postgres import PostgresServer
from tests.support.proxy import Proxy

KILLED_INTERVAL: Final = (0.01, 0.1)

LISTENERS: Final = "(query LIKE 'LISTEN%' OR query = 'SELECT 1')"
"""Of pg_stat_activity: a listening connection, which says this when it is asked whether it is there."""


class Scene(scene.Scene):
    """In a new database of `server`, unless `database` names one; through `proxy` where there is one."""

    def __init__(self, server: PostgresServer, *, proxy: Proxy | None = None, database: str | None = None) -> None:
        self.postgres = server
        self.database = database or server.new_database()
        far = proxy.url("postgresql", credentials="postgres", path=f"/{self.database}") if proxy is not None else None
        super().__init__(server.url(self.database), far)

    async def assert_each_settled_once(self) -> None:
        """And none was added more than once."""
        await super().assert_each_settled_once()
        assert (await self.totals())["enqueue"] == len(self.handles)

    def set(self, setting: str, value: str) -> None:
        """For all connections to the database that are made from now on; the others are ended."""
        self.postgres.execute(f"ALTER DATABASE {self.database} SET {setting} = {value}")
        terminate(self.postgres, self.database)

    def reset(self, setting: str) -> None:
        self.postgres.execute(f"ALTER DATABASE {self.database} RESET {setting}")
        terminate(self.postgres, self.database)


def listeners(scene: Scene) -> set[tuple[object, ...]]:
    """Return the server's processes behind the listening connections; none while it is away."""
    with contextlib.suppress(OSError, asyncpg.PostgresError):
        return set(scene.postgres.rows(f"SELECT pid FROM pg_stat_activity WHERE {LISTENERS} AND datname = $1", scene.database))
    return set()


def terminate(server: PostgresServer, database: str, *, which: str = "true", most: int = 1_000) -> int:
    """Ends so many of the database's connections, at random; how many it were."""
    [(ended,)] = server.rows(
        "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity "
        f"WHERE datname = $1 AND backend_type = 'client backend' AND {which} ORDER BY random() LIMIT $2) AS chosen",
        database,
        most,
    )
    return int(ended)


@asynccontextmanager
async def killing(server: PostgresServer, database: str, seed: int) -> AsyncIterator[list[int]]:
    """Inside, connections to the database are ended again and again: one, all, or the listeners. How many at each time."""
    ended: list[int] = []
    chance = random.Random(seed)

    async def kill_on() -> None:
        while True:
            await asyncio.sleep(chance.uniform(*KILLED_INTERVAL))
            which, most = chance.choice((("true", 1), ("true", 1_000), (LISTENERS, 1_000)))
            ended.append(await asyncio.to_thread(terminate, server, database, which=which, most=most))

    killer = asyncio.create_task(kill_on())
    try:
        yield ended
    finally:
        killer.cancel()
        await asyncio.gather(killer, return_exceptions=True)


NOTE: Final = "tests.stores.note"
"""The scene's job."""


async def send(sql: asyncpg.Connection, options: str = "", **arguments: Any) -> JobHandle[Any]:
    """The scene's job, `options` as they stand in SQL."""
    job_id = await sql.fetchval(
        f"SELECT taskflow.enqueue('{NOTE}', $1::jsonb{options and ', ' + options})", json.dumps({"number": 1, **arguments})
    )
    return JobHandle.of(str(job_id))
