"""Engines and stores with one defect, to test the interleaving: it must notice each of them."""

from __future__ import annotations

from typing import Final

from taskflow.broker.engine import moves
from taskflow.broker.engine.draft import Draft
from taskflow.broker.engine.job import Job
from taskflow.broker.memory.records import RecordStore
from taskflow.broker.memory.store import MemoryStore
from tests.support.changes import Change, Changed

MUTANTS: Final = (
    Changed(
        "holder_not_expected",
        "a holder that begins to run is taken for one that waits: two jobs run with one key",
        (
            Change(
                moves,
                "holders",
                "    return waiting, running",
                "    draft.part.read -= {Ref(Kind.JOB, job.id) for job in named if job is not None} - draft.part.written.keys()\n"
                "    return waiting, running",
            ),
        ),
    ),
    Changed(
        "retry_without_its_key",
        "a retried job waits beside the replacement that came meanwhile",
        (
            Change(
                moves,
                "_successor",
                "    if record is None or",
                "    if record is not None and record.ref not in draft.part.written:\n"
                "        draft.part.read.discard(record.ref)\n"
                "    if record is None or",
            ),
        ),
    ),
    Changed(
        "behind_in_awaits",
        "a job that is released once more than it awaits becomes READY while the job before it runs",
        (
            Change(moves, "take_key", "job.set_flag(Flag.BEHIND, True)", 'job.header["awaits"] += 1'),
            Change(
                moves,
                "release_key",
                "waiting.set_flag(Flag.BEHIND, False)",
                'draft.add(waiting.ref, "awaits", -1)\n        draft.readies = True',
            ),
            Change(moves, "release_key", 'if waiting.status == HELD and waiting.header["awaits"] <= 0:', "if False:"),
        ),
    ),
    Changed(
        "unowned_awaits",
        "a put brings back the number that it read, and a release is lost",
        (
            Change(RecordStore, "_put", "if name in written:", 'if name in written or name == "awaits":'),
            Change(Job, "to_put", "if stored[name] != value}", "}"),
        ),
    ),
    Changed(
        "tied_parts_apart",
        "two items of a batch that write one record are two steps",
        (Change(Draft, "steps", "_tied(parts)", "[[part] for part in parts]"),),
    ),
    Changed(
        "claim_keeps_the_rev",
        "a decision about a waiting job takes effect though the job runs",
        (Change(MemoryStore, "_lease", '"claim", rev, lease', '"claim", self._records[ref].rev, lease'),),
    ),
    Changed(
        "next_forgotten",
        "a job that ends drops its key's record though another one waits behind it",
        (Change(moves, "release_key", "if waiting is None or not waiting.is_live:", "if True:"),),
    ),
    Changed(
        "expects_writes_only",
        "a decision holds though a record that it has only read has changed",
        (Change(Draft, "_step", "for ref in whole.read}", "for ref in whole.written}"),),
    ),
)
