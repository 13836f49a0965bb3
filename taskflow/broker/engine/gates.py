"""Gates: limits on how many jobs are READY or RUNNING at once, and on how many start in a period.

A job with gates takes a slot of each when it becomes READY, either all or none. It gives them back when it stops being READY or RUNNING.
A job that finds a gate full waits there as SCHEDULED. The step that gives a slot back passes it to the first waiting job.

A step that makes a job wait expects the gate's revision but doesn't write the gate, so any number of jobs can begin to wait at once. Only
the first of these steps writes it, to record that jobs are waiting. An operation that makes room in a gate checks it again after its step,
because other jobs may have begun to wait in between. No job begins to wait while the gate has room, so one check is enough.

A rate (a limit on starts in a period) has no slots. A job pays for it when it becomes READY. If that is too early, the job pays for a later
time and becomes due then. A payment is valid for `PAYMENT_TTL`, so that jobs which couldn't start in time don't start all at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from taskflow.broker import topics
from taskflow.broker.engine import turns
from taskflow.broker.engine.draft import Draft, Foreseen, Missing, Plain
from taskflow.broker.engine.job import Job, text_bytes
from taskflow.broker.engine.records import SCHEDULED, Flag, Kind
from taskflow.broker.engine.seam import NOW, After, Record, Ref, Scan
from taskflow.model import wording
from taskflow.model.clock import to_microseconds
from taskflow.model.limits import MAX_MOST, PAYMENT_TTL, Gate, earliest, gate_id, interval, paid

MAX_TRIED: Final = 256
"""The maximum number of a gate's waiting jobs that one decision checks. Other jobs that could pass are left to the next decision."""

SPARE: Final = 2
"""How many waiting jobs to read beyond the number of slots that become free. Some of the jobs may have to wait at another gate."""

MAX_PAUSED: Final = 1_000
PAUSED: Final = Scan("paused", MAX_PAUSED, with_records=False)
"""Finds the paused queues. If a pause begins after this scan, it takes back the slots of the queue's READY jobs."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Gate).decode


def _state_of(gate: Gate) -> bytes:
    """Encode a gate for its record, whose ref and header have the id and the number."""
    return _encode(msgspec.structs.replace(gate, id=b"", most=0))


def refs_of(limits: Sequence[Gate]) -> list[Ref]:
    return [Ref(Kind.GATE, gate.id) for gate in limits]


def of_pause(queue: str) -> Gate:
    """Return the gate at which limited jobs of a paused queue wait, so that they hold no slots."""
    return Gate(gate_id(queue, "", kind=b"pause"), queue, "", 0)


def foresee(limits: Sequence[Gate]) -> Foreseen | None:
    """Return the facts that a decision needs if a slot of each gate becomes free, or None if no gate has slots."""
    freed = Counter([gate.id for gate in limits if not gate.per])
    return Foreseen({gate_id: number + SPARE for gate_id, number in freed.items()}, frozenset([PAUSED])) if freed else None


def declare(draft: Draft, limits: Sequence[Gate]) -> None:
    """Update stored gates to the numbers that the sender of a new job declares, unless an operator has set them."""
    for gate in limits:
        record = draft.plain(Kind.GATE, gate.id)
        if record is not None and not record.header["is_set"] and in_force(record, gate) != gate:
            record.header["most"], record.state = gate.most, _state_of(gate)
            put(draft, record)


def in_force(record: Plain | Record, gate: Gate) -> Gate:
    """Return the gate with the numbers from its record, or unchanged if the record can't be decoded."""
    try:
        stored = _decode(record.state) if isinstance(record.state, bytes) else gate
    except msgspec.MsgspecError:
        return gate
    return msgspec.structs.replace(stored, id=gate.id, most=record.header["most"])


def admit(draft: Draft, job: Job) -> bool:
    """Take a slot of each of a job's gates, and pay its rates. If it has to wait, at a gate or for a rate, take none and return False."""
    limits, queue = job.limits, Ref(Kind.QUEUE, job.queue.encode())
    draft.require(_refs_to_admit(draft, job))
    if _may_be_paused(draft, queue) and draft.plain(*queue) is not None:
        pause = of_pause(job.queue)
        _wait(draft, job, record_of(draft, pause))
        return False
    passed = [(record_of(draft, gate), gate) for gate in limits]
    full = next((each for each in passed if not each[1].per and each[0].header["taken"] >= each[0].header["most"]), None)
    if full is not None:
        _wait(draft, job, full[0])
        return False
    rates = [(record, in_force(record, gate)) for record, gate in passed if gate.per]
    if not _pay(draft, job, [each for each in rates if each[1].per > 0 and 0 < each[1].most <= MAX_MOST]):
        return False
    for record, gate in passed:
        if not gate.per:
            record.header["taken"] += 1
            put(draft, record)
    job.header["gate"] = job.state.waiting = job.state.paid = None
    if job.has(Flag.FAIR):
        job.header["since"] = None
    return True


def _refs_to_admit(draft: Draft, job: Job) -> list[Ref]:
    queue = Ref(Kind.QUEUE, job.queue.encode())
    return [*refs_of(job.limits), queue] if _may_be_paused(draft, queue) else refs_of(job.limits)


def _may_be_paused(draft: Draft, queue: Ref) -> bool:
    paused = draft.scanned.get(PAUSED)
    return paused is None or len(paused) == MAX_PAUSED or any(entry.ref == queue for entry in paused)


def leave(draft: Draft, limits: Sequence[Gate]) -> Iterator[Job]:
    """Give back a slot of each gate that has slots. Yield the jobs that receive them, for the caller to make READY."""
    limits = [gate for gate in limits if not gate.per]
    draft.require(refs_of(limits), frees=True)
    for gate in limits:
        record = draft.plain(Kind.GATE, gate.id)
        if record is not None and record.header["taken"] > 0:  # otherwise another program has changed it
            record.header["taken"] -= 1
            yield from _pass_on(draft, record)
            put(draft, record)


def leave_to_others(draft: Draft, job: Job) -> bool:
    """Let only jobs of other queues receive the slots that a job will give back. Return False if no such job is known to wait."""
    lines = [line for gate in job.limits if not gate.per and (line := draft.waiting(gate.id))]
    for line in lines:
        others = [entry for entry in line if entry.record is not None and entry.record.header["queue"] != job.queue]
        line.clear()
        line.extend(others)
    return any(lines)


def fill(draft: Draft, gate_id: bytes) -> Iterator[Job]:
    """Yield the waiting jobs for which a gate has room, for the caller to make READY. If no more jobs wait, record that."""
    record = draft.plain(Kind.GATE, gate_id)
    if record is None or not record.header["has_waiting"]:
        return
    if draft.waiting(gate_id) is None:
        draft.wanted[gate_id] = MAX_TRIED
        raise Missing
    yield from _pass_on(draft, record)
    if record.header["taken"] < record.header["most"] and not draft.waiting(gate_id) and gate_id in draft.has_seen_all:
        record.header["has_waiting"] = 0
    put(draft, record)


def pause(draft: Draft, queue: str, *, is_paused: bool) -> None:
    """Open or close the gate at which a paused queue's limited jobs wait."""
    record = draft.plain(Kind.GATE, of_pause(queue).id)
    if record is not None:
        record.header["most"] = int(not is_paused)  # this only opens or closes the gate, because no job takes a slot of it
        put(draft, record)


def close(draft: Draft, limits: Sequence[Gate], seconds: float) -> None:
    """Close the rates among these gates, so that no job passes them for `seconds` seconds."""
    limits = [gate for gate in limits if gate.per]
    draft.require(refs_of(limits))
    for gate in limits:
        record = record_of(draft, gate)
        record.header["closed_until"] = max(record.header["closed_until"] or 0, draft.now + to_microseconds(seconds))
        record.header["tat"] = max(record.header["tat"] or 0, record.header["closed_until"])
        draft.put(record)


def _pass_on(draft: Draft, record: Plain) -> Iterator[Job]:
    """Yield the jobs that receive a gate's free slots. Jobs that have to wait at another gate or for a later time begin to do so."""
    header, gate_id = record.header, record.ref.id
    if not header["has_waiting"]:
        return
    seen = draft.waiting(gate_id)
    while seen and header["taken"] < header["most"]:
        job = draft.job(seen[0].ref.id)
        assert job is not None  # the scan has returned its record
        if not draft.has_loaded(_refs_to_admit(draft, job)):  # these jobs may have other gates: load all with one query
            jobs = [draft.job(entry.ref.id) for entry in seen]
            draft.require([ref for each in jobs if each is not None for ref in _refs_to_admit(draft, each)])
        seen.popleft()
        if job.status != SCHEDULED or job.header["gate"] != gate_id:
            continue
        if admit(draft, job):
            yield job
        else:
            draft.put(job)


def record_of(draft: Draft, gate: Gate) -> Plain:
    """Return a gate's record, or a new one. Stores keep it while jobs hold slots or wait, its number is set, or its rate is in use."""
    record = draft.plain(Kind.GATE, gate.id)
    if record is not None:
        return record
    header: dict[str, Any] = {"taken": 0, "most": gate.most, "has_waiting": 0, "is_open": 0, "is_set": 0, "tat": None, "closed_until": None}
    return Plain(Ref(Kind.GATE, gate.id), header, _state_of(gate))


def put(draft: Draft, record: Plain) -> None:
    is_kept, is_open = prepare(record)
    if is_open:
        draft.opened.add(record.ref.id)
    if is_kept:
        draft.put(record)
    else:
        draft.drop(record.ref)


def prepare(record: Plain) -> tuple[bool, bool]:
    """Update a gate's `is_open`: True if jobs wait although it has room. Return whether to keep the record, and `is_open`."""
    header = record.header
    header["is_open"] = int(header["has_waiting"] and header["taken"] < header["most"])
    is_kept = bool(header["taken"] or header["has_waiting"] or header["is_set"]) or header["tat"] is not None
    return is_kept, bool(header["is_open"])


def _wait(draft: Draft, job: Job, record: Plain) -> None:
    """Make a job wait at a gate that is full, or that a pause has closed. The caller puts the job."""
    if job.has(Flag.FAIR):
        job.header["since"] = None
        turns.take(draft, job, ("gated", record.ref.id, -job.header["priority"]))
    job.header["gate"] = record.ref.id
    job.state.waiting = job.state.paid = None
    if not record.header["has_waiting"]:
        record.header["has_waiting"] = 1
        draft.put(record)


def _pay(draft: Draft, job: Job, rates: Sequence[tuple[Plain, Gate]]) -> bool:
    """Pay a job's rates, and return True, if all of them allow the job to start now. Otherwise pay only the rate that makes the job wait
    longest, for the time at which that rate lets the job start. Make the job due then, and return False."""
    due_at, now = job.header["due_at"], draft.now
    is_good = job.state.paid is not None and not isinstance(due_at, After) and now - due_at <= PAYMENT_TTL
    starts = list[int]()
    for record, gate in rates:
        tat, closed_until = record.header["tat"], record.header["closed_until"]
        has_paid = is_good and job.state.paid == gate.id and (closed_until or 0) <= now
        starts.append(-1 if has_paid else earliest(tat, closed_until, gate, now))
    if not starts or max(starts) < 0:
        return True
    start = max(starts)
    for (record, gate), at in zip(rates, starts, strict=True):
        if at >= 0 and (start <= now or at == start):
            record.header["tat"] = paid(record.header["tat"], gate, start)
            draft.put(record)
            if start > now:
                job.header["gate"], job.header["due_at"], job.state.paid = None, start, gate.id
                job.state.waiting = text_bytes(wording.waits_at_gate(gate.limit, gate.key))
                if start - now <= interval(gate):  # otherwise earlier jobs have announced their due times
                    draft.wake(topics.DUE)
                return False
    job.header["due_at"] = NOW
    return True
