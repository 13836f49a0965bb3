"""Ends runs of jobs that have one limit and no other tie, and passes their slots on: a fast path of `jobs.settle` without drafts.

The store decides by the headers of the gates and of the jobs that wait there. It refuses what needs more than that, and leaves such runs to
the general decision. Stores on a server do this in one call. The others build a step from the functions here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from taskflow.broker.engine import gates
from taskflow.broker.engine.decisions import fill
from taskflow.broker.engine.draft import Plain
from taskflow.broker.engine.job import fence_bytes
from taskflow.broker.engine.records import READY, RUNNING, SCHEDULED, SUCCEEDED, Flag, Kind
from taskflow.broker.engine.seam import (
    KEEP,
    NOW,
    After,
    Apply,
    Effect,
    Entry,
    HandedOver,
    HandOver,
    Keep,
    Operation,
    Put,
    Query,
    Record,
    Ref,
    Rev,
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


def by_step(runs: Sequence[Run], gate_ids: Sequence[bytes]) -> Operation[HandedOver]:
    """Implement `Store.hand_over` with one ordinary step, for stores in this process, where nothing changes meanwhile."""
    by_gate: dict[bytes, list[int]] = {}
    for number, gate_id in enumerate(gate_ids):
        by_gate.setdefault(gate_id, []).append(number)
    refs = [Ref(Kind.JOB, run.id) for run in runs] + [Ref(Kind.GATE, gate_id) for gate_id in by_gate]
    scans = (Scan("gated", len(numbers), (gate_id,)) for gate_id, numbers in by_gate.items())
    seen: Snapshot = yield Query(tuple(refs), (gates.PAUSED, *scans), fields=_READ)
    if len(seen.scans[0]) == gates.MAX_PAUSED:
        return HandedOver([], [])
    found = [seen.records[ref] for ref in refs[: len(runs)]]
    step, ended, opened = _Step(seen), list[int](), list[bytes]()
    for (gate_id, numbers), waiting in zip(by_gate.items(), seen.scans[1:], strict=True):
        ending = {
            number: (record, runs[number])
            for number in numbers
            if (record := found[number]) is not None and _is_limited_run(record, runs[number])
        }
        gate = seen.records[Ref(Kind.GATE, gate_id)]
        if gate is None or not ending or gate.header["taken"] < len(ending):
            continue
        is_open = step.add(gate, [*ending.values()], waiting)
        if is_open is not None:
            ended += ending
            opened += [gate_id] if is_open else []
    if ended:
        yield Apply([step.made()])
    return HandedOver(ended, opened)


_READ: Final = ("status", "flags", "priority", "queue", "due_at", "seq", "epoch", "session", "claim", "gate")
"""The fields that the decision and the positions of waiting jobs need. SQLite reads and unpacks a job's other fields in twice the time."""


class _Step:
    """Builds a single step that ends runs and passes on the slots of all gates."""

    def __init__(self, seen: Snapshot) -> None:
        self._paused = {entry.ref.id for entry in seen.scans[0]}
        self._expect: dict[Ref, Rev] = {}
        self._puts, self._drops, self._totals = list[Put](), list[Ref](), dict[tuple[str, str], int]()

    def add(self, stored: Record, ending: Sequence[tuple[Record, Run]], waiting: Sequence[Entry]) -> bool | None:
        """End runs, and pass on their slots at one gate. Return True if the gate still has room and waiting jobs, else False. Return None,
        and add nothing, if a waiting job needs the general decision."""
        gate = Plain(stored.ref, dict(stored.header), stored.state)
        room = max(0, gate.header["most"] - gate.header["taken"] + len(ending)) if gate.header["has_waiting"] else 0
        passing = [entry.record for entry in waiting[: min(room, len(ending))] if entry.record is not None]
        if not all(_may_pass(waiter, self._paused) for waiter in passing):
            return None
        for job, run in ending:
            self._change(job, Event.SUCCEED, _ended(run), run.result)
        for waiter in passing:
            self._change(waiter, Event.DUE, _READIED)
        gate.header["taken"] += len(passing) - len(ending)
        is_kept, is_open = gates.prepare(gate)
        self._expect[stored.ref] = stored.rev
        if not is_kept:
            self._drops.append(gate.ref)
        elif gate.header != stored.header:
            self._puts.append(gate.to_put())
        return is_open

    def _change(self, job: Record, event: Event, header: dict[str, Any], content: bytes | Keep = KEEP) -> None:
        self._expect[job.ref] = job.rev
        self._puts.append(Put(job.ref, header, content=content))
        counted = (job.header["queue"], event)
        self._totals[counted] = self._totals.get(counted, 0) + 1

    def made(self) -> Step:
        return Step(self._expect, tuple(self._puts), tuple(self._drops), totals=self._totals)


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


class ByStep:
    """A base class of in-process stores that implements `hand_over` with `by_step`."""

    def perform(self, effect: Effect) -> Any:
        raise NotImplementedError

    def hand_over(self, runs: Sequence[Run], gate_ids: Sequence[bytes]) -> HandedOver:
        operation, answer = by_step(runs, gate_ids), None
        try:
            while True:
                answer = self.perform(operation.send(answer))
        except StopIteration as end:
            handed_over: HandedOver = end.value
            return handed_over
