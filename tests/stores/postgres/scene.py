"""The scene of the Redis tests on a Postgres server, and what can be done to such a server's connections and databases."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self, cast

from taskflow.app.default_app import default_app
from taskflow.broker.redis import RedisBroker
from taskflow.broker.url import connect
from tests.stores.redis import scene as of_redis
from tests.stores.redis.scene import elapsed_since, until
from tests.support.postgres import PostgresServer
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer

__all__ = ["Scene", "elapsed_since", "killing", "terminate", "until"]

KILLED_EVERY: Final = (0.01, 0.1)

EARS: Final = "(query LIKE 'LISTEN%' OR query = 'SELECT 1')"
"""Of pg_stat_activity: a listening connection, which says this when it is asked whether it is there."""


class Scene(of_redis.Scene):
    """In a new database of `server`, unless `database` names one; by way of `proxy` where there is one. The looks go straight."""

    def __init__(self, server: PostgresServer, *, proxy: Proxy | None = None, database: str | None = None) -> None:
        self.postgres = server
        self.database = database or server.new_database()
        self.straight_url = server.url(self.database)
        url = proxy.url("postgresql", credentials="postgres", path=f"/{self.database}") if proxy is not None else self.straight_url
        # The base asks the server for nothing when it is given a URL, and of the store what every broker has.
        super().__init__(cast(RedisServer, server), url)

    async def __aenter__(self) -> Self:
        self.store = cast(RedisBroker, connect(self.straight_url))
        self._stack.enter_context(default_app().using(self._broker))
        return self

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

    async def seconds_to_start(self, number: int) -> float:
        """From just before the enqueue to the job's first line."""
        began_at = time.monotonic()
        await asyncio.gather(self.send([number]), self.until_ran([number], within=10))
        return elapsed_since(began_at)


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
    """Inside, connections to the database are ended again and again: one, all, or the ears. How many at each time."""
    ended: list[int] = []
    chance = random.Random(seed)

    async def kill_on() -> None:
        while True:
            await asyncio.sleep(chance.uniform(*KILLED_EVERY))
            which, most = chance.choice((("true", 1), ("true", 1_000), (EARS, 1_000)))
            ended.append(await asyncio.to_thread(terminate, server, database, which=which, most=most))

    killer = asyncio.create_task(kill_on())
    try:
        yield ended
    finally:
        killer.cancel()
        await asyncio.gather(killer, return_exceptions=True)
