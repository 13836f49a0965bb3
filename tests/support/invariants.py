"""The invariants that hold for any store at any time, judged only by what the store shows. `tests/protocol_model` checks the fences for
every order of claims and settlements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from taskflow.broker.admin import QueueInfo
from taskflow.model.envelope import ClaimId, Envelope
from taskflow.model.ids import id_text
from taskflow.model.record import ENDED, LIVE, WAITING, Record, Status
from taskflow.model.session import SessionRecord
from taskflow.model.transitions import MOVES, Event

Fence = tuple[int, ClaimId]

_END: Final = frozenset({Event.RELEASE})  # the event that another job's end may cause
_BACK: Final = _END | {Event.HAND_BACK}

# The events that each operation may cause, with a separate entry for heartbeats that report a death. Reads, time and restarts cause none.
EVENTS: Final[Mapping[str, frozenset[Event]]] = {
    "enqueue": _END | {Event.ENQUEUE, Event.REPLACE},
    "claim": frozenset({Event.CLAIM}),
    "beat": _BACK | {Event.GHOST},
    "die": _END | {Event.CRASH},
    "settle": _BACK
    | {Event.SUCCEED, Event.FAIL, Event.DISCARD, Event.CANCEL, Event.RETRY, Event.SNOOZE, Event.PARK, Event.ENQUEUE, Event.REPLACE},
    "cancel": _END | {Event.CANCEL},
    "upkeep": _BACK | {Event.DUE, Event.CRASH, Event.EXPIRE, Event.DROP},
    "retry": frozenset({Event.REDO}),
    "run_now": frozenset({Event.DUE}),
    "purge": _END | {Event.CANCEL, Event.DROP},
}


class Shown(msgspec.Struct, frozen=True):
    """Everything that a store shows of itself: its records by id, with None for jobs that it does not know or keep."""

    records: dict[bytes, Record | None]
    queues: list[QueueInfo]
    metrics: dict[str, dict[str, int]]
    workers: list[SessionRecord]


class InvariantChecker:
    """Checks a store after each operation. Raises AssertionError that describes what the store should not have done."""

    def __init__(self) -> None:
        self._keys: dict[bytes, bytes | None] = {}
        self._last: Shown | None = None

    def expect(self, envelopes: Iterable[Envelope]) -> None:
        """Register that these envelopes were sent, now or as follow-ups."""
        self._keys.update((envelope.id, envelope.key) for envelope in envelopes)

    def restore(self) -> None:
        """Register that the store has lost its latest changes: it has forgotten some, and counts epochs again."""
        self._last = None

    def check(self, verb: str, shown: Shown) -> None:
        last, self._last = self._last, shown
        self._runs_are_leased(shown)
        self._counts_are_true(shown)
        self._keys_are_unique(shown)
        if last is not None:
            for job_id, record in shown.records.items():
                self._moved(verb, job_id, last.records.get(job_id), record)
            self._nothing_is_lost(verb, last, shown)

    def _runs_are_leased(self, shown: Shown) -> None:
        """Check that there are as many RUNNING jobs as leases of sessions that are alive or dying."""
        running = sum(queue.counts[Status.RUNNING] for queue in shown.queues)
        leases = sum(worker.leases for worker in shown.workers)
        assert running == leases, f"{running} jobs run, and sessions hold {leases} leases"
        names = {worker.session.name for worker in shown.workers}
        for job_id, record in shown.records.items():
            if record is not None and record.status is Status.RUNNING:
                _hold(record.worker in names, job_id, f"runs at {record.worker}, which is not there")

    def _counts_are_true(self, shown: Shown) -> None:
        records = [record for record in shown.records.values() if record is not None]
        seen = Counter((record.queue, record.status) for record in records if record.status in LIVE)
        told = {(queue.name, status): count for queue in shown.queues for status, count in queue.counts.items() if status in LIVE and count}
        assert told == dict(seen), f"counted are {told}, there are {dict(seen)}"

    def _keys_are_unique(self, shown: Shown) -> None:
        """Check for each key that at most one job waits and at most one runs, and that a job waiting beside a run is held behind it."""
        holders: dict[bytes, list[Record]] = {}
        for job_id, record in shown.records.items():
            key = self._keys.get(job_id)
            if key is not None and record is not None and record.status in LIVE:
                holders.setdefault(key, []).append(record)
        for records in holders.values():
            statuses = Counter(record.status for record in records)
            waiting = sum(statuses[status] for status in WAITING)
            assert statuses[Status.RUNNING] <= 1 >= waiting, f"one key has {dict(statuses)}"
            if len(records) == 2:
                assert statuses[Status.HELD] == 1, f"beside a run with its key waits {dict(statuses)}"

    def _moved(self, verb: str, job_id: bytes, before: Record | None, after: Record | None) -> None:
        """Check that a job's move consists of legal steps that the operation may take. An ended job that is no longer shown has not
        moved."""
        was, now = None if before is None else before.status, None if after is None else after.status
        if now is not None:
            # A job that was not shown may have ended: its retention was over, and then the clock was set back.
            ways = [reachable(each, EVENTS.get(verb, frozenset())) for each in ((was,) if was is not None else (None, *ENDED))]
            is_hidden = was is None and now in ENDED
            _hold(is_hidden or any(now in way for way in ways), job_id, f"went from {was} to {now} by {verb}")
        _hold(verb != "purge" or was is not Status.RUNNING or now is was, job_id, "ran, and was purged")
        if before is not None and after is not None:
            self._went_on(verb, before, after)
        if after is not None:
            self._is_consistent(after)

    def _went_on(self, verb: str, before: Record, after: Record) -> None:
        _hold(after.epoch >= before.epoch, after.id, f"its epoch fell from {before.epoch} to {after.epoch}")
        _hold(after.created_at == before.created_at, after.id, "it was created at another time")
        _hold(after.failures <= before.failures or verb == "settle", after.id, f"{verb} counted a failure")
        _hold(after.snoozes <= before.snoozes or verb == "settle", after.id, f"{verb} counted a snooze")
        _hold(after.crashes <= before.crashes or verb in ("upkeep", "die"), after.id, f"{verb} counted a crash")
        if before.status is Status.RUNNING:
            _hold(not before.cancel_requested or after.status not in WAITING, after.id, "was asked to stop, and waits again")

    def _nothing_is_lost(self, verb: str, last: Shown, shown: Shown) -> None:
        """Check that a live job disappears only if it was purged, ended without being kept, or exceeded the cap as soon as it ended."""
        gone = [
            record.id
            for record in last.records.values()
            if record is not None
            and record.status in LIVE
            and shown.records[record.id] is None
            and not (verb == "settle" and record.status is Status.RUNNING)
        ]
        assert verb in ("purge", "upkeep") or not gone, f"{[id_text(job_id) for job_id in gone]} are lost by {verb}"
        assert len(gone) <= _total(shown, Event.DROP) - _total(last, Event.DROP), f"{[id_text(job_id) for job_id in gone]} are lost"

    def _is_consistent(self, record: Record) -> None:
        has_ended = record.status in ENDED
        _hold((record.ended_at is not None) == has_ended, record.id, f"is {record.status}, and ended at {record.ended_at}")
        _hold(record.result is None or record.status is Status.SUCCEEDED, record.id, f"is {record.status}, and has a result")
        has_payload = record.payload is not None  # a success may keep its payload
        _hold(has_payload or record.status is Status.SUCCEEDED, record.id, f"is {record.status}, and has no payload")
        _hold(record.status is not Status.RUNNING or record.claimed_at is not None, record.id, "runs, and was never claimed")


def reachable(status: Status | None, events: frozenset[Event]) -> frozenset[Status | None]:
    """Return the statuses that a job can reach through these events, each any number of times."""
    found, new = frozenset[Status | None](), frozenset({status})
    while new - found:
        found |= new
        new = frozenset(to for (was, event), targets in MOVES.items() if was in found and event in events for to in targets)
    return found


def _total(shown: Shown, event: Event) -> int:
    return sum(events.get(event, 0) for events in shown.metrics.values())


def _hold(claim: object, job_id: bytes, otherwise: str) -> None:
    assert claim, f"job {id_text(job_id)} {otherwise}"
