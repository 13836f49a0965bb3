"""Records in this process's memory: queries, and the steps that change records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from taskflow.broker import topics
from taskflow.broker.engine.records import HEADERS, INDEXES, READY, RUNNING, Kind, Owner
from taskflow.broker.engine.seam import (
    ABSENT,
    KEEP,
    Addition,
    After,
    Answer,
    Applied,
    Apply,
    Entry,
    Full,
    Put,
    Query,
    Record,
    Ref,
    Rev,
    Scan,
    Snapshot,
    Stale,
    Step,
    refuse_repeated,
)
from taskflow.broker.memory.indexes import Places, SortedIndex, placing
from taskflow.model import wording
from taskflow.model.clock import Clock

STATUS_INDEX: Final = next(number for number, index in enumerate(INDEXES) if not index.listed)
"""The number of the index that is only counted. It changes with each move of a job, so it's counted inline for speed."""


class Stored:
    """A record in memory."""

    __slots__ = ("content", "entries", "header", "places", "rev", "sent", "state")

    def __init__(self, header: dict[str, Any]) -> None:
        self.rev: Rev = ABSENT
        self.header = header
        self.sent: bytes | None = None
        self.state: bytes | None = None
        self.content: bytes | None = None
        self.entries: Mapping[str, tuple[str | bytes, ...]] = {}
        self.places: Places = []


_PLACES: Final = {kind: placing(kind) for kind in HEADERS}
_WRITTEN: Final = {kind: frozenset(field.name for field in fields if field.owner is None) for kind, fields in HEADERS.items()}
"""The fields that a put writes to an existing record."""
_RESTARTED: Final = {kind: frozenset(field.name for field in fields if field.owner is not Owner.STORE) for kind, fields in HEADERS.items()}
"""The fields that a put writes to a new record, or if it `restarts` the job."""
_DEFAULTS: Final = {kind: {field.name: field.default for field in fields} for kind, fields in HEADERS.items()}
_STORES_OWN: Final = ("seq", "created_at")


class RecordStore:
    """Keeps records in dicts and sorted lists. `capacity` is the maximum number of live jobs; None means no limit."""

    def __init__(self, clock: Clock, capacity: int | None = None) -> None:
        self._clock = clock
        self._capacity = capacity
        self._records: dict[Ref, Stored] = {}
        self._indexes = {index.name: SortedIndex(index) for index in INDEXES}
        self._numbered = list(self._indexes.values())
        self._counts = self._indexes["status"].sizes
        self._totals = Counter[tuple[str, str]]()
        self._last_rev = self._last_seq = 0
        self.woken = list[str]()
        self.ended = list[bytes]()
        self.readied = Counter[str]()
        """The pending announcements: topics, jobs that have ended, and the number of jobs that became READY in each queue."""

    def take_wakeups(self, *, is_heard: bool) -> tuple[set[str], dict[str, int]]:
        """Take the pending announcements: return the topics to announce, and how many waiters to wake for each queue that isn't paused.

        `is_heard` is False if there are no waiters, in which case no topics are returned.
        """
        if not (self.woken or self.ended or self.readied):
            return set(), {}
        woken, readied = {*self.woken, *map(topics.job, self.ended)} if is_heard else set[str](), self.readied
        self.woken, self.ended, self.readied = [], [], Counter()
        return woken, {queue: jobs for queue, jobs in readied.items() if Ref(Kind.QUEUE, queue.encode()) not in self._records}

    # --- reading ---------------------------------------------------------------------------------------------

    def query(self, query: Query) -> Snapshot:
        return self._answer(query)

    def _answer(self, query: Query) -> Snapshot:
        return Snapshot(
            now=self._clock.wall(),
            steady=self._clock.steady(),
            boot=self._clock.boot_id().encode(),
            records={ref: self._record(ref, query.with_content) for ref in query.refs},
            scans=tuple(self._scan(scan, query.with_content) for scan in query.scans),
            groups=tuple(self._indexes[name].groups(prefix) for name, prefix in query.groups),
            totals=dict(self._totals) if query.with_totals else {},
        )

    def _scan(self, scan: Scan, with_content: bool) -> list[Entry]:
        found = self._indexes[scan.of].scan(scan)
        return [Entry(position, ref, self._record(ref, with_content) if scan.with_records else None) for position, ref in found]

    def _record(self, ref: Ref, with_content: bool) -> Record | None:
        stored = self._records.get(ref)
        if stored is None:
            return None
        return Record(ref, stored.rev, dict(stored.header), stored.sent, stored.state, stored.content if with_content else None)

    # --- steps -----------------------------------------------------------------------------------------------

    def apply(self, apply: Apply) -> tuple[list[Answer], Snapshot | None]:
        refuse_repeated(apply.steps)
        stale = [self._stale(step) for step in apply.steps]
        rev = self._new_rev()
        answers: list[Answer] = [refs or self._apply_step(step, rev, apply.grows) for step, refs in zip(apply.steps, stale, strict=True)]
        return answers, None if apply.then is None else self._answer(apply.then)

    def _stale(self, step: Step) -> Stale | None:
        changed = tuple(ref for ref, rev in step.expect.items() if self._rev(ref) != rev)
        return Stale(changed) if changed else None

    def _rev(self, ref: Ref) -> Rev:
        stored = self._records.get(ref)
        return ABSENT if stored is None else stored.rev

    def _apply_step(self, step: Step, rev: Rev, grows: bool) -> Answer:
        if past := self._past_bounds(step.adds):
            return Full(past)
        if grows and not self._has_room(sum(put.ref.kind == Kind.JOB and put.ref not in self._records for put in step.puts)):
            return Full(says=self._is_full())
        for put in step.puts:
            self._put(put, rev)
        for ref in step.drops:
            self._drop(ref)
        for addition in step.adds:
            self._add(addition)
        self._totals.update(step.totals)
        self.woken += step.wakes
        return Applied()

    def _has_room(self, jobs: int) -> bool:
        if self._capacity is None or not jobs:
            return True
        live = sum(group.size for group in self._indexes["status"].groups(()) if group.prefix[1] <= RUNNING)
        return live + jobs <= self._capacity

    def _is_full(self) -> str:
        return wording.STORE_FULL % self._capacity

    def _put(self, put: Put, rev: Rev) -> None:
        ref = put.ref
        stored = self._records.get(ref)
        if stored is None:
            stored = self._records[ref] = self._fresh(ref.kind)
            written, was = _RESTARTED[ref.kind], None
        else:
            written, was = (_RESTARTED if put.restarts else _WRITTEN)[ref.kind], stored.header.get("status")
        header = stored.header
        for name, value in put.header.items():
            if name in written:
                header[name] = self._clock.wall() + value if type(value) is After else value
        stored.rev = rev
        if put.sent is not KEEP:
            stored.sent = put.sent
        if put.state is not KEEP:
            stored.state = put.state
        if put.content is not KEEP:
            stored.content = put.content
        if put.entries is not None:
            stored.entries = {**stored.entries, **put.entries}
        self._index(ref, stored)
        if ref.kind == Kind.JOB:
            self._announce(ref, was, header)

    def _fresh(self, kind: int) -> Stored:
        stored = Stored(dict(_DEFAULTS[kind]))
        self._last_seq += 1
        by_store = {"seq": self._last_seq, "created_at": self._clock.wall()}
        stored.header.update({name: by_store[name] for name in _STORES_OWN if name in stored.header})
        return stored

    def _announce(self, ref: Ref, was: int | None, header: Mapping[str, Any]) -> None:
        status = header["status"]
        if status == READY != was:
            self.readied[header["queue"]] += 1
        elif status > RUNNING and (was is None or was <= RUNNING):
            self.ended.append(ref.id)

    def _drop(self, ref: Ref) -> None:
        stored = self._records.pop(ref, None)
        if stored is None:
            return
        for number, position in stored.places:
            if number == STATUS_INDEX:
                self._counts[position] -= 1
            else:
                self._numbered[number].remove(position, ref)
        if ref.kind == Kind.JOB and stored.header["status"] <= RUNNING:
            self.ended.append(ref.id)
        elif ref.kind == Kind.QUEUE:  # no longer paused
            queue = ref.id.decode()
            self.readied[queue] += self._indexes["status"].size((queue, READY))

    def _past_bounds(self, adds: Sequence[Addition]) -> tuple[Ref, ...]:
        """Return the records in which the additions would push a field past its bound."""
        past, sums = dict[Ref, None](), Counter[tuple[Ref, str]]()
        for ref, field, n, most in adds:
            stored = self._records.get(ref)
            if stored is not None:
                sums[ref, field] += n
                if most is not None and stored.header[field] + sums[ref, field] > most:
                    past[ref] = None
        return tuple(past)

    def _add(self, addition: Addition) -> None:
        stored = self._records.get(addition.ref)
        if stored is not None:
            stored.header[addition.field] += addition.n
            self._index(addition.ref, stored)

    def _index(self, ref: Ref, stored: Stored) -> None:
        before = stored.places
        stored.places = after = _PLACES[ref.kind](stored.header, ref.id, stored.entries)
        if before == after:
            return
        for place in before:
            if place not in after:
                number, position = place
                if number == STATUS_INDEX:
                    self._counts[position] -= 1
                else:
                    self._numbered[number].remove(position, ref)
        for place in after:
            if place not in before:
                number, position = place
                if number == STATUS_INDEX:
                    self._counts[position] = self._counts.get(position, 0) + 1
                else:
                    self._numbered[number].add(position, ref)

    def _new_rev(self) -> Rev:
        self._last_rev += 1
        return self._last_rev.to_bytes(8, "big")

    def _change(self, ref: Ref, event: str, rev: Rev, header: Mapping[str, Any]) -> None:
        """Make a hot operation's change to a job, and count and announce it."""
        stored = self._records[ref]
        was = stored.header["status"]
        stored.header.update(header)
        stored.rev = rev
        self._index(ref, stored)
        self._totals[stored.header["queue"], event] += 1
        self._announce(ref, was, stored.header)
