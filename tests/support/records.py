"""Changes to a memory broker's records that no operation makes, for tests of how workers react."""

from __future__ import annotations

from collections.abc import Callable

from taskflow.broker.engine import moves
from taskflow.broker.engine.decisions import decide
from taskflow.broker.engine.draft import Draft
from taskflow.broker.engine.job import Job, claim_id
from taskflow.broker.engine.moves import MOVE_SCANS
from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import Operation, Query, Ref, Scan, Snapshot
from taskflow.broker.memory import MemoryBroker
from taskflow.model.envelope import ClaimId
from taskflow.model.transitions import Event, Transition


def change_job(broker: MemoryBroker, job_id: bytes, change: Callable[[Job], None]) -> None:
    """Change a stored job in place."""

    def one(draft: Draft, job_id: bytes) -> None:
        job = draft.job(job_id)
        assert job is not None
        change(job)
        draft.put(job)

    broker.perform(decide([job_id], one, broker.rules, [Ref(Kind.JOB, job_id)]))


def set_crashes(broker: MemoryBroker, job_id: bytes, crashes: int) -> None:
    change_job(broker, job_id, lambda job: setattr(job.state, "crashes", crashes))


def set_hand_backs(broker: MemoryBroker, job_id: bytes, hand_backs: int) -> None:
    change_job(broker, job_id, lambda job: setattr(job.state, "hand_backs", hand_backs))


def take_back_last(broker: MemoryBroker) -> ClaimId:
    """Make the job of the last lease READY without its worker's knowledge. Return the claim."""

    def one(draft: Draft, job_id: bytes) -> None:
        job = draft.job(job_id)
        assert job is not None
        moves.requeue(draft, job, Transition(Event.HAND_BACK, job.counters))

    def operation() -> Operation[ClaimId]:
        seen: Snapshot = yield Query(scans=(Scan("leases", 1, backwards=True, with_records=False),))
        [entry] = seen.scans[0]
        yield from decide([entry.ref.id], one, broker.rules, [entry.ref], scans=MOVE_SCANS)
        return claim_id(*entry.position)

    return broker.perform(operation())
