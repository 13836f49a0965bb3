"""How the suites that Redis and PostgreSQL share start a server, harm it and look at it. A new server joins by one more class here."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

import asyncpg
import pytest
import redis

from taskflow.broker.postgres import listen_connection as postgres_listen_connection
from taskflow.broker.postgres.connect import server as postgres_connect
from taskflow.broker.postgres.connect.pool import ConnectionPool
from taskflow.broker.redis import connections, wakeups as redis_wakeups
from tests.stores.postgres import scene as of_postgres
from tests.stores.redis import scene as of_redis
from tests.stores.redis.scene import Killer
from tests.stores.scene import Scene
from tests.support.postgres import PostgresServer
from tests.support.proxy import Proxy
from tests.support.servers import HOST, RedisServer

SHORT: Final = 0.3
"""Seconds of a timeout that a test has shortened."""


S = TypeVar("S", RedisServer, PostgresServer)


class ServerDriver(ABC, Generic[S]):
    """As a context manager: a server that keeps what it acknowledged, and a proxy before it."""

    name: ClassVar[str]
    ends: ClassVar[Mapping[str, Callable[[Any], None]]]
    """The ways in which the server's process may end."""

    server: S

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.server = self._stack.enter_context(self._a_server())
        self.proxy = self._stack.enter_context(self._a_proxy())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @abstractmethod
    def _a_server(self) -> Any: ...

    def _a_proxy(self) -> Proxy:
        return Proxy(HOST, self.server.port, parse=None)

    @abstractmethod
    def scene(self, *, far: bool = False) -> Scene:
        """An application on the server; if `far`, through the proxy."""

    @abstractmethod
    def listeners(self, scene: Scene) -> set[Any]:
        """Return the connections on which workers wait for wake-ups; none while the server is away."""

    @abstractmethod
    def killing(self, scene: Scene, seed: int) -> AbstractAsyncContextManager[Callable[[], int]]:
        """Let the server end connections again and again: one, all, or those that listen. Gives a function that counts them."""

    @abstractmethod
    def shorten_timeouts(self, patch: pytest.MonkeyPatch) -> None:
        """Make a second longer than every timeout of a command and of a listener."""


class RedisDriver(ServerDriver[RedisServer]):
    name = "redis"
    ends = {"stopped": RedisServer.stop, "killed": RedisServer.kill}

    def _a_server(self) -> RedisServer:
        return RedisServer(aof=True)

    def scene(self, *, far: bool = False) -> Scene:
        return of_redis.Scene(self.server, self.proxy.url() if far else None)

    def listeners(self, scene: Scene) -> set[Any]:
        with contextlib.suppress(redis.ConnectionError), self.server.client() as client:
            return {each["id"] for each in client.client_list(_type="pubsub")}
        return set()

    @asynccontextmanager
    async def killing(self, scene: Scene, seed: int) -> AsyncIterator[Callable[[], int]]:
        with Killer(self.server, seed) as killer:
            yield lambda: killer.killed

    def shorten_timeouts(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(connections, "ANSWER_TIMEOUT", SHORT)
        patch.setattr(redis_wakeups, "PING_INTERVAL", SHORT)
        patch.setattr(redis_wakeups, "PONG_TIMEOUT", SHORT)


class PostgresDriver(ServerDriver[PostgresServer]):
    name = "postgres"
    ends = {
        "stopped": partial(PostgresServer.stop, mode="fast"),
        "stopped at once": partial(PostgresServer.stop, mode="immediate"),
        "killed": PostgresServer.kill,
    }

    def _a_server(self) -> PostgresServer:
        return PostgresServer(fsync=False)

    def scene(self, *, far: bool = False) -> of_postgres.Scene:
        return of_postgres.Scene(self.server, proxy=self.proxy if far else None)

    def listeners(self, scene: Scene) -> set[Any]:
        assert isinstance(scene, of_postgres.Scene)
        return of_postgres.listeners(scene)

    @asynccontextmanager
    async def killing(self, scene: Scene, seed: int) -> AsyncIterator[Callable[[], int]]:
        assert isinstance(scene, of_postgres.Scene)
        async with of_postgres.killing(self.server, scene.database, seed) as ended:
            yield lambda: sum(ended)

    def shorten_timeouts(self, patch: pytest.MonkeyPatch) -> None:
        """To a tenth: a connection of PostgreSQL is not made as fast as one of Redis."""
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
