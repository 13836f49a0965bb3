from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from tests.stores.postgres.counts import Store, a_store
from tests.stores.postgres.scene import Scene
from tests.support.postgres import PostgresServer, shared_postgres


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server that the test may damage."""
    with PostgresServer(fsync=False) as server:
        yield server


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """An application directly on the shared server, in a separate database."""
    async with Scene(shared_postgres()) as scene:
        yield scene


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with a_store(shared_postgres()) as store:
        yield store


@pytest.fixture
async def broker(store: Store) -> AsyncIterator[Broker]:
    opened = connect(store.url)
    yield opened
    await opened.close()


@pytest.fixture
async def stranger(store: Store) -> AsyncIterator[asyncpg.Connection]:
    """Another program's connection, for its own transactions."""
    connection = await asyncpg.connect(store.url)
    yield connection
    await connection.close()
