"""The stores that run as temporary servers, each with its bare loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Final, Protocol, Self

from benchmarks import bare_postgres, bare_redis
from benchmarks.cost import Cost
from benchmarks.postgres_server import PostgresServer
from benchmarks.servers import RedisServer

Command = Callable[[], Awaitable[object]]


class Server(Protocol):
    """A server that runs inside its block. `trip` names what `Cost.trips` counts per job."""

    trip: ClassVar[str]

    @property
    def url(self) -> str: ...

    @property
    def dsn(self) -> str:
        """The URL in the form that drivers and peers accept."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def cost(self) -> Cost: ...

    def told(self) -> int:
        """Return the number of commands or transactions of all clients since it was started, except those of this method."""
        ...

    def sent(self) -> int:
        """Like `told`, but for our workers, whose scripts are known: commands that scripts call are not counted."""
        ...

    def rest(self) -> None:
        """Wait until the server has finished work that it postponed while it was filled."""
        ...

    def occupied(self) -> int:
        """Return the bytes that jobs occupy, including indexes."""
        ...


class Bare(Protocol):
    """A module that sends jobs to the bare loop. Run as a program, it is the bare loop: see `bare_redis`."""

    def add(self, url: str, jobs: int) -> float: ...

    def adding(self, url: str) -> AbstractAsyncContextManager[Command]: ...

    def commands(self, url: str, callers: int) -> AbstractAsyncContextManager[Command]: ...

    def lone_command(self, url: str) -> AbstractAsyncContextManager[Command]: ...


@dataclass(frozen=True)
class Store:
    """A store with its bare loop. `program` is the module name of `bare`."""

    name: str
    start: Callable[[], Server]
    bare: Bare
    program: str


REDIS: Final = Store("redis", RedisServer, bare_redis, "benchmarks.bare_redis")


def postgres(under: Path | None = None) -> Store:
    """Return PostgreSQL as a store, with its data in the given folder."""
    return Store("postgres", partial(PostgresServer, under=under), bare_postgres, "benchmarks.bare_postgres")
