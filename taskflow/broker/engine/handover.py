"""Ends runs of jobs that have one limit and no other tie, and passes their slots on: a fast path of `jobs.settle` without drafts.

The store decides by the headers of the gates and of the jobs that wait there. It refuses what needs more than that, and leaves such runs to
the general decision. Stores on a server do this in one call. The others build a step from the functions here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from taskflow.broker.engine import gates
from taskflow.broker.engine.decisions import fill
from taskflow.broker.engine.draft import Plain
from taskflow.broker.engine.job import fence_bytes
from taskflow.broker.engine.records import READY, RUNNING, SCHEDULED, SUCCEEDED, Flag, Kind
from taskflow.broker.engine.seam import (
    NOW,
    After,
    Apply,
    Effect,
    HandedOver,
    HandOver,
    Operation,
    Put,
    Query,
    Record,
    Ref,
    Run,
    Scan,
    Snapshot,
    Step,
)
from taskflow.model.rules import Rules
from taskflow.model.transitions import Event
from taskflow.model.verdict import Settlement, is_plain_success


def is_simple(settlement: Settlement) -> bool:
    """Return True if `settle` can try to end the run: a plain success with one limit that has slots, and no key or notes."""
    limits = settlement.limits
    return len(limits) == 1 and not limits[0].per and settlement.key is None and not settlement.notes and is_plain_success(settlement)


def settle(runs: Sequence[Run], gate_ids: Sequence[bytes], rules: Rules) -> Operation[set[int]]:
    """End runs whose settlements are simple (see `is_simple`). Return the indexes of the runs that were ended. The other runs may have more
    ties, or may already have ended."""
    first: dict[bytes, int] = {}
    for number, run in enumerate(runs):
        first.setdefault(run.id, number)
    chosen = list(first.values())
    answer: HandedOver = yield HandOver([runs[number] for number in chosen], [gate_ids[number] for number in chosen])
    if answer.opened:
        yield from fill(set(answer.opened), rules)
    return {chosen[number] for number in answer.ended}


def by_step(perform: Callable[[Effect], Any], runs: Sequence[Run], gate_ids: Sequence[bytes]) -> HandedOver:
    """Implement `Store.hand_over` with a query and a step, for stores in this process, where nothing changes in between."""
    by_gate: dict[bytes, list[int]] = {}
    for number, gate_id in enumerate(gate_ids):
        by_gate.setdefault(gate_id, []).append(number)
    jobs, of_gates = [Ref(Kind.JOB, run.id) for run in runs], [Ref(Kind.GATE, gate_id) for gate_id in by_gate]
    scans = (Scan("gated", len(numbers), (gate_id,)) for gate_id, numbers in by_gate.items())
    seen: Snapshot = perform(Query((*jobs, *of_gates), (gates.PAUSED, *scans), fields=_READ))
    paused = {entry.ref.id for entry in seen.scans[0]}
    ended, passed = dict[int, Record](), list[Record]()
    changed, opened = list[tuple[Record, Plain | None]](), list[bytes]()
    for ref, numbers, waiting in zip(of_gates, by_gate.values(), seen.scans[1:], strict=True):
        gate, found = seen.records[ref], {number: seen.records[jobs[number]] for number in numbers}
        ending = {number: job for number, job in found.items() if job is not None and _is_limited_run(job, runs[number])}
        if gate is None or not ending or gate.header["taken"] < len(ending) or len(paused) == gates.MAX_PAUSED:
            continue
        room = max(0, gate.header["most"] - gate.header["taken"] + len(ending)) if gate.header["has_waiting"] else 0
        passing = [entry.record for entry in waiting[: min(room, len(ending))] if entry.record is not None]
        if all(_may_pass(waiter, paused) for waiter in passing):
            ended |= ending
            passed += passing
            left = Plain(ref, gate.header | {"taken": gate.header["taken"] + len(passing) - len(ending)}, gate.state)
            is_kept, is_open = gates.prepare(left)
            changed.append((gate, left if is_kept else None))
            opened += [ref.id] if is_open else []
    if ended:
        perform(Apply([_step([(job, runs[number]) for number, job in ended.items()], passed, changed)]))
    return HandedOver(list(ended), opened)


_READ: Final = ("status", "flags", "priority", "queue", "due_at", "seq", "epoch", "session", "claim", "gate")
"""The fields that the decision and the positions of waiting jobs need. SQLite reads and unpacks a job's other fields in twice the time."""


def _step(ended: Sequence[tuple[Record, Run]], passed: Sequence[Record], changed: Sequence[tuple[Record, Plain | None]]) -> Step:
    """Return the step that ends runs, makes waiting jobs READY, and puts the changed gates, or drops those that become None."""
    jobs, totals = [job for job, _ in ended], Counter[tuple[str, str]]()
    totals.update((job.header["queue"], Event.SUCCEED) for job in jobs)
    totals.update((job.header["queue"], Event.DUE) for job in passed)
    puts = [Put(job.ref, _ended(run), content=run.result) for job, run in ended] + [Put(job.ref, _READIED) for job in passed]
    puts += [gate.to_put() for stored, gate in changed if gate is not None and gate.header != stored.header]
    drops = tuple([stored.ref for stored, gate in changed if gate is None])
    expect = {record.ref: record.rev for record in (*jobs, *passed, *(stored for stored, _ in changed))}
    return Step(expect, tuple(puts), drops, totals=totals)


_READIED: dict[str, Any] = {"status": READY, "gate": None, "since": NOW}


def _may_pass(record: Record, paused: set[bytes]) -> bool:
    """Return True if a waiting job needs only a slot of this gate to become READY."""
    header = record.header
    return (
        header["status"] == SCHEDULED
        and record.damage is None
        and record.state is None
        and not header["flags"] & (Flag.FAIR | Flag.MANY_GATES)
        and header["queue"].encode() not in paused
    )


def _is_limited_run(record: Record, run: Run) -> bool:
    """Return True if a job is still in this run and has no ties except limits."""
    if record.damage is not None or record.header["flags"] & Flag.TIES != Flag.LIMITED:
        return False
    header, lease = record.header, (RUNNING, run.epoch, run.session, run.claim)
    return (header["status"], header["epoch"], header["session"], header["claim"]) == lease


def _ended(run: Run) -> dict[str, Any]:
    return {
        "status": SUCCEEDED,
        "session": None,
        "claim": None,
        "settled": fence_bytes(run.epoch, run.session, run.claim),
        "started_at": After(-run.ran_for),
        "ended_at": NOW,
        "fade_at": After(run.keep_for),
    }
