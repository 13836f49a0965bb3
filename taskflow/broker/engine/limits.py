"""Limits as operators see them: which jobs hold slots and wait, and numbers that were set at run time."""

from __future__ import annotations

from typing import Final

from taskflow.broker.admin import LimitRecord
from taskflow.broker.engine import gates, moves
from taskflow.broker.engine.draft import Draft, Plain
from taskflow.broker.engine.moves import MOVE_SCANS
from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import Operation, Query, Ref, Scan, Snapshot
from taskflow.model.clock import to_seconds
from taskflow.model.limits import Gate, earliest
from taskflow.model.rules import Rules

MAX_LISTED: Final = 10_000
MAX_COUNTED: Final = 1_000
"""The most jobs that wait at a gate that are counted."""

MAX_CROWDED: Final = 200
"""The most gates at which the jobs that wait are counted. At each of the others, one counts."""


def records(limit: str | None) -> Operation[list[LimitRecord]]:
    """Return the gates that hold up jobs or whose number was set, those at which most jobs wait first."""
    seen: Snapshot = yield Query(scans=(Scan("gates", MAX_LISTED),))
    found = list[tuple[Plain, Gate]]()
    for entry in seen.scans[0]:
        assert entry.record is not None
        record = Plain(entry.ref, dict(entry.record.header), entry.record.state)
        gate = gates.in_force(record, Gate(entry.ref.id, "", "", record.header["most"]))
        if gate.id != gates.of_pause(gate.limit).id and limit in (None, gate.limit):
            found.append((record, gate))
    crowded = [gate.id for record, gate in found if record.header["has_waiting"]][:MAX_CROWDED]
    waiting: Snapshot = yield Query(scans=tuple(Scan("gated", MAX_COUNTED, (gate_id,), with_records=False) for gate_id in crowded))
    counted = dict(zip(crowded, map(len, waiting.scans), strict=True))
    listed = [_shown(record, gate, counted.get(gate.id, record.header["has_waiting"]), seen.now) for record, gate in found]
    return sorted(listed, key=lambda each: (-each.waiting, each.limit, each.key))


def _shown(record: Plain, gate: Gate, waiting: int, now: int) -> LimitRecord:
    header = record.header
    opens_at = earliest(header["tat"], header["closed_until"], gate, now) if gate.per > 0 and gate.most > 0 else now
    return LimitRecord(
        limit=gate.limit,
        key=gate.key,
        n=gate.most,
        is_set=bool(header["is_set"]),
        taken=header["taken"],
        waiting=waiting,
        per=to_seconds(gate.per) if gate.per else None,
        burst=gate.burst,
        opens_in=to_seconds(opens_at - now),
    )


def set_number(gate: Gate, rules: Rules, *, is_set: bool) -> Operation[None]:
    """Let a gate have this number whatever senders declare, until it is set again. Jobs that can pass now do so."""

    def one(draft: Draft, gate: Gate) -> None:
        record = gates.record_of(draft, gate)
        record.header["is_set"] = int(is_set)
        if is_set:
            record.header["most"] = gate.most
        gates.put(draft, record)

    yield from moves.decide([gate], one, rules, [Ref(Kind.GATE, gate.id)], scans=MOVE_SCANS)
