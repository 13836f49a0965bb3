"""A fresh store of each kind, by its name, for what is measured on all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.postgres_server import PostgresServer
from benchmarks.servers import RedisServer

Place = Callable[[Path | None], AbstractContextManager[str]]
"""The URL of an empty store that is there inside the block; a folder for the data of PostgreSQL may be named."""


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
    """Many workers have many connections."""
    with PostgresServer(under=under, settings={"max_connections": "600"}) as server:
        yield server.url


PLACES: Final[Mapping[str, Place]] = {"SQLite": _sqlite, "Redis": _redis, "PostgreSQL": _postgres}
