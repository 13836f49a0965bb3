"""The file goes away under an open broker."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest

from taskflow.broker.sqlite import SqliteBroker
from taskflow.model.errors import BrokerError, BrokerUnavailable
from tests.stores.sqlite.support import Open, an_envelope, envelopes


async def test_a_removed_file_is_made_anew(broker: SqliteBroker, path: Path) -> None:
    """It is said once, so that nobody takes the new store for the old one."""
    old, new = an_envelope(), an_envelope()
    await broker.enqueue([old])
    path.unlink()

    with pytest.raises(BrokerUnavailable, match="was removed or replaced") as unavailable:
        await broker.enqueue([new])

    assert str(path) in str(unavailable.value)
    await broker.enqueue([new])
    assert [record is not None for record in await broker.read([old.id, new.id])] == [False, True]
    assert path.exists()


async def test_a_replaced_file_is_opened(open_broker: Open, path: Path, tmp_path: Path) -> None:
    old, new = an_envelope(), an_envelope()
    broker, other = open_broker(), open_broker(tmp_path / "other.db")
    await broker.enqueue([old])
    await other.enqueue([new])
    await other.close()
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink()
    (tmp_path / "other.db").rename(path)

    with pytest.raises(BrokerUnavailable):
        await broker.read([new.id])

    assert [record is not None for record in await broker.read([old.id, new.id])] == [False, True]


async def test_a_removed_folder_is_a_clear_error(open_broker: Open, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    broker = open_broker(folder / "queue.db")
    await broker.enqueue([an_envelope()])
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()

    with pytest.raises(BrokerUnavailable):
        await broker.enqueue([an_envelope()])
    folder.mkdir()
    assert await broker.enqueue([an_envelope()])


async def test_neighbours_of_a_call_that_finds_the_file_damaged_may_try_again(open_broker: Open, path: Path) -> None:
    broker = open_broker()
    await broker.enqueue(envelopes(10))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))

    calls = [broker.enqueue([an_envelope()]) for _ in range(4)]
    first, *others = await asyncio.gather(*calls, return_exceptions=True)

    assert isinstance(first, BrokerError)
    assert "is not an SQLite database" in str(first)
    assert [type(other) for other in others] == [BrokerUnavailable] * 3
