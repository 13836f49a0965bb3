"""Compares records with the data that stores derive from them, for `taskflow doctor`: see `broker.admin.Admin.rebuild`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

from taskflow.broker.admin import Finding, Rebuilt
from taskflow.broker.engine.job import Sent
from taskflow.broker.engine.records import INDEXES, Flag, Kind
from taskflow.broker.engine.schedules import body_of
from taskflow.model.envelope import unpack_extras

EXAMINE_TIMEOUT: Final = 2.0
"""Seconds that each check of `taskflow doctor` may take."""

WITH_ENTRIES: Final = {
    index: f"flags & {Flag.TAGGED} <> 0 AND {index.when}" if index.kind == Kind.JOB else "true"
    for index in INDEXES
    if index.entries is not None
}
"""The indexes whose entries stores keep in tables, each with the SQL condition for records that may have entries."""

Pair = tuple[Any, bytes]
"""An entry: its value, and the id of the record."""


class Entries(NamedTuple):
    """The differences between an index's entries and those that the records need, and the number of records that can't be decoded."""

    missing: set[Pair]
    wrong: set[Pair]
    unreadable: int


def compare_entries(kind: int, records: Iterable[tuple[bytes, bytes | None, bytes | None]], stored: set[Pair]) -> Entries:
    """Compare an index's stored entries with those that records (id, `sent`, `state`) need. Ignore the entries of undecodable records."""
    needed, unreadable = set[Pair](), set[bytes]()
    for record_id, sent, state in records:
        values = _values(kind, sent, state)
        if values is None:
            unreadable.add(record_id)
        else:
            needed.update((value, record_id) for value in values)
    wrong = {entry for entry in stored - needed if entry[1] not in unreadable}
    return Entries(needed - stored, wrong, len(unreadable))


def _values(kind: int, sent: bytes | None, state: bytes | None) -> tuple[Any, ...] | None:
    if kind == Kind.SCHEDULE:
        body = body_of(state)
        return None if body is None else tuple(each.session for each in body.declared)
    try:
        return tuple(unpack_extras(msgspec.msgpack.decode(sent or b"", type=Sent).extras).get("tags", ()))
    except Exception:  # another program may have written any bytes
        return None


def finding(found: Rebuilt | None) -> Finding:
    """Return the finding that `taskflow doctor` shows for a comparison. `found` is None if the comparison wasn't finished in time."""
    if found is None:
        return Finding("indexes", "note", f"not all compared with the records: no difference found within {EXAMINE_TIMEOUT:g} s")
    if found.corrected:
        where = ", ".join(f"{number:,} in {name}" for name, number in sorted(found.corrected.items()))
        return Finding(
            "indexes",
            "problem",
            f"they differ from the records ({where}), because another program has changed the store: stop the workers, and run "
            "`taskflow doctor --rebuild`",
        )
    return Finding("indexes", "ok", "indexes and counts agree with the records")
