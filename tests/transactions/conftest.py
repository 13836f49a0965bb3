from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from taskflow import run_sync
from taskflow.app.app import default_app
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from tests.support.postgres import shared_postgres
from tests.transactions.handles import TABLE, a_database


@pytest.fixture(scope="module")
def postgres_database() -> Iterator[str]:
    """The URL of a database with a store and one of the user's tables, for a module's tests."""
    with a_database() as name:
        _make_store(shared_postgres().url(name))
        yield shared_postgres().url(name)


@pytest.fixture
def broker(postgres_database: str) -> Iterator[Broker]:
    """The default broker of sends without an event loop."""
    broker = connect(postgres_database)
    with default_app().using(broker):
        yield broker
    run_sync(broker.close())


@pytest.fixture
async def broker_in_loop(postgres_database: str) -> AsyncIterator[Broker]:
    """The default broker of sends in the test's event loop."""
    broker = connect(postgres_database)
    with default_app().using(broker):
        yield broker
        await broker.close()


@pytest.fixture(scope="module")
def sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a store and one of the user's tables, for a module's tests."""
    path = tmp_path_factory.mktemp("store") / "app.db"
    connection = sqlite3.connect(path)
    connection.execute(TABLE)
    connection.close()
    _make_store(f"sqlite:///{path}?shared=1")
    return path


def _make_store(url: str) -> None:
    """Create the tables: any test may be a module's first in a process."""
    broker = connect(url)
    run_sync(broker.read([bytes(16)]))
    run_sync(broker.close())
