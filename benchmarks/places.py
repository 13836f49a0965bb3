"""An empty store of each kind, by name, for workloads that measure all stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.postgres_server import PostgresServer
from benchmarks.servers import RedisServer

Place = Callable[[Path | None], AbstractContextManager[str]]
"""Provides the URL of an empty store that exists inside the block. The argument may name a folder for PostgreSQL's data."""


@contextmanager
def _sqlite(under: Path | None) -> Iterator[str]:
    with TemporaryDirectory(prefix="taskflow-benchmark-") as folder:
        yield f"sqlite:///{folder}/queue.db"


@contextmanager
def _redis(under: Path | None) -> Iterator[str]:
    with RedisServer() as server:
        yield server.url


@contextmanager
def _postgres(under: Path | None) -> Iterator[str]:
    """Provide a PostgreSQL server that accepts the connections of many workers."""
    with PostgresServer(under=under, settings={"max_connections": "600"}) as server:
        yield server.url


PLACES: Final[Mapping[str, Place]] = {"SQLite": _sqlite, "Redis": _redis, "PostgreSQL": _postgres}
