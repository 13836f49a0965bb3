"""How the suites that Redis and PostgreSQL share start a server, damage it and read it. A new server needs one more class here."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, ClassVar, Final, Self

import asyncpg
import pytest
import redis

from taskflow.broker.postgres import listen_connection as postgres_listen_connection
from taskflow.broker.postgres.connect import server as postgres_connect
from taskflow.broker.postgres.connect.pool import ConnectionPool
from taskflow.broker.redis import connections, wakeups as redis_wakeups
from tests.stores.postgres import scene as of_postgres
from tests.stores.scene import Scene
from tests.support.postgres import PostgresServer
from tests.support.proxy import Proxy
from tests.support.servers import HOST, RedisServer

SHORT: Final = 0.3
"""Seconds of a timeout that a test has shortened."""


class ServerDriver:
    """A server that keeps what it acknowledged, and a proxy before it. Each kind has

    ends              the ways in which the server's process may end
    a_server          makes a server
    scene             returns an application on the server; if `far`, through the proxy
    listeners         returns the connections on which workers wait for wake-ups; none while the server is away
    kill              ends "one" connection, "all", or the "listeners", and returns how many were ended
    refuse_writes     lets the server be read-only, or no longer
    shorten_timeouts  makes a second longer than every timeout of a command and of a listener
    """

    a_server: ClassVar[Any]
    kill: Callable[[Any, str], int]
    server: Any
    proxy: Proxy

    @classmethod
    @contextmanager
    def started(cls) -> Iterator[Self]:
        driver = cls()
        with cls.a_server() as driver.server, Proxy(HOST, driver.server.port, parse=None) as driver.proxy:
            yield driver

    @asynccontextmanager
    async def killing(self, scene: Scene, seed: int) -> AsyncIterator[Callable[[], int]]:
        """Inside, the server ends connections again and again. Yields a function that counts them."""
        ended, chance = 0, random.Random(seed)

        async def kill_on() -> None:
            nonlocal ended
            while True:
                await asyncio.sleep(chance.uniform(0.01, 0.15))
                ended += await asyncio.to_thread(self.kill, scene, chance.choice(("one", "all", "listeners")))

        killer = asyncio.create_task(kill_on())
        try:
            yield lambda: ended
        finally:
            killer.cancel()
            await asyncio.gather(killer, return_exceptions=True)


class RedisDriver(ServerDriver):
    name = "redis"
    ends = {"stopped": RedisServer.stop, "killed": RedisServer.kill}
    a_server = staticmethod(partial(RedisServer, aof=True))

    def scene(self, *, far: bool = False) -> Scene:
        return Scene(self.server.url, self.proxy.url() if far else None)

    def listeners(self, scene: Any) -> set[Any]:
        with contextlib.suppress(redis.ConnectionError), self.server.client() as client:
            return {each["id"] for each in client.client_list(_type="pubsub")}
        return set()

    def kill(self, scene: Any, which: str) -> int:
        with self.server.client() as client:
            if which == "one":
                ids = [int(each["id"]) for each in client.client_list() if int(each["id"]) != client.client_id()]
                return int(client.client_kill_filter(_id=str(random.choice(ids)))) if ids else 0
            others = int(client.client_kill_filter(_type="normal", skipme=True)) if which == "all" else 0
            return others + int(client.client_kill_filter(_type="pubsub"))

    def refuse_writes(self, scene: Any, refused: bool) -> None:
        with self.server.client() as client:
            client.replicaof(*((HOST, 1) if refused else ("NO", "ONE")))

    def shorten_timeouts(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(connections, "ANSWER_TIMEOUT", SHORT)
        patch.setattr(redis_wakeups, "PING_INTERVAL", SHORT)
        patch.setattr(redis_wakeups, "PONG_TIMEOUT", SHORT)


class PostgresDriver(ServerDriver):
    name = "postgres"
    ends = {
        "stopped": partial(PostgresServer.stop, mode="fast"),
        "stopped at once": partial(PostgresServer.stop, mode="immediate"),
        "killed": PostgresServer.kill,
    }
    a_server = staticmethod(partial(PostgresServer, fsync=False))

    def scene(self, *, far: bool = False) -> Scene:
        return of_postgres.Scene(self.server, proxy=self.proxy if far else None)

    def listeners(self, scene: Any) -> set[Any]:
        with contextlib.suppress(OSError, asyncpg.PostgresError):
            return set(self.server.rows(f"SELECT pid FROM pg_stat_activity WHERE {of_postgres.LISTENS} AND datname = $1", scene.database))
        return set()

    def kill(self, scene: Any, which: str) -> int:
        condition = of_postgres.LISTENS if which == "listeners" else "true"
        return of_postgres.terminate(self.server, scene.database, which=condition, most=1 if which == "one" else 1_000)

    def refuse_writes(self, scene: Any, refused: bool) -> None:
        scene.set("default_transaction_read_only", "on" if refused else None)

    def shorten_timeouts(self, patch: pytest.MonkeyPatch) -> None:
        """Shorten them to a tenth: a connection of PostgreSQL is not opened as fast as one of Redis."""
        defaults: dict[str, Any] = ConnectionPool.fetch.__kwdefaults__ or {}
        patch.setitem(defaults, "within", postgres_connect.ANSWER_TIMEOUT / 10)
        patch.setattr(postgres_connect, "CONNECT_TIMEOUT", postgres_connect.CONNECT_TIMEOUT / 10)
        patch.setattr(postgres_listen_connection, "CHECK_INTERVAL", SHORT)
        execute = asyncpg.Connection.execute

        async def execute_within_less(self: asyncpg.Connection, query: str, *args: Any, timeout: float | None = None) -> str:
            return await execute(self, query, *args, timeout=timeout and timeout / 10)

        patch.setattr(asyncpg.Connection, "execute", execute_within_less)


Driver = RedisDriver | PostgresDriver

DRIVERS: Final[tuple[type[Driver], ...]] = (RedisDriver, PostgresDriver)
