"""Adding jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from taskflow.broker.engine import moves
from taskflow.broker.engine.draft import Draft
from taskflow.broker.engine.job import put_of_plain
from taskflow.broker.engine.moves import MOVE_SCANS, decide
from taskflow.broker.engine.seam import Add, Applied, Apply, Full, Operation, Ref, Snapshot
from taskflow.broker.engine.settle import read
from taskflow.broker.protocol import Added, Refused
from taskflow.model.envelope import Envelope, is_plain
from taskflow.model.errors import StoreFull
from taskflow.model.rules import Rules

MAX_ASSUMED: Final = 512
"""The most bytes of a payload that is sent before it is known whether its key is free. Redis keeps larger ones apart, also in vain."""


def enqueue(envelopes: Sequence[Envelope], rules: Rules, *, assumes_new: bool = False) -> Operation[list[Added | Refused]]:
    """Add jobs in one step. `assumes_new` says that no live job probably has one of their keys."""
    if all(map(is_plain, envelopes)) and len({envelope.id for envelope in envelopes}) == len(envelopes):
        are_new: list[bool] | str = yield Add([put_of_plain(envelope) for envelope in envelopes])
        if isinstance(are_new, str):
            raise StoreFull(are_new)
        answers = [_answer(envelope.id, is_new) for envelope, is_new in zip(envelopes, are_new, strict=True)]
    else:
        refs = [ref for envelope in envelopes for ref in moves.refs_of(envelope)]
        added = None
        are_due = all(each.at is None and not each.after and len(each.payload) <= MAX_ASSUMED for each in envelopes)
        if assumes_new and are_due and len(set(refs)) == len(refs):
            added = yield from _add_new(envelopes, refs, rules)
        answers = added or (yield from decide(envelopes, moves.add, rules, refs, scans=MOVE_SCANS, grows=True, together=True))
    return (yield from compare_known(envelopes, answers))


_NOTHING_STORED: Final = Snapshot(0, 0, b"", {}, ([], [], []))


def _add_new(envelopes: Sequence[Envelope], refs: Sequence[Ref], rules: Rules) -> Operation[list[Added | Refused] | None]:
    """Add jobs that are due without a query, as if neither they nor their keys existed. Return None if one of them does."""
    draft = Draft(_NOTHING_STORED._replace(records=dict.fromkeys(refs)), rules)
    answers = draft.decide(envelopes, moves.add, together=True)
    [answer], _ = yield Apply([step for _, step in draft.steps()], grows=True)
    if isinstance(answer, Full):
        raise StoreFull(answer.says)
    return answers if isinstance(answer, Applied) else None


def are_new(answers: Sequence[Added | Refused]) -> bool:
    """Return True if no live job had a key of these jobs: the next ones are probably new too."""
    return all(isinstance(answer, Added) and answer.replaced is None for answer in answers)


def _answer(job_id: bytes, is_new: bool) -> Added | Refused:
    return Added(job_id) if is_new else Refused(job_id, job_id, "id")


def compare_known(envelopes: Sequence[Envelope], answers: Sequence[Added | Refused]) -> Operation[list[Added | Refused]]:
    """Compare the envelopes that were refused because of their ids with the known jobs: they are resent, or clash. Only they pay for it."""
    ids = [answer.id for answer in answers if isinstance(answer, Refused) and answer.because == "id"]
    if not ids:
        return list(answers)
    known = dict(zip(ids, (yield from read(ids)), strict=True))
    return [
        Refused.as_known(envelope, known[envelope.id]) if isinstance(answer, Refused) and answer.because == "id" else answer
        for envelope, answer in zip(envelopes, answers, strict=True)
    ]
