"""One job, from its enqueue to its end, by the verbs alone."""

from __future__ import annotations

from taskflow.broker.protocol import Added, Broker
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory
from taskflow.model.session import Session
from taskflow.model.verdict import Settled, Settlement, Succeeded

new_id = IdFactory()


async def one_job_is_done(broker: Broker) -> None:
    """In a queue that is its own: others do the same meanwhile."""
    queue = new_id().hex()
    envelope = Envelope(id=new_id(), job="work", payload=b"\x01payload", queue=queue)
    session = Session(id=new_id(), name="worker")
    assert await broker.enqueue([envelope]) == [Added(envelope.id)]
    await broker.register(session)
    [lease] = await broker.claim(session.id, 1, [queue], 10)
    settlement = Settlement(id=lease.envelope.id, epoch=lease.epoch, claim=lease.claim, verdict=Succeeded(b"\xc0"))
    assert await broker.settle([settlement]) == [Settled.OK]
