"""The file gives the pages of dropped jobs back to the disk."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from taskflow.broker.sqlite import SqliteBroker, shrinking
from taskflow.broker.sqlite.store_file import StoreFile
from taskflow.model.clock import ManualClock
from taskflow.model.rules import Rules
from taskflow.model.seams import Seams
from tests.stores.sqlite.support import Open, connected, envelopes

JOBS = 20_000
GONE_AFTER = Rules().keep_cancelled + Rules().repeat_for
"""The age in seconds at which an expired job has left no trace."""


def in_file(path: Path, pragma: str) -> int:
    with connected(path) as reader:
        [(value,)] = reader.execute(f"PRAGMA {pragma}")
    return int(value)


async def fill(broker: SqliteBroker, clock: ManualClock, jobs: int = JOBS) -> None:
    """Add jobs, and let all of them expire and be forgotten."""
    for _ in range(jobs // 1_000):
        await broker.enqueue(envelopes(1_000, payload=bytes(200), expires=1.0))
    for seconds in (60.0, GONE_AFTER):
        clock.advance(seconds)
        while not (await broker.upkeep(2 * jobs)).next_in:
            pass


async def shrink(broker: SqliteBroker, clock: ManualClock) -> None:
    """Let a minute pass, and call upkeep as often as it asks for."""
    clock.advance(60)
    while (await broker.upkeep(100)).next_in == shrinking.STEP_EVERY:
        pass


async def test_a_file_shrinks_after_its_jobs_are_dropped(open_broker: Open, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only pages that were free for a minute go, in steps between which the file is sound and can be copied."""
    clock = ManualClock()
    broker, other = open_broker(seams=Seams(clock=clock)), open_broker(namespace="other", seams=Seams(clock=clock))
    await broker.enqueue(envelopes(1))
    await other.enqueue(envelopes(1))
    fresh = in_file(path, "page_count")
    await fill(broker, clock)
    large, free = in_file(path, "page_count"), in_file(path, "freelist_count")
    assert free > 0.9 * large > 10 * fresh

    clock.advance(59)
    await broker.upkeep(100)
    assert in_file(path, "page_count") == large

    clock.advance(1)
    with monkeypatch.context() as short:
        short.setattr(shrinking, "_LONGEST_STEP", 0.0)
        assert (await broker.upkeep(100)).next_in == shrinking.STEP_EVERY
        assert free - 3 < in_file(path, "freelist_count") < free
    with connected(path) as reader, closing(sqlite3.connect(path.with_name("backup.db"))) as backup:
        reader.execute("VACUUM INTO ?", (str(path.with_name("copy.db")),))
        reader.backup(backup)
    await shrink(broker, clock)
    assert path.stat().st_size <= 1.2 * fresh * in_file(path, "page_size")
    for file in (path, path.with_name("copy.db"), path.with_name("backup.db")):
        with connected(file) as reader:
            assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert reader.execute("PRAGMA auto_vacuum").fetchall() == [(2,)]
            assert reader.execute("SELECT count(*) FROM taskflow_jobs, other_jobs").fetchall() == [(1,)]


@pytest.mark.parametrize("mode", [0, 2])
async def test_a_shared_file_keeps_its_size(open_broker: Open, path: Path, mode: int) -> None:
    """It belongs to another program, whatever its setting."""
    with connected(path) as owner:
        owner.execute(f"PRAGMA auto_vacuum={mode}")
        owner.execute("CREATE TABLE customers (name)")
    clock = ManualClock()
    broker = open_broker(shared=True, seams=Seams(clock=clock))
    await fill(broker, clock, 2_000)
    large = in_file(path, "page_count")

    await shrink(broker, clock)

    assert (in_file(path, "page_count"), in_file(path, "auto_vacuum")) == (large, mode)


async def test_a_long_read_puts_shrinking_off(open_broker: Open, path: Path) -> None:
    """The file cannot be cut while a read needs its old pages. Upkeep tries again later."""
    clock = ManualClock()
    broker = open_broker(seams=Seams(clock=clock))
    await fill(broker, clock, 2_000)
    with connected(path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM taskflow_jobs").fetchall()
        await shrink(broker, clock)
        before = path.stat().st_size
        await broker.enqueue(envelopes(1))
        await broker.upkeep(100)
        assert path.stat().st_size == before

    await shrink(broker, clock)

    assert path.stat().st_size < before // 4


async def test_a_nearly_full_disk_leaves_room_for_jobs(open_broker: Open, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The space might go to another program, and new jobs would then be refused."""
    clock = ManualClock()
    broker = open_broker(seams=Seams(clock=clock))
    await fill(broker, clock, 2_000)
    monkeypatch.setattr(StoreFile, "is_scarce", lambda _: True)
    monkeypatch.setattr(shrinking, "AMPLE", 100 * in_file(path, "page_size"))

    await shrink(broker, clock)

    assert in_file(path, "freelist_count") == 100
