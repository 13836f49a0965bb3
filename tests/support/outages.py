"""Brokers that become unavailable and return: a server behind a proxy that cuts and refuses connections, or a file that another process
locks."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

import pytest

from tests.support.postgres import of_this_version, shared_postgres
from tests.support.proxy import Proxy
from tests.support.servers import HOST, RedisServer


class Outage(ABC):
    """A context manager for an empty store. `url` leads to it through a path that can be closed, and `straight` through one that cannot."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.url = self.straight = ""

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def go_away(self) -> None:
        """Stop answering users of `url`."""

    @abstractmethod
    def come_back(self) -> None: ...


class Proxied(Outage):
    """Cuts connections, and refuses new ones."""

    _proxy: Proxy

    def cut(self) -> None:
        """Cut all existing connections. New ones are accepted."""
        self._proxy.cut_all()

    def fall_silent(self) -> None:
        """Drop packets, while connections stay open."""
        self._proxy.blackhole()

    def go_away(self) -> None:
        self._proxy.refuse()
        self._proxy.cut_all()

    def come_back(self) -> None:
        self._proxy.heal()
        self._proxy.listen_again()


class RedisOutage(Proxied):
    name = "redis"

    def _open(self) -> None:
        server = self._stack.enter_context(RedisServer())
        self._proxy = self._stack.enter_context(Proxy(HOST, server.port))
        self.straight, self.url = server.url, self._proxy.url()


class PostgresOutage(Proxied):
    name = "postgres"

    def _open(self) -> None:
        server = shared_postgres()
        database = of_this_version(server)
        self._stack.callback(server.drop_database, database)
        self._proxy = self._stack.enter_context(Proxy(HOST, server.port, parse=None))
        self.straight = server.url(database)
        self.url = self._proxy.url("postgresql", credentials="postgres", path=f"/{database}")


class SqliteOutage(Outage):
    """Locks the file for another process. There is no way around the lock, so nothing can read the file meanwhile."""

    name = "sqlite"

    def _open(self) -> None:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="taskflow-outage-"))
        self._file = Path(folder, "queue.db")
        self._lock = ExitStack()
        self._stack.push(self._lock)
        self.url = self.straight = f"sqlite:///{self._file}"

    def go_away(self) -> None:
        """Lock the file in a separate process, because a transaction of this process would be refused at once."""
        stranger = subprocess.Popen([sys.executable, "-c", _LOCKS, self._file], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._lock.callback(stranger.communicate)
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == b"locked\n"

    def come_back(self) -> None:
        """End the process, and its transaction with it."""
        self._lock.close()


_LOCKS: Final = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
connection.close()
"""


def outages() -> tuple[type[Outage], ...]:
    return RedisOutage, PostgresOutage, SqliteOutage


@pytest.fixture(params=outages(), ids=lambda kind: kind.name)
def outage(request: pytest.FixtureRequest) -> Iterator[Outage]:
    """Provide a store of each kind, which the test can make unavailable. A conftest imports this fixture."""
    with request.param() as opened:
        yield opened
