"""Ends runs whose jobs have one limit and no other tie, and hands their slots on: what `jobs.settle` does in general, without drafts.

It decides by headers. A job that needs more, or whose records have changed meanwhile, is left to the general decision.
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
    """A run that ends, with its number among the settlements."""

    number: int
    settlement: Settlement
    record: Record


def is_simple(settlement: Settlement) -> bool:
    """Return True if `settle` may end the run."""
    limits = settlement.limits
    return len(limits) == 1 and not limits[0].per and settlement.key is None and not settlement.notes and is_plain_success(settlement)


def settle(settlements: Sequence[Settlement], rules: Rules) -> Operation[set[int]]:
    """End runs for which `is_simple` is True. Return the numbers of those that have ended. The others may have more ties, or be over."""
    by_gate: dict[bytes, list[int]] = {}
    for number, settlement in enumerate(settlements):
        by_gate.setdefault(settlement.limits[0].id, []).append(number)
    refs = [Ref(Kind.JOB, settlement.id) for settlement in settlements] + [Ref(Kind.GATE, gate_id) for gate_id in by_gate]
    scans = (Scan("gated", len(numbers) + gates.SPARE, (gate_id,)) for gate_id, numbers in by_gate.items())
    seen: Snapshot = yield Query(tuple(dict.fromkeys(refs)), (Scan("paused", gates.MAX_PAUSED, with_records=False), *scans))
    paused = {entry.ref.id for entry in seen.scans[0]}
    if len(paused) == gates.MAX_PAUSED:
        return set()
    steps, ended, opened = list[Step](), list[list[int]](), set[bytes]()
    for (gate_id, numbers), waiting in zip(by_gate.items(), seen.scans[1:], strict=True):
        gate = seen.records[Ref(Kind.GATE, gate_id)]
        found = {ending.record.ref: ending for ending in _endings(seen, settlements, numbers)}
        if gate is None or not found or gate.header["taken"] < len(found):
            continue
        step, is_open = _step(seen, gate, list(found.values()), waiting, paused)
        if step is not None:
            steps.append(step)
            ended.append([ending.number for ending in found.values()])
            opened.update([gate_id] if is_open else ())
    answers, _ = (yield Apply(steps)) if steps else ([], None)
    if opened:
        yield from fill(opened, rules)
    return {number for numbers, answer in zip(ended, answers, strict=True) if isinstance(answer, Applied) for number in numbers}


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


def _step(
    seen: Snapshot, stored: Record, endings: Sequence[_Ending], waiting: Sequence[Entry], paused: set[bytes]
) -> tuple[Step | None, bool]:
    """Return the step that ends these runs of one gate, and whether jobs may still wait there while it has room. Return no step if a job
    that waits needs another decision."""
    gate = Plain(stored.ref, dict(stored.header), stored.state)
    expect: dict[Ref, Rev] = {stored.ref: stored.rev}
    puts, totals = list[Put](), dict[tuple[str, str], int]()

    def put(record: Record, changed: Put, event: Event) -> None:
        expect[record.ref] = record.rev
        puts.append(changed)
        totals[record.header["queue"], event] = totals.get((record.header["queue"], event), 0) + 1

    for _, settlement, record in endings:
        put(record, _ended(settlement, record, seen.now), Event.SUCCEED)
    gate.header["taken"] -= len(endings)
    for entry in waiting if gate.header["has_waiting"] else ():
        if gate.header["taken"] >= gate.header["most"]:
            break
        if entry.record is None or not _may_pass(entry.record, paused):
            return None, False
        put(entry.record, Put(entry.ref, {"status": READY, "gate": None}), Event.DUE)
        gate.header["taken"] += 1
    is_kept, is_open = gates.prepare(gate)
    drops = () if is_kept else (gate.ref,)
    if is_kept and gate.header != stored.header:
        puts.append(gate.to_put())
    return Step(expect, tuple(puts), drops, totals=totals), is_open


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
    """Return True if a job that waits needs no more than a slot of the gate."""
    header = record.header
    return (
        header["status"] == SCHEDULED
        and record.damage is None
        and record.state is None
        and not header["flags"] & Flag.FAIR
        and len(decode_sent(record.sent).limits) == 1
        and header["queue"].encode() not in paused
    )
