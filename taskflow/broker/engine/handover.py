"""Ends runs of jobs that have one limit and no other tie, and passes their slots on. This is a fast path of `jobs.settle` without drafts.

It decides by headers. Jobs that need more, or whose records have changed in the meantime, are left to the general decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from taskflow.broker.engine import gates
from taskflow.broker.engine.decisions import fill
from taskflow.broker.engine.draft import Plain
from taskflow.broker.engine.job import claim_bytes, content_of, decode_sent, fence_bytes
from taskflow.broker.engine.records import READY, RUNNING, SCHEDULED, SUCCEEDED, Flag, Kind
from taskflow.broker.engine.seam import Applied, Apply, Entry, Operation, Put, Query, Record, Ref, Rev, Scan, Snapshot, Step
from taskflow.model.clock import to_microseconds
from taskflow.model.rules import Rules
from taskflow.model.transitions import Event
from taskflow.model.verdict import Settlement, Succeeded, is_plain_success


class _Ending(NamedTuple):
    """A run that is to be ended, with the index of its settlement."""

    number: int
    settlement: Settlement
    record: Record


def is_simple(settlement: Settlement) -> bool:
    """Return True if `settle` may end the run."""
    limits = settlement.limits
    return len(limits) == 1 and not limits[0].per and settlement.key is None and not settlement.notes and is_plain_success(settlement)


def settle(settlements: Sequence[Settlement], rules: Rules) -> Operation[set[int]]:
    """End runs for which `is_simple` is True. Return the indexes of those it ended. The other runs may have more ties or be over."""
    by_gate: dict[bytes, list[int]] = {}
    for number, settlement in enumerate(settlements):
        by_gate.setdefault(settlement.limits[0].id, []).append(number)
    refs = [Ref(Kind.JOB, settlement.id) for settlement in settlements] + [Ref(Kind.GATE, gate_id) for gate_id in by_gate]
    scans = (Scan("gated", len(numbers), (gate_id,)) for gate_id, numbers in by_gate.items())
    seen: Snapshot = yield Query(tuple(dict.fromkeys(refs)), (Scan("paused", gates.MAX_PAUSED, with_records=False), *scans))
    paused = {entry.ref.id for entry in seen.scans[0]}
    if len(paused) == gates.MAX_PAUSED:
        return set()
    step, ended, opened = _Step(paused), list[int](), set[bytes]()
    for (gate_id, numbers), waiting in zip(by_gate.items(), seen.scans[1:], strict=True):
        gate = seen.records[Ref(Kind.GATE, gate_id)]
        found = list({ending.record.ref: ending for ending in _endings(seen, settlements, numbers)}.values())
        if gate is None or not found or gate.header["taken"] < len(found):
            continue
        is_open = step.add(gate, found, waiting, seen.now)
        if is_open is not None:
            ended += [ending.number for ending in found]
            opened.update([gate_id] if is_open else ())
    [answer], _ = (yield Apply([step.made()])) if ended else ([None], None)
    if not isinstance(answer, Applied):
        return set()
    if opened:
        yield from fill(opened, rules)
    return set(ended)


def _endings(seen: Snapshot, settlements: Sequence[Settlement], numbers: Sequence[int]) -> Iterator[_Ending]:
    for number in numbers:
        settlement = settlements[number]
        record = seen.records[Ref(Kind.JOB, settlement.id)]
        if record is None or record.damage is not None:
            continue
        header = record.header
        lease = (RUNNING, settlement.epoch, *claim_bytes(settlement.claim))
        is_simple = header["flags"] & Flag.TIES == Flag.LIMITED and decode_sent(record.sent).limits == settlement.limits
        if is_simple and (header["status"], header["epoch"], header["session"], header["claim"]) == lease:
            yield _Ending(number, settlement, record)


class _Step:
    """Builds the step that ends the runs of all gates. One step costs the least; if it's stale, the general path decides on each run."""

    def __init__(self, paused: set[bytes]) -> None:
        self._paused = paused
        self._expect: dict[Ref, Rev] = {}
        self._puts, self._drops, self._totals = list[Put](), list[Ref](), dict[tuple[str, str], int]()

    def add(self, stored: Record, endings: Sequence[_Ending], waiting: Sequence[Entry], now: int) -> bool | None:
        """Add the runs of one gate. Return True if the gate has room and jobs may still wait there. Return None, and add nothing, if a
        waiting job needs the general decision."""
        gate = Plain(stored.ref, dict(stored.header), stored.state)
        room = max(0, gate.header["most"] - gate.header["taken"] + len(endings)) if gate.header["has_waiting"] else 0
        passing = [entry.record for entry in waiting[:room]]
        if not all(record is not None and _may_pass(record, self._paused) for record in passing):
            return None
        for _, settlement, record in endings:
            self._put(record, _ended(settlement, record, now), Event.SUCCEED)
        for waiter in passing:
            assert waiter is not None
            self._put(waiter, Put(waiter.ref, {"status": READY, "gate": None}), Event.DUE)
        gate.header["taken"] += len(passing) - len(endings)
        is_kept, is_open = gates.prepare(gate)
        self._expect[stored.ref] = stored.rev
        if not is_kept:
            self._drops.append(gate.ref)
        elif gate.header != stored.header:
            self._puts.append(gate.to_put())
        return is_open

    def _put(self, record: Record, put: Put, event: Event) -> None:
        self._expect[record.ref] = record.rev
        self._puts.append(put)
        counted = (record.header["queue"], event)
        self._totals[counted] = self._totals.get(counted, 0) + 1

    def made(self) -> Step:
        return Step(self._expect, tuple(self._puts), tuple(self._drops), totals=self._totals)


def _ended(settlement: Settlement, record: Record, now: int) -> Put:
    assert isinstance(settlement.verdict, Succeeded)
    header = {
        "status": SUCCEEDED,
        "session": None,
        "claim": None,
        "settled": fence_bytes(settlement.epoch, *claim_bytes(settlement.claim)),
        "started_at": now - to_microseconds(settlement.ran_for),
        "ended_at": now,
        "fade_at": now + to_microseconds(settlement.keep_for),
    }
    return Put(record.ref, header, content=content_of(settlement.verdict.result, settlement.arguments))


def _may_pass(record: Record, paused: set[bytes]) -> bool:
    """Return True if a waiting job needs only a slot of this gate."""
    header = record.header
    return (
        header["status"] == SCHEDULED
        and record.damage is None
        and record.state is None
        and not header["flags"] & Flag.FAIR
        and len(decode_sent(record.sent).limits) == 1
        and header["queue"].encode() not in paused
    )
