"""Ends runs of jobs that have one limit and no other tie, and passes their slots on: a fast path of `jobs.settle` without drafts.

This path decides by the headers of the gates and of the jobs that wait there. The store checks that the jobs are still in these runs. If a
job needs more, or its records have changed in the meantime, its run is left to the general decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskflow.broker.engine import gates
from taskflow.broker.engine.decisions import fill
from taskflow.broker.engine.draft import Plain
from taskflow.broker.engine.job import decode_sent, fence_bytes
from taskflow.broker.engine.records import READY, RUNNING, SCHEDULED, SUCCEEDED, Flag, Kind
from taskflow.broker.engine.seam import (
    NOW,
    After,
    Applied,
    Apply,
    Effect,
    Entry,
    HandOver,
    Operation,
    Passing,
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

MAX_TRIES = 2
"""How many times to try to end the runs together. A second attempt leaves out the runs that the store has refused."""


def is_simple(settlement: Settlement) -> bool:
    """Return True if `settle` can try to end the run: a plain success with one limit that has slots, and no key or notes."""
    limits = settlement.limits
    return len(limits) == 1 and not limits[0].per and settlement.key is None and not settlement.notes and is_plain_success(settlement)


def settle(runs: Sequence[Run], gate_ids: Sequence[bytes], rules: Rules) -> Operation[set[int]]:
    """End runs whose settlements are simple (see `is_simple`). Return the indexes of the runs that were ended. The other runs may have more
    ties, or may already have ended."""
    by_gate: dict[bytes, dict[bytes, int]] = {}
    for number, (run, gate_id) in enumerate(zip(runs, gate_ids, strict=True)):
        by_gate.setdefault(gate_id, {}).setdefault(run.id, number)
    refs = tuple([Ref(Kind.GATE, gate_id) for gate_id in by_gate])
    scans = (Scan("gated", len(numbers), (gate_id,)) for gate_id, numbers in by_gate.items())
    seen: Snapshot = yield Query(refs, (Scan("paused", gates.MAX_PAUSED, with_records=False), *scans))
    paused = {entry.ref.id for entry in seen.scans[0]}
    refused = set(range(len(runs))) if len(paused) == gates.MAX_PAUSED else set[int]()
    for _ in range(MAX_TRIES):
        step, ended, opened = _Step(paused), list[int](), set[bytes]()
        for ref, numbers, waiting in zip(refs, by_gate.values(), seen.scans[1:], strict=True):
            gate, ending = seen.records[ref], [number for number in numbers.values() if number not in refused]
            if gate is None or not ending or gate.header["taken"] < len(ending):
                continue
            is_open = step.add(gate, len(ending), waiting)
            if is_open is not None:
                ended += ending
                opened.update([ref.id] if is_open else ())
        if not ended:
            break
        changed: list[int] = yield HandOver([runs[number] for number in ended], step.made())
        if not changed:
            if opened:
                yield from fill(opened, rules)
            return set(ended)
        refused.update([ended[number] for number in changed])
    return set()


class _Step:
    """Builds a single step that passes on the slots of all gates, which costs less than several steps. If it's stale, the general path is
    taken."""

    def __init__(self, paused: set[bytes]) -> None:
        self._paused = paused
        self._expect: dict[Ref, Rev] = {}
        self._puts, self._drops, self._totals = list[Put](), list[Ref](), dict[tuple[str, str], int]()

    def add(self, stored: Record, ending: int, waiting: Sequence[Entry]) -> bool | None:
        """Pass on the slots of the `ending` runs at one gate. Return True if the gate still has room and waiting jobs, else False. Return
        None, and add nothing, if a waiting job needs the general decision."""
        gate = Plain(stored.ref, dict(stored.header), stored.state)
        room = max(0, gate.header["most"] - gate.header["taken"] + ending) if gate.header["has_waiting"] else 0
        passing = [entry.record for entry in waiting[:room] if entry.record is not None]
        for waiter in passing:
            if not _may_pass(waiter, self._paused):
                return None
        for waiter in passing:
            self._expect[waiter.ref] = waiter.rev
            self._puts.append(Passing(waiter.ref, _READIED))
            counted = (waiter.header["queue"], Event.DUE)
            self._totals[counted] = self._totals.get(counted, 0) + 1
        gate.header["taken"] += len(passing) - ending
        is_kept, is_open = gates.prepare(gate)
        self._expect[stored.ref] = stored.rev
        if not is_kept:
            self._drops.append(gate.ref)
        elif gate.header != stored.header:
            self._puts.append(gate.to_put())
        return is_open

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
        and not header["flags"] & Flag.FAIR
        and len(decode_sent(record.sent).limits) == 1
        and header["queue"].encode() not in paused
    )


def by_step(runs: Sequence[Run], step: Step) -> Operation[list[int]]:
    """Implement `Store.hand_over` with an ordinary step, for stores that have no faster way."""
    refs = [Ref(Kind.JOB, run.id) for run in runs]
    seen: Snapshot = yield Query(tuple(refs))
    if changed := [number for number, run in enumerate(runs) if not _is_limited_run(seen.records[refs[number]], run)]:
        return changed
    expect, puts, totals = dict(step.expect), list(step.puts), dict(step.totals)
    for ref, run in zip(refs, runs, strict=True):
        record = seen.records[ref]
        assert record is not None
        expect[ref] = record.rev
        puts.append(Put(ref, _ended(run), content=run.result))
        counted = (record.header["queue"], Event.SUCCEED)
        totals[counted] = totals.get(counted, 0) + 1
    [answer], _ = yield Apply([Step(expect, tuple(puts), step.drops, totals=totals)])
    return [] if isinstance(answer, Applied) else list(range(len(runs)))


def _is_limited_run(record: Record | None, run: Run) -> bool:
    """Return True if a job is still in this run and has no ties except limits."""
    if record is None or record.damage is not None or record.header["flags"] & Flag.TIES != Flag.LIMITED:
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

    def hand_over(self, runs: Sequence[Run], step: Step) -> list[int]:
        operation, answer = by_step(runs, step), None
        try:
            while True:
                answer = self.perform(operation.send(answer))
        except StopIteration as end:
            changed: list[int] = end.value
            return changed
