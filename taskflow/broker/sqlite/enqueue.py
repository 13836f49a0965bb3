"""The `enqueue` verb, which adds envelopes as one batch, except those with a key or dependencies, which it adds one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, Final

from taskflow.broker.protocol import Added, Refused
from taskflow.broker.sqlite.row import SENT, SENT_AS_IS, JobRow
from taskflow.broker.sqlite.transitions import Transitions
from taskflow.model import wording
from taskflow.model.envelope import Envelope, pack_extras
from taskflow.model.errors import StoreFull
from taskflow.model.record import CODES, Status
from taskflow.model.transitions import Event, due_at, expires_at, refused_for

_READY: Final = CODES[Status.READY]
_SCHEDULED: Final = CODES[Status.SCHEDULED]


def enqueue(transitions: Transitions, envelopes: Sequence[Envelope], capacity: int | None = None) -> list[Added | Refused]:
    refuse_if_full(transitions, envelopes, capacity)
    return add_all(transitions, envelopes)


def refuse_if_full(transitions: Transitions, envelopes: Sequence[Envelope], capacity: int | None) -> None:
    if capacity is None:
        return
    wanted = sum(transitions.job(envelope.id) is None for envelope in envelopes)
    transitions.tally.flush()
    [(live,)] = transitions.connection.execute(transitions.sql["live_count"])
    if wanted and live + wanted > capacity:
        raise StoreFull(wording.STORE_FULL % capacity)


def add_all(transitions: Transitions, envelopes: Iterable[Envelope]) -> list[Added | Refused]:
    """Add envelopes in order. Consecutive envelopes without a key or dependencies are added together."""
    answers = list[Added | Refused]()
    for stand_alone, grouped in groupby(envelopes, _stands_alone):
        alike = list(grouped)
        answers += _add_together(transitions, alike) if stand_alone else [_add_one(transitions, envelope) for envelope in alike]
    return answers


def _last_seq(transitions: Transitions) -> int:
    """Return the seq of the newest job. This also empties the cache of job names if any have been dropped."""
    [(last_seq, drops)] = transitions.connection.execute(transitions.sql["last_seq"])
    transitions.job_names.forget_if_dropped(drops)
    return int(last_seq)


def _stands_alone(envelope: Envelope) -> bool:
    """Return True if the job has neither a key nor dependencies (`row.TIES`), so that adding it affects no other job."""
    return envelope.key is None and envelope.awaits <= 0


def _refused_as_known(transitions: Transitions, envelope: Envelope, known: JobRow | None) -> Refused:
    is_kept = known is not None and known.is_kept(transitions.now)
    return Refused.as_known(envelope, transitions.record(known) if known is not None and is_kept else None)


# --- as a batch ------------------------------------------------------------------------------------------------


def _add_together(transitions: Transitions, envelopes: list[Envelope]) -> list[Added | Refused]:
    last_seq = _last_seq(transitions)
    rows = [_row(transitions, envelope) for envelope in envelopes]
    added = transitions.insert_rows("add_jobs", rows)
    if added == len(rows):
        _count_in_all(transitions, rows)
        _index_tags(transitions, envelopes)
        return [Added(envelope.id) for envelope in envelopes]
    fresh = {job_id for (job_id,) in transitions.connection.execute(transitions.sql["ids_after"], (last_seq,))}
    answers = list[Added | Refused]()
    for row, envelope in zip(rows, envelopes, strict=True):
        job_id = row[_ID]
        if job_id in fresh:
            fresh.discard(job_id)  # so that a second occurrence of an id in a batch is refused
            _count_in_all(transitions, [row])
            answers.append(Added(job_id))
        else:
            answers.append(_refused_as_known(transitions, envelope, transitions.job(job_id)))
    _index_tags(transitions, [envelope for envelope, answer in zip(envelopes, answers, strict=True) if isinstance(answer, Added)])
    return answers


_Row = tuple[Any, ...]

_as_sent: Final[Callable[[Envelope], tuple[Any, ...]]] = attrgetter(*SENT_AS_IS)
_ID: Final = SENT.index("id")
_due_at: Final = itemgetter(SENT.index("due_at"))


def _row(transitions: Transitions, envelope: Envelope) -> _Row:
    """Return the values of the columns in `row.SENT`."""
    now = transitions.now
    due = due_at(envelope, now)
    made = (
        _SCHEDULED if due > now else _READY,
        transitions.queues.number(envelope.queue),
        transitions.job_names.number(envelope.job),
        now,
        due,
        expires_at(envelope, now),
        pack_extras(envelope),
        b"".join(envelope.joins) if envelope.joins else None,
    )
    return made + _as_sent(envelope)


def _index_tags(transitions: Transitions, added: Sequence[Envelope]) -> None:
    if tags := [(tag, envelope.id) for envelope in added for tag in envelope.tags]:
        transitions.execute_rows("add_tags", tags)


def _count_in_all(transitions: Transitions, rows: list[_Row]) -> None:
    for (status, queue), grouped in groupby(rows, lambda row: row[:2]):
        alike = list(grouped)
        transitions.tally.move(queue, Event.ENQUEUE, None, status, len(alike))
        if status == _READY:
            transitions.announce_ready(queue, len(alike))
        else:
            transitions.announcement.add_due(min(map(_due_at, alike)))


# --- one by one ------------------------------------------------------------------------------------------------


def _add_one(transitions: Transitions, envelope: Envelope) -> Added | Refused:
    if (known := transitions.job(envelope.id)) is not None:
        return _refused_as_known(transitions, envelope, known)
    waiting, running = transitions.holders(envelope.key)
    if (holder := refused_for(waiting, running, envelope.on_conflict)) is not None:
        return Refused(envelope.id, holder.id, "key")
    if waiting is not None:
        transitions.finish(waiting, Event.REPLACE, Status.CANCELLED, wording.replaced_by(envelope.id))
    _last_seq(transitions)
    transitions.add(_job_of(transitions, envelope), behind=running)
    _index_tags(transitions, [envelope])
    return Added(envelope.id, None if waiting is None else waiting.id)


def _job_of(transitions: Transitions, envelope: Envelope) -> JobRow:
    job = JobRow(**dict(zip(SENT, _row(transitions, envelope), strict=True)))
    job.code, job.key, job.awaits = None, envelope.key, envelope.awaits
    return job
