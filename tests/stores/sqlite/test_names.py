"""Names of jobs that no job has any more."""

from __future__ import annotations

from pathlib import Path

from taskflow.broker.console import View
from taskflow.broker.sqlite import SqliteBroker
from taskflow.broker.sqlite.upkeep import FEW_NAMES, SCRUBBED_AT_ONCE
from taskflow.model.clock import ManualClock
from taskflow.model.seams import Seams
from tests.stores.sqlite.support import Open, an_envelope, connected, registered

MANY = 3 * SCRUBBED_AT_ONCE


async def fill_and_purge(broker: SqliteBroker, clock: ManualClock, keep: int = 0) -> None:
    """Jobs of many names are purged, but for the first ones, and as much time passes as their ids stay known."""
    await broker.enqueue([an_envelope(job=f"job {number}", queue="kept" if number < keep else "default") for number in range(MANY)])
    await broker.console.purge(View(queue="default"), limit=2 * MANY)
    clock.advance(3_600.0)
    for _ in range(20):
        await broker.upkeep(1_000)


def names_of(path: Path) -> set[str]:
    with connected(path) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM taskflow_job_names")}


async def test_names_that_no_job_has_any_more_are_dropped(open_broker: Open, path: Path) -> None:
    clock = ManualClock()
    broker = open_broker(seams=Seams(clock))

    await fill_and_purge(broker, clock, keep=10)

    assert names_of(path) == {f"job {number}" for number in range(10)}


async def test_a_name_that_was_dropped_is_added_anew_whoever_remembers_it(open_broker: Open, path: Path) -> None:
    """By one with a key and by a plain one; and nobody takes another name for it."""
    clock = ManualClock()
    broker, other = open_broker(seams=Seams(clock)), open_broker(seams=Seams(clock))
    await other.enqueue([an_envelope(job=name) for name in ("job 1", "job 2", "job 3")])
    await fill_and_purge(broker, clock)
    assert not names_of(path) & {"job 1", "job 2", "job 3"}

    jobs = [an_envelope(job="job 3"), an_envelope(job="job 2", key=b"k" * 16), an_envelope(job="new"), an_envelope(job="job 1")]
    await other.enqueue(jobs)

    session = await registered(broker)
    assert [lease.envelope.job for lease in await broker.claim(session.id, 1, [], 10)] == ["job 3", "job 2", "new", "job 1"]


async def test_a_few_names_are_kept(open_broker: Open, path: Path) -> None:
    """Else a queue that is empty now and then would write its jobs' names again and again."""
    clock = ManualClock()
    broker = open_broker(seams=Seams(clock))
    await broker.enqueue([an_envelope(job=f"job {number}") for number in range(FEW_NAMES)])
    await broker.console.purge(View(), limit=MANY)
    clock.advance(3_600.0)
    for _ in range(20):
        await broker.upkeep(1_000)

    assert len(names_of(path)) == FEW_NAMES
