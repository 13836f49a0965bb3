"""Limits from an operator's view: which jobs hold slots or wait, and the numbers that were set at run time."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from taskflow.broker.admin import MAX_LISTED, LimitedJob, LimitInfo
from taskflow.broker.engine import gates
from taskflow.broker.engine.decisions import PORTION, admit_again, decide, each_portion, portions
from taskflow.broker.engine.draft import Draft
from taskflow.broker.engine.job import Job
from taskflow.broker.engine.moves import MOVE_SCANS, enter
from taskflow.broker.engine.records import RUNNING, SCHEDULED, Flag, Kind
from taskflow.broker.engine.seam import NOW, Entry, Operation, Query, Record, Ref, Scan, Snapshot
from taskflow.model.clock import to_seconds
from taskflow.model.ids import id_text
from taskflow.model.limits import Gate, earliest, interval
from taskflow.model.rules import Rules
from taskflow.model.transitions import Event

MAX_COUNTED: Final = 1_000
"""The maximum number of waiting jobs that are counted at a gate."""

MAX_CROWDED: Final = 200
"""The maximum number of gates whose waiting jobs are counted. Each other gate with waiting jobs counts as having one."""

MAX_SHOWN: Final = 10
"""The maximum number of holders, and of the next jobs, that are listed for a gate."""

MAX_EXAMINED: Final = 1_000
"""The maximum number of running jobs, and of ready jobs with limits, that are read to find holders."""


def records(limit: str | None, job_id: bytes | None) -> Operation[list[LimitInfo]]:
    """Return the gates of one limit or of one job. If both are None, return those of all limits that are in use or have a set number. The
    gates with the most waiting jobs come first."""
    found = yield from _found(limit, job_id)
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


def _found(limit: str | None, job_id: bytes | None) -> Operation[list[tuple[Record, Gate]]]:
    """Return the stored gates, without those of paused queues, each with its numbers in force."""
    if job_id is None:
        return (yield from _matching(limit))
    ref = Ref(Kind.JOB, job_id)
    job: Snapshot = yield Query((ref,))
    record = job.records[ref]
    declared = () if record is None else Job.of_record(record).limits
    seen: Snapshot = yield Query(tuple(gates.refs_of(declared)))
    return _in_force(seen.records.values(), limit, {gate.id: gate for gate in declared})


def _matching(limit: str | None) -> Operation[list[tuple[Record, Gate]]]:
    """Return up to `MAX_LISTED` of all gates, or of those of one limit, however many gates come before them."""
    found = list[tuple[Record, Gate]]()

    def take(entries: Sequence[Entry]) -> bool:
        found.extend(_in_force([entry.record for entry in entries], limit, {}))
        return len(found) >= MAX_LISTED

    yield from each_portion(Scan("gates", PORTION), take)
    return found[:MAX_LISTED]


def _in_force(stored: Iterable[Record | None], limit: str | None, names: Mapping[bytes, Gate]) -> list[tuple[Record, Gate]]:
    found = [(each, names.get(each.ref.id) or Gate(each.ref.id, "", "", each.header["most"])) for each in stored if each is not None]
    in_force = [(record, gates.in_force(record, gate)) for record, gate in found]
    return [each for each in in_force if limit in (None, each[1].limit) and each[1].id != gates.of_pause(each[1].limit).id]


def _jobs(entries: Iterable[Entry]) -> list[Job]:
    return [Job.of_record(entry.record) for entry in entries if entry.record is not None]


def _limited(job: Job) -> LimitedJob:
    return LimitedJob(id=id_text(job.id), job=job.header["job"], queue=job.queue, is_running=job.status == RUNNING)


def _shown(record: Record, gate: Gate, now: int, waiting: int, holders: Sequence[Job], following: Sequence[Job]) -> LimitInfo:
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
    Jobs that can now pass the gate become READY, and READY jobs above the number wait again. A rate opens if it was closed, and the jobs
    that wait for it get new times."""

    def one(draft: Draft, gate: Gate) -> bool:
        record = gates.record_of(draft, gate)
        record.header["is_set"], record.header["most"] = int(is_set), gate.most
        if record.header["tat"] is not None and gate.per:  # the jobs that have started may have used all of its burst
            record.header["closed_until"], latest = None, draft.now + gate.burst * interval(gate)
            record.header["tat"] = min(record.header["tat"], latest)
        gates.put(draft, record)
        taken: int = record.header["taken"]
        return taken > gate.most

    [is_over] = yield from decide([gate], one, rules, [Ref(Kind.GATE, gate.id)], scans=MOVE_SCANS)
    if gate.per:
        yield from _pay_anew(gate.id, rules)
    elif is_over:
        ready = list[Job]()
        yield from each_portion(Scan("holding", PORTION), lambda entries: ready.extend(_jobs(entries)))
        yield from admit_again({gate.id}, sorted(ready, key=lambda job: job.header["since"] or 0)[::-1], rules)


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

    yield from each_portion(Scan("to_admit", PORTION), find)
    for portion in portions(found):
        refs = {ref for each in portion for ref in each}
        yield from decide([each[0] for each in portion], one, rules, refs, scans=MOVE_SCANS, locked=False)


# --- after another program has changed records --------------------------------------------------------------------

MAX_COMPARED: Final = 5_000

HOLDERS: Final = ("holding", "leases")
"""The indexes that contain the jobs which hold slots."""


def miscounted() -> Operation[set[tuple[Ref, int]]]:
    """Return the gates whose number of taken slots is wrong, each with the difference. While other clients change records, some gates may
    only seem wrong. If there are too many gates, or jobs that hold slots, return none."""
    seen: Snapshot = yield Query(scans=tuple([Scan(index, MAX_COMPARED) for index in ("gates", *HOLDERS)]))
    if MAX_COMPARED in map(len, seen.scans):
        return set()
    return set(_differences(seen.scans[0], Counter(_slots_of(itertools.chain(*seen.scans[1:])))))


def recount(rules: Rules) -> Operation[int]:
    """Correct each gate's number of taken slots, and return how many gates were wrong. No worker may be running."""
    held, wrong = Counter[bytes](), list[Ref]()

    def one(draft: Draft, ref: Ref) -> None:
        record = draft.plain(*ref)
        if record is not None:
            record.header["taken"] = held[ref.id]
            gates.put(draft, record)

    for index in HOLDERS:
        yield from each_portion(Scan(index, PORTION), lambda entries: held.update(_slots_of(entries)))
    yield from each_portion(Scan("gates", PORTION), lambda entries: wrong.extend(ref for ref, _ in _differences(entries, held)))
    for refs in portions(wrong):
        yield from decide(refs, one, rules, refs, scans=MOVE_SCANS)
    return len(wrong)


def _slots_of(entries: Iterable[Entry]) -> Iterator[bytes]:
    for job in _jobs(entries):
        yield from [gate.id for gate in job.limits if job.has(Flag.LIMITED) and not gate.per]


def _differences(entries: Iterable[Entry], held: Counter[bytes]) -> Iterator[tuple[Ref, int]]:
    for entry in entries:
        if entry.record is not None and (difference := entry.record.header["taken"] - held[entry.ref.id]):
            yield entry.ref, difference
