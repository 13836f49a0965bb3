"""Instants that no caller may give, in a store all the same: shown as the nearest that a datetime can express, on every store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from taskflow import JobHandle, Snooze, Status, job
from taskflow.model.clock import instant_of
from taskflow.model.ids import id_text, parse_id
from taskflow.model.rules import LONGEST
from tests.support.listing import listed
from tests.unit.app.bench import Bench
from tests.unit.app.jobs import add

LAST = datetime.max.replace(tzinfo=UTC)


@job(name="tests.far.snooze")
async def snooze() -> None:
    raise Snooze(after=LONGEST)


@pytest.mark.parametrize(
    ("microseconds", "instant"),
    [
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (253_402_300_799_999_999, LAST),
        (253_402_300_800_000_000, LAST),
        (2**63 - 1, LAST),
        (10**40, LAST),
        (-(10**40), datetime.min.replace(tzinfo=UTC)),
    ],
)
def test_an_instant_beyond_every_datetime_is_the_nearest_one(microseconds: int, instant: datetime) -> None:
    assert instant_of(microseconds) == instant


async def test_a_job_planned_beyond_every_datetime_spoils_no_page(bench: Bench) -> None:
    """An older sender, or SQL, may have planned it."""
    plain = await add.options(after=60).delay(1)
    far = msgspec.structs.replace(add.bind(1).envelope, at=253_402_318_799_000_000)  # the last second of the year 9999 in New York
    await bench.broker.enqueue([far])
    console = bench.broker.console
    handle = JobHandle.of(id_text(far.id), add)
    info = await handle.info()
    assert info is not None
    assert (info.status, info.due_at) == (Status.SCHEDULED, LAST)
    assert {record.id for record in await listed(console)} == {far.id, parse_id(plain.id)}
    assert await handle.cancel() is Status.SCHEDULED


async def test_the_longest_snooze_is_exact_on_every_store(bench: Bench) -> None:
    handle = await snooze.delay()
    began = bench.now
    await bench.run_all()
    info = await handle.info()
    assert info is not None
    assert info.status is Status.SCHEDULED
    assert timedelta(0) <= info.due_at - began - timedelta(seconds=LONGEST) < timedelta(seconds=60)
    assert info.due_at == bench.now + timedelta(seconds=LONGEST)
