"""Changes between an operation's read and its step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from taskflow.broker.admin import View
from taskflow.broker.engine import admin
from taskflow.broker.engine.jobs import enqueue
from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import Apply, Operation, Ref
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.memory.store import MemoryStore
from taskflow.broker.paging import POSITION_TYPES, _decoded, _encoded
from taskflow.broker.protocol import Added, Refused
from taskflow.model.clock import ManualClock, Seams
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory
from taskflow.model.record import Status
from taskflow.model.session import Session
from tests.support.verdicts import failed


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(ManualClock())


@pytest.fixture
def broker(store: MemoryStore) -> MemoryBroker:
    return MemoryBroker(seams=Seams(clock=ManualClock()), store=store)


async def performed(operation: Operation[Any], store: MemoryStore, before: Callable[[Apply], Awaitable[None]]) -> Any:
    """Perform an operation, and call `before` each of its steps."""
    try:
        effect = next(operation)
        while True:
            if isinstance(effect, Apply):
                await before(effect)
            effect = operation.send(store.perform(effect))
    except StopIteration as end:
        return end.value


async def test_a_job_that_was_retried_after_it_was_listed_is_not_purged(store: MemoryStore, broker: MemoryBroker) -> None:
    """An operator retries a failed job while another one purges the failed ones. The job waits again, and is not purged."""
    session, job_id = Session(id=b"s" * 16, name="host:1"), IdFactory()()
    await broker.register(session)
    await broker.enqueue([Envelope(id=job_id, job="work", payload=b"")])
    [lease] = await broker.claim(session.id, 1, [], 1)
    await broker.settle([failed(lease)])

    async def retry(step: Apply) -> None:
        await broker.admin.retry([job_id])

    assert await performed(admin.purge(View(statuses=(Status.FAILED,)), 10, broker.rules), store, retry) == 0
    [record] = await broker.read([job_id])
    assert record is not None
    assert record.status is Status.READY


async def test_a_refused_job_does_not_tie_the_others_to_the_holder_of_its_key(store: MemoryStore, broker: MemoryBroker) -> None:
    """A busy holder changes with each claim and report. The jobs beside the refused one must not be decided again for that."""
    an_id, expected = IdFactory(), set[Ref]()
    holder, refused, free = (Envelope(id=an_id(), job="work", payload=b"", key=key * 16) for key in (b"a", b"a", b"b"))
    await broker.enqueue([holder])

    async def note(effect: Apply) -> None:
        expected.update(ref for step in effect.steps for ref in step.expect)

    answers = await performed(enqueue([refused, free], broker.rules), store, note)
    assert answers == [Refused(refused.id, holder.id, "key"), Added(free.id)]
    assert expected == {Ref(Kind.JOB, free.id), Ref(Kind.KEY, b"b" * 16)}


# --- cursors of pages -------------------------------------------------------------------------------------------------


SECTIONS: list[Status | None] = [Status.FAILED]


def test_a_page_begins_behind_a_job_whose_time_is_damaged() -> None:
    """A changed bit moves the end of a job by 140,000 years. The cursor behind it was refused, so no later page could be read."""
    place = (Status.FAILED, 5, (-4_613_453_244_027_387_904, 7))
    assert _decoded(_encoded(*place), SECTIONS, POSITION_TYPES) == place


@pytest.mark.parametrize("value", [2**63, -(2**63)])
def test_a_number_that_no_store_has_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="the cursor is damaged"):
        _decoded(_encoded(Status.FAILED, 5, (value, 7)), SECTIONS, POSITION_TYPES)
