"""The file is locked, removed, replaced or damaged under an open broker."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import os
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from taskflow.broker.sqlite import SqliteBroker
from taskflow.model.errors import BrokerError, BrokerUnavailable
from tests.stores.jobs import an_envelope, envelopes
from tests.stores.sqlite.support import Open, connected, locked, started
from tests.support.listing import listed


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_lock_is_waited_for_but_not_for_ever(open_broker: Open, path: Path, is_open: bool) -> None:
    """By a call, and by one that opens the file. It says what the matter is, and goes on as soon as it can."""
    broker, job = open_broker(timeout=0.3), an_envelope()
    with connected(path) as stranger:
        stranger.execute("PRAGMA journal_mode=WAL")
    if is_open:
        await broker.enqueue([an_envelope()])
    with locked(path) as stranger:
        began = time.monotonic()
        says = f"{path}.* is locked by another connection, for longer than 0.3 s: find a program"
        with pytest.raises(BrokerUnavailable, match=says):
            await (broker.enqueue([job]) if is_open else broker.migrate())
        assert 0.25 < time.monotonic() - began < 1.6
        threading.Timer(0.1, lambda: stranger.execute("ROLLBACK")).start()
        assert await broker.enqueue([job])


async def test_the_wait_is_bounded_in_all(open_broker: Open, path: Path) -> None:
    """Who comes while another waits does not wait for both."""
    broker = open_broker(timeout=1.5)
    await broker.enqueue([an_envelope()])
    with locked(path):
        first = asyncio.create_task(broker.enqueue([an_envelope()]))
        await asyncio.sleep(0.75)
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await broker.enqueue([an_envelope()])
        assert time.monotonic() - began < 2.1  # both one after the other: 2.25 s
        with pytest.raises(BrokerUnavailable):
            await first


async def test_a_process_that_writes_without_a_pause_leaves_room_for_others(broker: SqliteBroker, path: Path) -> None:
    """SQLite's own waiting pauses for up to 100 ms a time, and then hardly ever finds the lock free."""
    await broker.enqueue([an_envelope()])
    script = """
        async def main():
            await broker.read([bytes(16)])
            print("ready", flush=True)
            while True:
                await broker.enqueue(envelopes(50))

        asyncio.run(main())
    """
    waits = list[float]()
    with started(script, path) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        for _ in range(20):
            began = time.monotonic()
            await broker.enqueue([an_envelope()])
            waits.append(time.monotonic() - began)
    assert statistics.median(waits) < 0.1
    assert max(waits) < 1


@pytest.mark.parametrize("is_replaced", [False, True], ids=["removed", "replaced"])
@pytest.mark.parametrize("of_admin", [False, True], ids=["the writer", "the admin interface's reader"])
async def test_a_removed_or_replaced_file_is_not_used_any_more(open_broker: Open, path: Path, is_replaced: bool, of_admin: bool) -> None:
    """The next call says so once, so that nobody takes the new store for the old one. The one after it uses the new file."""
    broker, new = open_broker(), an_envelope()
    read: Callable[[], Awaitable[object]] = (lambda: listed(broker.admin)) if of_admin else (lambda: broker.read([new.id]))
    await broker.enqueue([an_envelope()])
    await read()
    path.unlink()
    if is_replaced:
        other = open_broker(path.with_name("other.db"))
        await other.enqueue([new])
        await other.close()
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        path.with_name("other.db").rename(path)

    with pytest.raises(BrokerUnavailable, match=f"{path}.*was removed or replaced"):
        await read()

    if of_admin:
        with pytest.raises(BrokerUnavailable, match="was removed or replaced"):  # the writer has the old file open too
            await broker.read([new.id])
    if not is_replaced:
        await broker.enqueue([new])
    assert [record.id for record in await listed(broker.admin)] == [new.id]
    assert [record is not None for record in await broker.read([new.id])] == [True]


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


async def test_neighbours_of_a_call_that_finds_the_file_damaged_may_try_again(broker: SqliteBroker, path: Path) -> None:
    await broker.enqueue(envelopes(10))
    with connected(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))

    first, *others = await asyncio.gather(*(broker.enqueue([an_envelope()]) for _ in range(4)), return_exceptions=True)

    assert isinstance(first, BrokerError)
    assert "is not an SQLite database" in str(first)
    assert [type(other) for other in others] == [BrokerUnavailable] * 3
