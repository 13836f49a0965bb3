"""The release after this one adds a kind of records and indexes: see `newer_release`. It finds a store of this release, and leaves one that
this release can still use, or it says why not."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from taskflow.broker.url import connect
from taskflow.model.errors import BrokerRefused
from tests.stores.jobs import an_envelope
from tests.stores.migrating import PostgresDriver, SqliteDriver
from tests.support.servers import shared_redis


@asynccontextmanager
async def opened(url: str) -> Any:
    broker: Any = connect(url)
    try:
        yield broker
    finally:
        await broker.close()


async def newer(url: str, *words: str) -> str:
    """Run the newer release, and return what it prints: how many jobs there are, or an error."""
    program = [sys.executable, "-m", "tests.stores.newer_release", *words, url]
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    printed, _ = await process.communicate()
    return printed.decode().strip()


@pytest.fixture(params=["sqlite", "postgres"])
def tables(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return {"sqlite": SqliteDriver, "postgres": PostgresDriver}[request.param](tmp_path)


async def test_a_newer_release_adds_tables_and_indexes(tables: Any) -> None:
    url, twin = tables.nowhere(), tables.nowhere()
    async with opened(url) as broker:
        await broker.enqueue([an_envelope()])
        before = tables.shape(url)
        assert "migrate=0" in await newer(f"{url}?migrate=0", "index")
        assert tables.shape(url) == before
        assert await newer(url, "index") == "2"
        await broker.enqueue([an_envelope()])  # it had begun before, and goes on
        assert await newer(f"{url}?migrate=0", "index") == "4"
    assert await newer(twin, "index") == "1"
    assert tables.shape(url) == tables.shape(twin) != before


async def test_a_newer_release_prints_what_it_adds(tables: Any) -> None:
    url = tables.nowhere()
    async with opened(url) as broker:
        await broker.enqueue([an_envelope()])
    tables.run(url, await newer(url, "index", "sql"))
    assert await newer(f"{url}?migrate=0", "index") == "2"


@pytest.fixture
def on_redis(request: pytest.FixtureRequest) -> str:
    return f"{shared_redis().url}?namespace={request.node.name}"


async def test_a_new_kind_needs_nothing_on_redis(on_redis: str) -> None:
    async with opened(on_redis) as broker:
        await broker.enqueue([an_envelope()])
        assert await newer(on_redis) == "2"
        await broker.enqueue([an_envelope()])
    async with opened(on_redis) as broker:
        await broker.enqueue([an_envelope()])
    assert await newer(on_redis) == "5"


async def test_redis_has_no_entries_of_a_new_index_until_it_is_rebuilt(on_redis: str) -> None:
    async with opened(on_redis) as broker:
        await broker.enqueue([an_envelope()])
    assert "without the index 'by_due': stop its workers and senders, and run `taskflow doctor --rebuild`" in await newer(on_redis, "index")
    assert await newer(on_redis, "index", "rebuild") == "2"
    assert await newer(on_redis, "index") == "3"
    async with opened(on_redis) as broker:
        with pytest.raises(BrokerRefused, match="with the index 'by_due', which this version does not know: use that version"):
            await broker.enqueue([an_envelope()])
        await broker.admin.rebuild()  # back to this release: it is the newer one's entries that would be wrong from now on
        await broker.enqueue([an_envelope()])
    assert "without the index 'by_due'" in await newer(on_redis, "index")
