"""Limits from an operator's view: which jobs hold slots or wait, and the numbers that were set at run time."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from taskflow.broker.admin import LimitedJob, LimitInfo
from taskflow.broker.engine import gates
from taskflow.broker.engine.decisions import decide, each_portion
from taskflow.broker.engine.draft import Draft, Plain
from taskflow.broker.engine.job import Job
from taskflow.broker.engine.moves import MOVE_SCANS, enter
from taskflow.broker.engine.records import RUNNING, SCHEDULED, Flag, Kind, Position
from taskflow.broker.engine.seam import NOW, Entry, Operation, Query, Ref, Scan, Snapshot
from taskflow.model.clock import to_seconds
from taskflow.model.ids import id_text
from taskflow.model.limits import Gate, earliest, interval
from taskflow.model.rules import Rules
from taskflow.model.transitions import Event

MAX_LISTED: Final = 10_000
MAX_COUNTED: Final = 1_000
"""The maximum number of waiting jobs that are counted at a gate."""

MAX_CROWDED: Final = 200
"""The maximum number of gates whose waiting jobs are counted. Each other gate with waiting jobs counts as having one."""

MAX_SHOWN: Final = 10
"""The maximum number of holders, and of the next jobs, that are listed for a gate."""

MAX_EXAMINED: Final = 1_000
"""The maximum number of running jobs, and of ready jobs with limits, that are read to find holders."""

Found = list[tuple[Plain, Gate]]


def records(limit: str | None, job_id: bytes | None) -> Operation[list[LimitInfo]]:
    """Return the gates of one limit or of one job. If both are None, return those of all limits that are in use or have a set number. The
    gates with the most waiting jobs come first."""
    found = yield from (_of_job(job_id) if job_id is not None else _listed(limit))
    crowded = [gate.id for record, gate in found if record.header["has_waiting"]][:MAX_CROWDED]
    scans = [Scan("gated", MAX_COUNTED, (gate_id,), with_records=False) for gate_id in crowded]
    scans += [Scan("gated", MAX_SHOWN, (gate_id,)) for gate_id in crowded]
    if any(record.header["taken"] for record, _ in found):
        scans += [Scan("leases", MAX_EXAMINED), Scan("holding", MAX_EXAMINED)]
    seen: Snapshot = yield Query(scans=tuple(scans))
    counts = dict(zip(crowded, map(len, seen.scans), strict=False))
    following = dict(zip(crowded, map(_jobs, seen.scans[len(crowded) :]), strict=False))
    holders = dict[bytes, list[Job]]()
    for job in itertools.chain.from_iterable(map(_jobs, seen.scans[2 * len(crowded) :])):
        for gate in job.limits if job.has(Flag.LIMITED) else ():
            holders.setdefault(gate.id, []).append(job)
    listed = []
    for record, gate in found:
        waiting = counts.get(gate.id, int(record.header["has_waiting"]))
        held = () if gate.per else holders.get(gate.id, ())
        listed.append(_shown(record, gate, seen.now, waiting, held, following.get(gate.id, ())))
    return sorted(listed, key=lambda each: (-each.waiting, each.limit, each.key))


def _listed(limit: str | None) -> Operation[Found]:
    seen: Snapshot = yield Query(scans=(Scan("gates", MAX_LISTED),))
    found: Found = []
    for entry in seen.scans[0]:
        assert entry.record is not None
        record = Plain(entry.ref, dict(entry.record.header), entry.record.state)
        gate = gates.in_force(record, Gate(entry.ref.id, "", "", record.header["most"]))
        if gate.id != gates.of_pause(gate.limit).id and limit in (None, gate.limit):
            found.append((record, gate))
    return found


def _of_job(job_id: bytes) -> Operation[Found]:
    ref = Ref(Kind.JOB, job_id)
    job: Snapshot = yield Query((ref,))
    record = job.records[ref]
    limits = () if record is None else Job.of_record(record).limits
    seen: Snapshot = yield Query(tuple(gates.refs_of(limits)))
    stored = [(gate, seen.records[Ref(Kind.GATE, gate.id)]) for gate in limits]
    plain = [(Plain(each.ref, dict(each.header), each.state), gate) for gate, each in stored if each is not None]
    return [(each, gates.in_force(each, gate)) for each, gate in plain]


def _jobs(entries: Iterable[Entry]) -> list[Job]:
    return [Job.of_record(entry.record) for entry in entries if entry.record is not None]


def _limited(job: Job) -> LimitedJob:
    return LimitedJob(id=id_text(job.id), job=job.header["job"], queue=job.queue, is_running=job.status == RUNNING)


def _shown(record: Plain, gate: Gate, now: int, waiting: int, holders: Sequence[Job], following: Sequence[Job]) -> LimitInfo:
    header = record.header
    opens_at = earliest(header["tat"], header["closed_until"], gate, now) if gate.per > 0 and gate.most > 0 else now
    return LimitInfo(
        limit=gate.limit,
        key=gate.key,
        n=gate.most,
        is_set=bool(header["is_set"]),
        running=header["taken"],
        waiting=waiting,
        per=to_seconds(gate.per) if gate.per else None,
        burst=gate.burst,
        opens_in=to_seconds(opens_at - now),
        closed_for=to_seconds(max(0, (header["closed_until"] or 0) - now)),
        holders=tuple(map(_limited, holders[:MAX_SHOWN])),
        next=tuple(map(_limited, following)),
    )


def set_number(gate: Gate, rules: Rules, *, is_set: bool) -> Operation[None]:
    """Set a gate's number to `gate.most`. With `is_set`, this overrides the numbers that senders declare; otherwise they may change it.
    Jobs that can now pass the gate become READY. A rate opens if it was closed, and the jobs that wait for it get new times."""

    def one(draft: Draft, gate: Gate) -> None:
        record = gates.record_of(draft, gate)
        record.header["is_set"], record.header["most"] = int(is_set), gate.most
        if record.header["tat"] is not None and gate.per:  # the jobs that have started may have used all of its burst
            record.header["closed_until"], latest = None, draft.now + gate.burst * interval(gate)
            record.header["tat"] = min(record.header["tat"], latest)
        gates.put(draft, record)

    yield from decide([gate], one, rules, [Ref(Kind.GATE, gate.id)], scans=MOVE_SCANS)
    if gate.per:
        yield from _pay_anew(gate.id, rules)


def _pay_anew(gate_id: bytes, rules: Rules) -> Operation[None]:
    """Let the jobs that wait for a rate pay again, in their order."""

    def one(draft: Draft, ref: Ref) -> bool:
        job = draft.job(ref.id)
        if job is None or job.status != SCHEDULED or job.state.paid != gate_id:
            return False
        job.header["due_at"], job.state.paid = NOW, None
        enter(draft, job, Event.DUE)
        return True

    found = list[list[Ref]]()

    def find(entries: Sequence[Entry]) -> None:
        paid = [job for job in _jobs(entries) if job.state.paid == gate_id]
        found.extend([job.ref, Ref(Kind.QUEUE, job.queue.encode()), *gates.refs_of(job.limits)] for job in paid)

    yield from each_portion(Scan("to_admit", AT_ONCE), find)
    for first in range(0, len(found), AT_ONCE):
        portion = found[first : first + AT_ONCE]
        refs = {ref for each in portion for ref in each}
        yield from decide([each[0] for each in portion], one, rules, refs, scans=MOVE_SCANS, locked=False)


# --- after another program has changed records --------------------------------------------------------------------

AT_ONCE: Final = 500
MAX_COMPARED: Final = 5_000


def miscounted() -> Operation[set[tuple[bytes, int]]]:
    """Return the gates whose number of taken slots is wrong, each with the difference. While other clients change records, some gates may
    only seem wrong. If there are too many gates, or jobs that hold slots, return none."""
    seen: Snapshot = yield Query(scans=tuple([Scan(index, MAX_COMPARED) for index in ("gates", *HOLDERS)]))
    if MAX_COMPARED in map(len, seen.scans):
        return set()
    held = Counter(_slots_of(itertools.chain(*seen.scans[1:])))
    found = [(entry.ref.id, entry.record.header["taken"] - held[entry.ref.id]) for entry in seen.scans[0] if entry.record is not None]
    return {(gate_id, difference) for gate_id, difference in found if difference}


HOLDERS: Final = ("holding", "leases")
"""The indexes that contain the jobs which hold slots."""


def _slots_of(entries: Iterable[Entry]) -> Iterator[bytes]:
    for job in _jobs(entries):
        yield from [gate.id for gate in job.limits if job.has(Flag.LIMITED) and not gate.per]


def recount(rules: Rules) -> Operation[int]:
    """Correct each gate's number of taken slots, and return how many gates were wrong. No worker may be running."""
    held = Counter[bytes]()
    for index in HOLDERS:
        after: Position | None = None
        while True:
            seen: Snapshot = yield Query(scans=(Scan(index, AT_ONCE, after=after),))
            held.update(_slots_of(seen.scans[0]))
            if len(seen.scans[0]) < AT_ONCE:
                break
            after = seen.scans[0][-1].position
    corrected, after = 0, None
    while True:
        found: Snapshot = yield Query(scans=(Scan("gates", AT_ONCE, after=after, with_records=False),))
        refs = [entry.ref for entry in found.scans[0]]
        corrected += sum((yield from decide(refs, _corrector(held), rules, refs, scans=MOVE_SCANS)))
        if len(refs) < AT_ONCE:
            return corrected
        after = found.scans[0][-1].position


def _corrector(held: Counter[bytes]) -> Callable[[Draft, Ref], bool]:
    def one(draft: Draft, ref: Ref) -> bool:
        record = draft.plain(*ref)
        gate = None if record is None else gates.in_force(record, Gate(ref.id, "", "", 0))
        if record is None or gate is None or gate.per or record.header["taken"] == held[ref.id]:
            return False
        record.header["taken"] = held[ref.id]
        gates.put(draft, record)
        return True

    return one
