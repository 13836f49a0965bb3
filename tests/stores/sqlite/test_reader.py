"""The console's reads have a thread and a connection of their own."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from pathlib import Path

import pytest

from taskflow.broker.console import View
from taskflow.broker.sqlite import SqliteBroker
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.model.errors import BrokerUnavailable
from tests.stores.sqlite.support import Open, envelopes
from tests.support.listing import listed


async def test_a_read_of_the_console_does_not_hold_up_the_writer(broker: SqliteBroker) -> None:
    """Jobs are added and read while a page is being read; the page shows the file as it was when it began."""
    await broker.enqueue(envelopes(1))
    is_reading, may_end = threading.Event(), threading.Event()

    def read_slowly(store: SqliteStore) -> list[int]:
        [(before,)] = store.connection.execute("SELECT count(*) FROM taskflow_jobs")
        is_reading.set()
        may_end.wait(30)
        [(after,)] = store.connection.execute("SELECT count(*) FROM taskflow_jobs")
        return [before, after]

    slow = asyncio.create_task(broker.look(read_slowly))
    await asyncio.to_thread(is_reading.wait, 30)
    new = envelopes(2)
    await asyncio.wait_for(broker.enqueue(new), 10)
    assert None not in await asyncio.wait_for(broker.read([job.id for job in new]), 10)
    may_end.set()
    assert await slow == [1, 1]
    assert len(await listed(broker.console)) == 3


async def test_the_reader_cannot_write(broker: SqliteBroker) -> None:
    await broker.enqueue(envelopes(1))

    def write(store: SqliteStore) -> str:
        try:
            store.connection.execute("DELETE FROM taskflow_jobs")
        except sqlite3.OperationalError as error:
            return str(error)
        return "written"

    assert "readonly" in await broker.look(write)


async def test_a_file_that_was_removed_or_replaced_is_not_read_any_more(open_broker: Open, path: Path) -> None:
    """The next page says so, and the one after it reads the new file."""
    broker = open_broker()
    await broker.enqueue(envelopes(3))
    assert len(await listed(broker.console)) == 3
    for rename in (False, True):
        if rename:
            other = open_broker(path.with_name("other.db"))
            await other.enqueue(envelopes(1))
            await other.close()
            for ending in ("-wal", "-shm"):
                path.with_name(path.name + ending).unlink(missing_ok=True)
            os.replace(path.with_name("other.db"), path)
        else:
            path.unlink()
        with pytest.raises(BrokerUnavailable, match="was removed or replaced"):
            await broker.console.page(View())
        assert len(await listed(broker.console)) == int(rename)
