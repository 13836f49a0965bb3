"""What must hold of any store at any time, whatever was asked of it. It is judged by what it answers and shows alone."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from taskflow.broker.console import QueueRecord
from taskflow.model.clock import Clock, instant_of
from taskflow.model.envelope import ClaimId, Envelope, Lease
from taskflow.model.ids import id_text
from taskflow.model.record import ENDED, LIVE, WAITING, Record, Status
from taskflow.model.session import SessionRecord
from taskflow.model.transitions import MOVES, Event
from taskflow.model.verdict import Settled, Settlement

Fence = tuple[int, ClaimId]

_END: Final = frozenset({Event.RELEASE})  # what the end of another job may bring about
_BACK: Final = _END | {Event.HAND_BACK}

# What each verb may do to a job, a beat that tells of a death apart from others. Looking, time, restarts do nothing.
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
    "purge": _END | {Event.CANCEL, Event.DROP},
}


class Shown(msgspec.Struct, frozen=True):
    """All that a store shows of itself: its records by id, None for what it does not know or keep."""

    records: dict[bytes, Record | None]
    queues: list[QueueRecord]
    metrics: dict[str, dict[str, int]]
    workers: list[SessionRecord]


@dataclass
class History:
    """What a store has answered so far. One that has lost its tail has the history that it had then.

    `holders`    the last lease given of each job
    `effective`  every fence under which a settlement took effect, and the last one of each job
    `finals`     the fence that ended each job
    `dead`       sessions that were told so
    `answers`    each session's last claim request, and what it got
    """

    holders: dict[bytes, Fence] = field(default_factory=dict)
    effective: dict[bytes, list[Fence]] = field(default_factory=dict)
    finals: dict[bytes, Fence] = field(default_factory=dict)
    dead: set[bytes] = field(default_factory=set)
    answers: dict[bytes, tuple[int, list[Fence]]] = field(default_factory=dict)


class InvariantChecker:
    """Looks at a store after each verb; AssertionError says what it should not have done."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._envelopes: dict[bytes, Envelope] = {}
        self._claims = set[ClaimId]()
        self._history = History()
        self._last: Shown | None = None
        self._changes_nothing = False

    def expect(self, envelopes: Iterable[Envelope]) -> None:
        """These were sent, now or as follow-ups."""
        self._envelopes.update((envelope.id, envelope) for envelope in envelopes)

    def history(self) -> History:
        return copy.deepcopy(self._history)

    def restore(self, history: History) -> None:
        """The store has lost its tail: it knows not what it knew, and counts epochs again."""
        self._history = copy.deepcopy(history)
        self._last = None

    # --- what was answered -----------------------------------------------------------------------------------------

    def answered(self, verb: str, session: bytes, *, is_lost: bool) -> None:
        """Who was once told that it is lost stays so; and being told so changes nothing."""
        if is_lost:
            self._history.dead.add(session)
            self._changes_nothing = True
        elif verb == "register" and session not in self._living():  # new, or dead for so long that it is forgotten
            self._history.dead.discard(session)
            self._history.answers.pop(session, None)
        elif verb != "register":
            assert session not in self._history.dead, f"a dead session may {verb}"

    def _living(self) -> set[bytes]:
        return set() if self._last is None else {worker.session.id for worker in self._last.workers if not worker.is_dying}

    def claimed(self, session: bytes, request: int, leases: Sequence[Lease], *, is_fresh: bool) -> None:
        """A new request gets what stands READY, under the next epoch and claim ids that never were; one sent again nothing more."""
        last, given = self._history.answers.get(session, (0, []))
        fences = [(lease.epoch, lease.claim) for lease in leases]
        if request < last:
            assert not leases, f"request {request} is answered after {last}"
        elif request == last:
            assert set(fences) <= set(given), f"request {request} gets more than the first time"
        else:
            self._history.answers[session] = (request, fences)
            for lease in leases:
                self._leased(lease, is_fresh=is_fresh)

    def _leased(self, lease: Lease, *, is_fresh: bool) -> None:
        job_id = lease.envelope.id
        before = None if self._last is None else self._last.records.get(job_id)
        _hold(not is_fresh or lease.claim not in self._claims, job_id, f"claim id {lease.claim} was given before")
        _hold(before is None or before.status is Status.READY, job_id, f"leased while {before and before.status}")
        _hold(before is None or lease.epoch == before.epoch + 1, job_id, f"epoch {lease.epoch} does not follow the last")
        _hold(not self._is_expired(before), job_id, "leased after its expiry")
        _hold(not self._is_paused(lease.envelope.queue), job_id, f"leased from {lease.envelope.queue}, which is paused")
        self._claims.add(lease.claim)
        self._history.holders[job_id] = (lease.epoch, lease.claim)

    def _is_expired(self, record: Record | None) -> bool:
        return record is not None and record.expires_at is not None and record.expires_at <= instant_of(self._clock.wall())

    def _is_paused(self, queue: str) -> bool:
        return self._last is not None and any(record.is_paused for record in self._last.queues if record.name == queue)

    def settled(self, settlements: Sequence[Settlement], answers: Sequence[Settled]) -> None:
        """OK is what is addressed to the job's present lease, or took effect last; what is neither, or sent again, changes nothing."""
        effects = [self._settled_one(*pair) for pair in zip(settlements, answers, strict=True)]
        self._changes_nothing = not any(effects)

    def _settled_one(self, settlement: Settlement, answer: Settled) -> bool:
        """Whether it took effect now."""
        job_id, fence = settlement.id, (settlement.epoch, settlement.claim)
        record = None if self._last is None else self._last.records.get(job_id)
        effective = self._history.effective.setdefault(job_id, [])
        is_repeat = fence in effective[-1:]
        is_present = record is not None and record.status is Status.RUNNING and self._history.holders.get(job_id) == fence
        if is_repeat:
            _hold(answer is Settled.OK or record is None, job_id, "a settlement that took effect last is stale")
            return False
        if self._last is not None:
            _hold((answer is Settled.OK) == is_present, job_id, f"settled {answer} while {record and record.status} under {fence}")
        if answer is Settled.OK:
            effective.append(fence)
        if answer is Settled.OK and settlement.verdict.is_final:
            _hold(self._history.finals.setdefault(job_id, fence) == fence, job_id, "ended twice by settlements")
        return answer is Settled.OK

    def retried(self, job_id: bytes) -> None:
        """An operator has given it another life."""
        self._history.finals.pop(job_id, None)

    # --- what is shown -------------------------------------------------------------------------------------------------

    def check(self, verb: str, shown: Shown) -> None:
        last, self._last = self._last, shown
        self._runs_are_leased(shown)
        self._counts_are_true(shown)
        self._keys_are_unique(shown)
        if last is not None:
            for job_id, record in shown.records.items():
                self._moved(verb, job_id, last.records.get(job_id), record)
            self._nothing_is_lost(verb, last, shown)
            assert not self._changes_nothing or shown.metrics == last.metrics, f"{verb} should have changed nothing"
        self._changes_nothing = False

    def _runs_are_leased(self, shown: Shown) -> None:
        """RUNNING means leased to a session that is alive or dying: their leases are as many as there are runs."""
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
        """At most one waits and at most one runs; one that waits beside a run is held behind it."""
        holders: dict[bytes, list[Record]] = {}
        for job_id, record in shown.records.items():
            key = self._envelopes[job_id].key if job_id in self._envelopes else None
            if key is not None and record is not None and record.status in LIVE:
                holders.setdefault(key, []).append(record)
        for records in holders.values():
            statuses = Counter(record.status for record in records)
            waiting = sum(statuses[status] for status in WAITING)
            assert statuses[Status.RUNNING] <= 1 >= waiting, f"one key has {dict(statuses)}"
            if len(records) == 2:
                assert statuses[Status.HELD] == 1, f"beside a run with its key waits {dict(statuses)}"

    def _moved(self, verb: str, job_id: bytes, before: Record | None, after: Record | None) -> None:
        """By the table, each step of it one that the verb may take. That an ended job is not shown any more is no move."""
        was, now = None if before is None else before.status, None if after is None else after.status
        if now is not None and was is None and now not in ENDED:
            self._history.finals.pop(job_id, None)
            self._history.effective.pop(job_id, None)
        if now is not None and not (was is None and now in ENDED):  # it had outlived its keep, and the clock was set back
            _hold(now in reachable(was, EVENTS.get(verb, frozenset())), job_id, f"went from {was} to {now} by {verb}")
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
        """A live job is gone at once only when it was purged, ended with no keep, or was over the cap as soon as it had ended."""
        gone = [
            record.id
            for record in last.records.values()
            if record is not None and record.status in LIVE and shown.records[record.id] is None and not self._ended_unkept(verb, record.id)
        ]
        assert verb in ("purge", "upkeep") or not gone, f"{[id_text(job_id) for job_id in gone]} are lost by {verb}"
        assert len(gone) <= _total(shown, Event.DROP) - _total(last, Event.DROP), f"{[id_text(job_id) for job_id in gone]} are lost"

    def _ended_unkept(self, verb: str, job_id: bytes) -> bool:
        return verb == "settle" and job_id in self._history.finals

    def _is_consistent(self, record: Record) -> None:
        has_ended = record.status in ENDED
        _hold((record.ended_at is not None) == has_ended, record.id, f"is {record.status}, and ended at {record.ended_at}")
        _hold(record.result is None or record.status is Status.SUCCEEDED, record.id, f"is {record.status}, and has a result")
        _hold(
            (record.payload is None) == (record.status is Status.SUCCEEDED),
            record.id,
            f"is {record.status}; its payload: {record.payload!r}",
        )
        _hold(record.status is not Status.RUNNING or record.claimed_at is not None, record.id, "runs, and was never claimed")


def reachable(status: Status | None, events: frozenset[Event]) -> frozenset[Status | None]:
    """Where these events can bring a job, each any number of times."""
    found, new = frozenset[Status | None](), frozenset({status})
    while new - found:
        found |= new
        new = frozenset(to for (was, event), targets in MOVES.items() if was in found and event in events for to in targets)
    return found


def _total(shown: Shown, event: Event) -> int:
    return sum(events.get(event, 0) for events in shown.metrics.values())


def _hold(claim: object, job_id: bytes, otherwise: str) -> None:
    assert claim, f"job {id_text(job_id)} {otherwise}"
