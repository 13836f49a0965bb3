"""What one step of an enqueue expects."""

from __future__ import annotations

from taskflow.broker.engine.enqueue import enqueue
from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import Apply, Ref
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.memory.store import MemoryStore
from taskflow.broker.protocol import Added, Refused
from taskflow.model.clock import ManualClock, Seams
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory


async def test_a_refused_job_does_not_tie_the_others_to_the_holder_of_its_key() -> None:
    """A busy holder changes with each claim and report. The jobs beside the refused one must not be decided again for that."""
    an_id, clock = IdFactory(), ManualClock()
    store = MemoryStore(clock)
    broker = MemoryBroker(seams=Seams(clock=clock), store=store)
    holder, refused, free = (Envelope(id=an_id(), job="work", payload=b"", key=key * 16) for key in (b"a", b"a", b"b"))
    await broker.enqueue([holder])

    adding, answers = enqueue([refused, free], broker.rules), None
    effect, expected = next(adding), set[Ref]()
    try:
        while True:
            if isinstance(effect, Apply):
                expected |= {ref for step in effect.steps for ref in step.expect}
            effect = adding.send(store.perform(effect))
    except StopIteration as end:
        answers = end.value
    assert answers == [Refused(refused.id, holder.id, "key"), Added(free.id)]
    assert expected == {Ref(Kind.JOB, free.id), Ref(Kind.KEY, b"b" * 16)}
