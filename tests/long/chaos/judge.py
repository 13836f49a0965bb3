"""The judge of a chaos test: rules over the ledger and the store. Each rule yields the violations that it finds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from tests.long.chaos.history import History
from tests.long.chaos.ledger import Line
from tests.long.chaos.overlaps import overlaps
from tests.long.chaos.state import State, Stored

ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
WAITING: Final = frozenset({"held", "scheduled", "ready"})
POISON: Final = "poison: "
COMPLETED: Final = "chaos.completed"
"""The job that completes in its own transaction."""

MAX_CRASHES: Final = 3

EARLY: Final = 0.01
"""Seconds by which a machine's clocks may seem to differ: they are read before and after a call."""

LATE: Final = 0.5
"""Seconds for which a run that was claimed in time may wait for a processor."""


class Violation(NamedTuple):
    """A broken rule, the jobs that it concerns, and the processes that matter."""

    rule: str
    why: str
    ids: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()


class Case(NamedTuple):
    """The ledger and the store to be judged. `ttl` is the workers'."""

    history: History
    state: State
    ttl: float

    def exists(self, id: str) -> bool:
        """Return True if the store has added this job, even if it has dropped it since."""
        return id in self.state.jobs or id in self.history.runs or self.seen(id) is not None

    def seen(self, id: str) -> Line | None:
        """Return the line in which a process saw the end of this job."""
        return next((line for line in self.history.of_job.get(id, ()) if line.event == "ended"), None)

    def end(self, id: str) -> Stored | None:
        """Return how the job has ended. A cancelled job is dropped after a while; then the line that saw its end counts."""
        seen = self.seen(id)
        return self.state.jobs.get(id) or (Stored(status="cancelled", reason=seen.note) if seen and seen.status == "cancelled" else None)


Rule = Callable[[Case], Iterator[tuple[str, tuple[str, ...]]]]


def no_job_is_lost(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    for id, fate in case.history.fates.items():
        if fate == "added" and case.end(id) is None:
            yield "was accepted, and the store does not know it", (id,)


def no_job_is_stuck(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    for id, stored in case.state.jobs.items():
        if stored.status not in ENDED:
            yield f"is still {stored.status} after the drain", (id,)
    if case.state.leases or case.state.sessions:
        yield f"{case.state.sessions} sessions are left, with {case.state.leases} leases", ()
    for key in case.state.held_keys:
        yield f"key {key} is still held", ()


def each_job_ends_as_it_may(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    for id, sent in case.history.sent.items():
        end = case.end(id)
        if end is not None and end.status in ENDED and (wrong := _wrong_end(case, sent, end)):
            yield f"ended {end.status}, {end.reason!r}, after {end.failures} failures and {end.crashes} crashes: {wrong}", (id,)


def _wrong_end(case: Case, sent: Line, end: Stored) -> str:
    if end.status == "failed" and end.reason.startswith(POISON):
        return "" if end.crashes > MAX_CRASHES and end.epoch > MAX_CRASHES else "its workers were not lost that often"
    expected = "succeeded"
    match sent.kind:
        case "retried":
            expected = "succeeded" if sent.fails < sent.max_attempts else "failed"
            if end.failures != min(sent.fails, sent.max_attempts):
                return f"{min(sent.fails, sent.max_attempts)} attempts were to fail"
        case "expiring" if end.status == "cancelled" and end.reason == "expired":
            return ""
        case "cancelled" if end.status == "cancelled":
            return ""
        case _ if sent.key and end.status == "cancelled":
            is_kept_out = sent.kind == "transactional" and sent.conflict != "replace" and end.reason.startswith("key held by ")
            by = end.reason.removeprefix("key held by " if is_kept_out else "replaced by ")
            has_the_key = by in case.history.sent and case.history.sent[by].key == sent.key and case.exists(by)
            return "" if has_the_key else "no job with its key has replaced it, or was committed before it"
    return "" if end.status == expected else f"it was to end {expected}"


def nothing_comes_from_nowhere(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    for id in {**case.state.jobs, **case.history.runs}:
        stored, fate = case.state.jobs.get(id), case.history.fates.get(id)
        if fate in ("kept", "refused", "rolled back"):
            yield f"is there, and its sender was told that it was {fate}", (id,)
        elif fate is None and stored is not None and not stored.schedule and not stored.caused_by:
            yield "is there, and nobody has sent it", (id,)
        elif stored is None and case.end(id) is None:
            yield "ran, and the store does not know it", (id,)
    for id, standing in case.history.standing.items():
        if standing and (standing not in case.history.sent or case.history.sent[standing].key != case.history.sent[id].key):
            yield f"was kept off by {standing}, which has not its key", (id, standing)
        elif (end := case.seen(standing)) and end.mono < case.history.sent[id].mono:
            yield f"was kept off by {standing}, whose end had been seen before it was sent", (id, standing)


def transactions_decide(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The order that was written in the same transaction shows whether it has committed."""
    orders = case.state.orders or set()
    for id, sent in case.history.sent.items():
        fate = case.history.fates[id]
        if sent.kind != "transactional":
            continue
        if fate == "rolled back" and id in orders:
            yield "was rolled back, and its order is there", (id,)
        elif id in orders and fate != "kept" and not case.exists(id):
            yield "is not there, and its transaction has committed", (id,)
        elif id not in orders and case.exists(id):
            yield "is there, and its transaction has not committed", (id,)


def batches_are_whole(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    batches = defaultdict[str, list[str]](list)
    for id, sent in case.history.sent.items():
        if sent.batch and sent.kind == "plain":
            batches[sent.batch].append(id)
    for ids in batches.values():
        missing = [id for id in ids if not case.exists(id)]
        if missing and len(missing) < len(ids):
            yield f"is missing, and {len(ids) - len(missing)} others of its batch are there", (missing[0],)


def each_job_ends_once(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    for id, lines in case.history.of_job.items():
        stored, runs = case.state.jobs.get(id), case.history.runs.get(id, [])
        seen = [line for line in lines if line.event == "ended"]
        for line in seen:
            if any(run.begin > line.mono for run in runs):
                yield "ran again after its end was seen", (id,)
            if stored and (stored.status != line.status or (line.epoch and line.epoch != stored.result_epoch)):
                yield f"was seen to end {line.status} under epoch {line.epoch}, and now it is {stored.status}", (id,)
        if stored and stored.status == "succeeded":
            yield from _wrong_success(case, id, stored)
    succeeded = sum(stored.status == "succeeded" for stored in case.state.jobs.values())
    if case.state.totals.get("succeed", 0) != succeeded:
        yield f"{case.state.totals.get('succeed', 0)} successes are counted, and {succeeded} jobs have succeeded", ()
    added = case.state.totals.get("enqueue", 0) - case.state.totals.get("drop", 0)
    if added != len(case.state.jobs):
        yield f"{added} jobs were added and not dropped, and {len(case.state.jobs)} are there", ()


def _wrong_success(case: Case, id: str, stored: Stored) -> Iterator[tuple[str, tuple[str, ...]]]:
    if stored.result_epoch is None:
        yield "has succeeded, and its result cannot be read", (id,)
        return
    run = next((run for run in case.history.runs.get(id, []) if run.epoch == stored.result_epoch), None)
    if run is None or stored.epoch != stored.result_epoch:
        yield f"has succeeded under epoch {stored.epoch}, with the result of epoch {stored.result_epoch}", (id,)
    elif run.status != "ok" and (stored.job != COMPLETED or run.status == "failed"):  # a commit may count whose reply was lost
        yield f"has succeeded with a run that ended {run.status or 'with its process'!r}", (id,)
    is_ignored = any(line.event == "ignored" and line.epoch == stored.epoch for line in case.history.of_job[id])
    if is_ignored and stored.job != COMPLETED:
        yield f"has succeeded under epoch {stored.epoch}, and its worker was told that this verdict is ignored", (id,)


def attempts_are_counted(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    for id, runs in case.history.runs.items():
        stored, epochs = case.state.jobs.get(id), Counter(run.epoch for run in runs)
        if max(epochs.values()) > 1:
            yield f"began {max(epochs.values())} times under one epoch", (id,)
        if stored and max(run.attempt for run in runs) > stored.max_attempts:
            yield f"began attempt {max(run.attempt for run in runs)} of {stored.max_attempts}", (id,)
        if stored and max(epochs) > stored.epoch:
            yield f"ran under epoch {max(epochs)}, and the store has given it {stored.epoch}", (id,)
        failed = {run.attempt for run in runs if run.status not in ("ok", "snoozed", "stopped", "")}
        for before, after in pairwise(sorted(runs, key=lambda run: run.epoch)):
            if not before.attempt <= after.attempt <= before.attempt + (before.attempt in failed):
                yield f"went from attempt {before.attempt} under epoch {before.epoch} to {after.attempt}", (id,)


def cancelled_jobs_do_not_begin(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    for id, lines in case.history.of_job.items():
        for line in lines:
            if line.event != "cancelled":
                continue
            later = [run for run in case.history.runs.get(id, []) if run.begin > line.mono]
            end = case.end(id)
            if later and line.status in WAITING | ENDED:
                yield f"began after it was cancelled, when it was {line.status}", (id,)
            elif len(later) > 1:
                yield "began twice after it was asked to stop", (id,)
            if end and line.status in WAITING and end.status != "cancelled":
                yield f"was cancelled while it was {line.status}, and has {end.status}", (id,)


def no_run_begins_early_or_late(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    for id, runs in case.history.runs.items():
        sent = case.history.sent.get(id)
        if sent is None:
            continue
        if sent.after and min(run.at for run in runs) < sent.at + sent.after - EARLY:
            yield f"began {sent.at + sent.after - min(run.at for run in runs):.3f} s early", (id,)
        accepted = next((line for line in case.history.of_job[id] if line.event == "accepted"), None)
        if sent.expires and accepted:
            for run in runs:
                late = run.at - accepted.at - sent.expires
                if late > LATE and not case.history.is_stopped_in(run.pid, run.begin - late - 1, run.begin):
                    yield f"began {late:.3f} s after it had expired", (id,)


def each_instant_fires_once(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    for schedule in case.state.schedules:
        fired = defaultdict[float, list[str]](list)
        for id, stored in case.state.jobs.items():
            if stored.schedule == schedule.name:
                fired[stored.instant].append(id)
        for instant, ids in fired.items():
            if len(ids) > 1:
                yield f"{schedule.name} has fired {len(ids)} times for {instant}", tuple(ids)
        for before, after in pairwise(sorted(fired)):
            if after - before != schedule.every:
                yield f"{schedule.name} has fired for {before} and then for {after}", (*fired[before], *fired[after])
        if (schedule.fired, schedule.missed) != (len(fired), 0):
            yield f"{schedule.name} counts {schedule.fired} firings and {schedule.missed} missed; it has {len(fired)} jobs", ()


def failures_are_followed_up_once(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    follow_ups = Counter(stored.caused_by for stored in case.state.jobs.values() if stored.caused_by)
    for id, sent in case.history.sent.items():
        end = case.end(id)
        expected = int(sent.kind == "retried" and end is not None and end.status == "failed")
        if follow_ups[id] != expected:
            yield f"has sent {follow_ups[id]} follow-ups instead of {expected}", (id,)


def effects_are_of_successes(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    for id in {*(case.state.effects or ()), *(id for id, sent in case.history.sent.items() if sent.kind == "completed")}:
        end, effects = case.end(id), (case.state.effects or {}).get(id, 0)
        if effects != int(end is not None and end.status == "succeeded"):
            yield f"has {effects} effects, and is {end and end.status}", (id,)


def counts_are_true(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    there = dict(Counter(stored.status for stored in case.state.jobs.values()))
    if there != case.state.counts:
        yield f"the admin interface counts {case.state.counts}, and lists {there}", ()
    for problem in case.state.problems:
        yield problem, ()


def no_run_vanishes(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    for id, runs in case.history.runs.items():
        for run in runs:
            if run.end == float("inf"):
                yield f"ran under {run}, which nobody has killed, and its run has no end", (id,)


def no_service_fails(case: Case) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Whatever a store or a network does, workers know the error."""
    for line in case.history.lines:
        if line.event == "service failed":
            yield f"process {line.pid} met an unexpected error: {line.note}", ()


RULES: Final[Sequence[Rule]] = (
    *(no_job_is_lost, no_job_is_stuck, each_job_ends_as_it_may, nothing_comes_from_nowhere, transactions_decide, batches_are_whole),
    *(each_job_ends_once, attempts_are_counted, cancelled_jobs_do_not_begin, no_run_begins_early_or_late, each_instant_fires_once),
    *(failures_are_followed_up_once, effects_are_of_successes, counts_are_true, no_run_vanishes, no_service_fails),
)


def judge(lines: Sequence[Line], state: State, *, ttl: float) -> list[Violation]:
    """Return all violations."""
    case = Case(History(lines), state, ttl)
    found = [Violation(rule.__name__, why, ids) for rule in RULES for why, ids in rule(case)]
    return [*found, *(Violation("runs_do_not_overlap", why, ids, pids) for why, ids, pids in overlaps(case.history, ttl))]


def told(violations: Sequence[Violation], lines: Sequence[Line], most: int = 20) -> str:
    """Return the first violations, each with its lines in the ledger."""
    history, parts = History(lines), list[str]()
    for violation in violations[:most]:
        ledger = "\n".join(f"    {line.id[-8:]:>8} {line}" for line in history.lines_of(violation.ids, violation.pids))
        parts.append(f"{violation.rule}: {', '.join(violation.ids)} {violation.why}\n{ledger}")
    return "\n".join([*parts, f"{len(violations)} violations: {dict(Counter(violation.rule for violation in violations))}"])
