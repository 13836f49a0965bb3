"""The file gives the pages of dropped jobs back to the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskflow.model.clock import ManualClock, Seams
from taskflow.model.rules import Rules
from tests.stores.sqlite.support import Open, connected, envelopes

GONE_AFTER = Rules().keep_cancelled + Rules().repeat_for
"""The age in seconds at which an expired job has left no trace."""


def pages(path: Path) -> int:
    with connected(path) as reader:
        [(value,)] = reader.execute("PRAGMA page_count")
    return int(value)


@pytest.mark.parametrize("shared", [False, True])
async def test_a_file_shrinks_after_its_jobs_are_dropped(open_broker: Open, path: Path, shared: bool) -> None:
    """Upkeep gives back a few pages at a time. A file that other programs share keeps its size."""
    clock = ManualClock()
    broker = open_broker(seams=Seams(clock=clock), shared=shared)
    for _ in range(20):
        await broker.enqueue(envelopes(1_000, payload=bytes(200), expires=1.0))
    large = pages(path)
    for seconds in (60.0, GONE_AFTER):
        clock.advance(seconds)
        while not (await broker.upkeep(40_000)).next_in:
            pass

    for _ in range(100):
        await broker.upkeep(100)

    assert pages(path) < large / 2 if not shared else pages(path) >= large
    with connected(path) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
