"""The file is locked, removed, replaced or damaged under an open broker."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import os
import sqlite3
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from taskflow.broker.sqlite import SqliteBroker
from taskflow.model.errors import BrokerError, BrokerUnavailable
from tests.stores.sqlite.support import Open, an_envelope, another_that_holds, connected, envelopes, locked
from tests.support.listing import listed


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_lock_is_waited_for(open_broker: Open, path: Path, is_open: bool) -> None:
    """By a call, and by one that opens the file."""
    broker = open_broker()
    await broker.enqueue([an_envelope()])
    with locked(path) as stranger:
        threading.Timer(0.2, lambda: stranger.execute("ROLLBACK")).start()
        assert await (broker if is_open else open_broker()).enqueue([an_envelope()])


async def test_but_not_for_ever(open_broker: Open, path: Path) -> None:
    """It says what the matter is, and goes on as soon as it can."""
    broker = open_broker(timeout=0.2)
    await broker.enqueue([an_envelope()])
    job = an_envelope()
    with locked(path):
        began = time.monotonic()
        with pytest.raises(
            BrokerUnavailable, match=r"is locked by another connection, for longer than 0.2 s: find a program"
        ) as unavailable:
            await broker.enqueue([job])
        assert 0.15 < time.monotonic() - began < 1.5
    assert str(path) in str(unavailable.value)
    assert await broker.enqueue([job])


async def test_the_wait_is_bounded_in_all(open_broker: Open, path: Path) -> None:
    """Who comes while another waits does not wait for both."""
    broker = open_broker(timeout=1.5)
    await broker.enqueue([an_envelope()])
    with another_that_holds(path):
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
        import asyncio, sys
        from taskflow.broker.sqlite import SqliteBroker
        from tests.stores.sqlite.support import envelopes

        async def main():
            broker = SqliteBroker(sys.argv[1])
            await broker.read([bytes(16)])
            print("ready", flush=True)
            while True:
                await broker.enqueue(envelopes(50))

        asyncio.run(main())
    """
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)})  # noqa: ASYNC220 - it runs beside
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        waits = list[float]()
        for _ in range(20):
            began = time.monotonic()
            await broker.enqueue([an_envelope()])
            waits.append(time.monotonic() - began)
    finally:
        writer.kill()
        writer.communicate()
    assert statistics.median(waits) < 0.1
    assert max(waits) < 1


async def test_a_lock_that_is_held_for_long_is_named(open_broker: Open, path: Path) -> None:
    with connected(path) as stranger:
        stranger.execute("PRAGMA journal_mode=WAL")
    with locked(path), pytest.raises(BrokerUnavailable, match="is locked by"):
        await open_broker(timeout=0.2).migrate()


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
