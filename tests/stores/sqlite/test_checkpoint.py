"""The write-ahead log is carried over, by one connection at a time, and stays bounded."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

import pytest

from taskflow.broker.console import View
from taskflow.broker.sqlite import SqliteBroker, checkpoint
from tests.stores.sqlite.support import Open, connected, envelopes

pytestmark = pytest.mark.slow

MIB = 1 << 20


def log_size(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


async def write(broker: SqliteBroker, mebibytes: int) -> None:
    for _ in range(mebibytes * 4):
        await broker.enqueue(envelopes(256, payload=bytes(1_000)))


async def test_the_log_is_bounded(broker: SqliteBroker, path: Path) -> None:
    await write(broker, 120)
    assert log_size(path) < 60 * MIB


async def test_with_two_brokers_too(open_broker: Open, path: Path) -> None:
    one, two = open_broker(), open_broker()
    await one.enqueue(envelopes(1))
    await asyncio.gather(write(one, 60), write(two, 60))
    assert log_size(path) < 100 * MIB
    with connected(path) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_nobody_makes_a_checkpoint_beside_another(broker: SqliteBroker, path: Path) -> None:
    """While somebody holds the lock on the side file the log only grows; afterwards it is carried over."""
    await broker.enqueue(envelopes(1))
    before = path.stat().st_size
    lock = os.open(f"{path}-taskflow", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    await write(broker, 40)
    assert path.stat().st_size == before
    os.close(lock)
    await write(broker, 30)
    assert path.stat().st_size > before


async def test_a_long_reader_stops_nobody(broker: SqliteBroker, path: Path) -> None:
    await broker.enqueue(envelopes(1))
    with connected(path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM taskflow_jobs").fetchall()
        await write(broker, 40)
        reader.execute("ROLLBACK")
    await write(broker, 40)
    assert log_size(path) < 100 * MIB


@pytest.mark.parametrize("is_endless", [False, True])
async def test_a_read_of_the_console_waits_for_a_checkpoint(
    broker: SqliteBroker, path: Path, monkeypatch: pytest.MonkeyPatch, is_endless: bool
) -> None:
    """Until it has ended, else for a while. The checkpoint waits for readers, so one that reads page after page would hold it up."""
    monkeypatch.setattr(checkpoint, "_BUSY_TIMEOUT_MS", 1 if is_endless else 60_000)
    await broker.enqueue(envelopes(1))
    assert len((await broker.console.page(View())).records) == 1
    lock = os.open(f"{path}-taskflow", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    reading = asyncio.create_task(broker.console.page(View()))
    if not is_endless:
        await asyncio.wait([reading], timeout=0.1)
        assert not reading.done()
        fcntl.flock(lock, fcntl.LOCK_UN)
    assert len((await asyncio.wait_for(reading, 30)).records) == 1
    os.close(lock)
