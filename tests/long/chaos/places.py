"""The stores of a chaos test, and their faults. Workers and producers reach a server through proxies, the test directly."""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

from tests.support.outages import SqliteOutage
from tests.support.postgres import PostgresServer
from tests.support.processes import HOST, OwnServer
from tests.support.proxy import DROP_COMMAND, DROP_REPLY, PASS, Command, Fate, Proxy
from tests.support.servers import RedisServer, redis_binaries

S = TypeVar("S", bound=OwnServer)

CLIENTS: Final = ("fleet", "lone", "producers", "users")
"""Each has its own proxy: the supervisor with its workers, the lone worker, the producers, and the user's connections of jobs and
producers, which have no time limit for an answer."""


class Place(ABC):
    """A store. As a context manager, it is empty at first. `urls` has each client's URL, `straight` the test's.

    `has_tables`  whether the user has tables in its database, and sends jobs in transactions
    `loses`       the share of commands that are lost under way, or whose reply is, if the proxies know the protocol"""

    name: ClassVar[str]
    has_tables: ClassVar[bool] = False

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.urls: dict[str, str] = {}
        self.straight = ""
        self.loses = 0.0
        self.proxies: dict[str, Proxy] = {}

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    async def be_away(self, seconds: float, chance: random.Random) -> None:
        """Let the store crash, restart or hang, and be unavailable for this long. It loses nothing that it has acknowledged."""


class Served(Place, Generic[S]):
    """The test's own server."""

    scheme: ClassVar[str]
    server: S

    def _serve(self, url: Callable[[int], str], **options: Any) -> None:
        for client in CLIENTS:
            self.proxies[client] = self._stack.enter_context(Proxy(HOST, self.server.port, **options))
        self.urls = {client: url(proxy.port) for client, proxy in self.proxies.items()}
        self.straight = url(self.server.port)

    async def be_away(self, seconds: float, chance: random.Random) -> None:
        if chance.random() < 0.3:
            await asyncio.to_thread(self.server.suspend)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self.server.resume)
            return
        await asyncio.to_thread(chance.choice((self.server.kill, self._stop)))
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self.server.start)

    @abstractmethod
    def _stop(self) -> None: ...


class RedisPlace(Served[RedisServer]):
    """Writes each command to a file before it answers, so that a crash of the server alone loses nothing."""

    name = "redis"

    def _open(self) -> None:
        self.server = self._stack.enter_context(RedisServer(self._binary(), aof=True))
        self._chance = random.Random(0)
        self._serve(lambda port: f"redis://{HOST}:{port}/0", rule=self._fate)

    def _fate(self, _command: Command) -> Fate:
        if not self.loses or self._chance.random() >= self.loses:
            return PASS
        return self._chance.choice((DROP_COMMAND, DROP_REPLY))

    def _binary(self) -> Path:
        return redis_binaries()[0].path

    def _stop(self) -> None:
        self.server.stop()


class ValkeyPlace(RedisPlace):
    name = "valkey"

    def _binary(self) -> Path:
        return next(found.path for found in redis_binaries() if found.name.startswith("valkey"))


class PostgresPlace(Served[PostgresServer]):
    name = "postgres"
    has_tables = True

    def _open(self) -> None:
        self.server = self._stack.enter_context(PostgresServer())
        database = self.server.new_database()
        self._serve(lambda port: f"postgresql://postgres@{HOST}:{port}/{database}", parse=None)

    def _stop(self) -> None:
        self.server.stop("immediate")


class SqlitePlace(Place):
    """A file, which another program locks at times. No client can be cut off from it."""

    name = "sqlite"
    has_tables = True

    def _open(self) -> None:
        self._lock = self._stack.enter_context(SqliteOutage())
        self.straight = f"{self._lock.url}?shared=1"
        self.urls = dict.fromkeys(CLIENTS, self.straight)

    async def be_away(self, seconds: float, chance: random.Random) -> None:
        await asyncio.to_thread(self._lock.go_away)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self._lock.come_back)


def places() -> tuple[type[Place], ...]:
    has_valkey = any(found.name.startswith("valkey") for found in redis_binaries()[1:])
    return SqlitePlace, RedisPlace, *((ValkeyPlace,) if has_valkey else ()), PostgresPlace
