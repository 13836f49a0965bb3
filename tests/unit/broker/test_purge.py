"""What changes between the look of an operation and its step."""

from __future__ import annotations

from taskflow.broker.console import View
from taskflow.broker.engine import admin
from taskflow.broker.engine.seam import Apply
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.memory.store import MemoryStore
from taskflow.model.clock import ManualClock, Seams
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory
from taskflow.model.record import Status
from taskflow.model.session import Session
from tests.support.verdicts import failed


async def test_a_job_that_was_retried_after_it_was_listed_is_not_purged() -> None:
    """An operator retries a failed job while another one purges the failed ones. The job waits again, and stays."""
    clock = ManualClock()
    store = MemoryStore(clock)
    broker = MemoryBroker(seams=Seams(clock=clock), store=store)
    session, job_id = Session(id=b"s" * 16, name="host:1"), IdFactory()()
    await broker.register(session)
    await broker.enqueue([Envelope(id=job_id, job="work", payload=b"")])
    [lease] = await broker.claim(session.id, 1, [], 1)
    await broker.settle([failed(lease)])

    purging = admin.purge(View(statuses=(Status.FAILED,)), 10, broker.rules)
    effect = next(purging)
    purged, has_retried = None, False
    try:
        while True:
            if isinstance(effect, Apply) and not has_retried:
                await broker.console.retry([job_id])
                has_retried = True
            effect = purging.send(store.perform(effect))
    except StopIteration as end:
        purged = end.value
    assert (purged, has_retried) == (0, True)
    [record] = await broker.read([job_id])
    assert record is not None
    assert record.status is Status.READY
