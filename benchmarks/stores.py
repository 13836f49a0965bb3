"""The stores that run as servers of a benchmark's own, each with what it is compared with."""

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
    """Running inside its block. `trip` is the name of what `Cost.trips` counts, by the job."""

    trip: ClassVar[str]

    @property
    def url(self) -> str: ...

    @property
    def dsn(self) -> str:
        """As drivers and peers take it."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def cost(self) -> Cost: ...

    def told(self) -> int:
        """Commands that clients have sent, or transactions that they have ended, since it was started, this one aside."""
        ...

    def sent(self) -> int:
        """The same of our workers, whose scripts are known: what these call is not counted."""
        ...

    def rest(self) -> None:
        """Until it has done what was put off while it was filled."""
        ...

    def occupied(self) -> int:
        """Bytes that jobs take, with what is needed to find them."""
        ...


class Bare(Protocol):
    """A module: how jobs are sent to the bare loop. As a program it is the bare loop, see `bare_redis`."""

    def add(self, url: str, jobs: int) -> float: ...

    def adding(self, url: str) -> AbstractAsyncContextManager[Command]: ...

    def commands(self, url: str, callers: int) -> AbstractAsyncContextManager[Command]: ...

    def lone_command(self, url: str) -> AbstractAsyncContextManager[Command]: ...


@dataclass(frozen=True)
class Store:
    """`program` is the module's name of `bare`."""

    name: str
    start: Callable[[], Server]
    bare: Bare
    program: str


REDIS: Final = Store("redis", RedisServer, bare_redis, "benchmarks.bare_redis")


def postgres(under: Path | None = None) -> Store:
    """With its data in that folder."""
    return Store("postgres", partial(PostgresServer, under=under), bare_postgres, "benchmarks.bare_postgres")
