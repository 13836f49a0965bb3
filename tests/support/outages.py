"""Brokers that go away and come back: a server behind a proxy that cuts and refuses, a file that a stranger locks."""

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

from tests.support.postgres import shared_postgres
from tests.support.proxy import Proxy
from tests.support.servers import HOST, RedisServer


class Outage(ABC):
    """As a context manager: an empty store inside. `url` leads to it by the way that can be closed, `straight` by one that cannot."""

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
        """Nobody who uses `url` is answered any more."""

    @abstractmethod
    def come_back(self) -> None: ...


class Proxied(Outage):
    """Connections are cut, new ones refused."""

    _proxy: Proxy

    def cut(self) -> None:
        """Every connection that there is. New ones are accepted."""
        self._proxy.cut_all()

    def fall_silent(self) -> None:
        """Packets vanish, and connections stay open."""
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
        database = server.new_database()
        self._stack.callback(server.drop_database, database)
        self._proxy = self._stack.enter_context(Proxy(HOST, server.port, parse=None))
        self.straight = server.url(database)
        self.url = self._proxy.url("postgresql", credentials="postgres", path=f"/{database}")


class SqliteOutage(Outage):
    """The file is locked by somebody who keeps it to himself. There is no way round that: nobody can look meanwhile."""

    name = "sqlite"

    def _open(self) -> None:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="taskflow-outage-"))
        self._file = Path(folder, "queue.db")
        self._lock = ExitStack()
        self._stack.push(self._lock)
        self.url = self.straight = f"sqlite:///{self._file}"

    def go_away(self) -> None:
        """In a process of its own: a transaction of this process is refused at once."""
        stranger = subprocess.Popen([sys.executable, "-c", _LOCKS, self._file], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._lock.callback(stranger.communicate)
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == b"locked\n"

    def come_back(self) -> None:
        """The process ends, and its transaction with it."""
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
    """A store of each kind, which the test can take away. A conftest imports it."""
    with request.param() as opened:
        yield opened
