"""The machine has started anew: steady times of before mean nothing."""

from __future__ import annotations

from pathlib import Path

from taskflow.model.clock import ManualClock, Seams
from taskflow.model.record import Status
from taskflow.model.schedule import Definition
from taskflow.model.verdict import Settled
from tests.stores.sqlite.support import Open, an_envelope, registered, succeeded


async def test_another_boot_voids_all_leases(open_broker: Open, path: Path) -> None:
    """Its sessions are dead at the first upkeep, and their jobs, handed back, run again; what they send is stale. Their schedules sleep."""
    clock = ManualClock()
    before = open_broker(seams=Seams(clock=clock))
    job = an_envelope()
    await before.enqueue([job])
    session = await registered(before)
    await before.define([Definition("nightly", bytes(16), b"")], session.id)
    [lease] = await before.claim(session.id, 1, [], 1)
    await before.close()

    clock.reboot()
    after = open_broker(path, seams=Seams(clock=clock))
    upkept = await after.upkeep(100)

    assert (upkept.reaped, upkept.released) == (1, 1)
    [record] = await after.read([job.id])
    assert record is not None
    assert (record.status, record.crashes, record.hand_backs) == (Status.READY, 0, 1)
    assert await after.settle([succeeded(lease)]) == [Settled.STALE]
    [schedule] = await after.console.schedules()
    assert schedule.asleep_since is not None
