"""Decides what to do about items, such as settlements, and then what follows for other jobs. These are jobs that no longer await anything,
jobs that wait at a gate (a limit) which now has room, and jobs in the same flow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set as AbstractSet
from typing import Any, Final, TypeVar

import msgspec

from taskflow.broker.engine import flows, gates
from taskflow.broker.engine.draft import Draft, Foreseen, Left, decide as decide_once
from taskflow.broker.engine.job import Job
from taskflow.broker.engine.moves import MOVE_SCANS, ask_to_stop, enter, finish, move, redo, release as release_job
from taskflow.broker.engine.records import BURIED, CANCELLED, HELD, READY, RUNNING, SCHEDULED, Flag, Kind, Position
from taskflow.broker.engine.seam import Entry, Operation, Query, Ref, Rev, Scan, Snapshot
from taskflow.model import wording
from taskflow.model.record import Status
from taskflow.model.rules import Rules
from taskflow.model.transitions import Event

Item = TypeVar("Item")
T = TypeVar("T")

MAX_FILLS: Final = 16

PORTION: Final = 500
"""The maximum number of jobs that actions on flows change at a time."""

UNTAKEN_TIMEOUT: Final = 5_000_000
"""Microseconds for which a READY job keeps its slots while jobs of other queues wait for them."""

MAX_LOOKED_AT: Final = 1_000_000

MAX_FLOW_CHANGES: Final = 2_000
"""The maximum number of jobs in flows that an operation changes after a failure. Upkeep changes the rest."""


def decide(
    items: Sequence[Item],
    one: Callable[[Draft, Item], T],
    rules: Rules,
    refs: Iterable[Ref],
    *,
    scans: tuple[Scan, ...] = (),
    groups: tuple[tuple[str, Position], ...] = (),
    most: int = MAX_FLOW_CHANGES,
    **more: Any,
) -> Operation[list[T]]:
    """Decide what to do about items, as `draft.decide` does, and then what follows for other jobs. Examine at most `most` jobs in flows."""
    left = Left()
    answers: list[T] = yield from decide_once(items, one, rules, Query(tuple(refs), scans, groups), left=left, **more)
    yield from follow(left, rules, most)
    return answers


def follow(left: Left, rules: Rules, most: int = MAX_FLOW_CHANGES) -> Operation[tuple[int, bool]]:
    """Carry out the consequences of earlier decisions, which are collected in `left`. Examine at most `most` jobs in flows. Return how many
    were examined, and whether another program's open transaction blocks one of them."""
    looked_at = (yield from _carry_on(left, rules, most)) if left.actions else (0, False)
    if left.released:
        ids = sorted(left.released)
        look = Query(tuple(Ref(Kind.JOB, job_id) for job_id in ids), MOVE_SCANS)
        yield from decide_once(ids, _free, rules, look, locked=False, left=left)
    if left.opened:
        yield from fill(left.opened, rules)
    return looked_at


def fill(opened: set[bytes], rules: Rules) -> Operation[int]:
    """Let jobs that wait at these gates become READY while the gates have room. Return the number of jobs. After `MAX_FILLS` rounds, leave
    the rest to upkeep."""
    passed = 0
    for _ in range(MAX_FILLS):
        if not opened:
            break
        ids, left = sorted(opened), Left()
        look = Query(tuple(Ref(Kind.GATE, gate_id) for gate_id in ids), MOVE_SCANS)
        foreseen = Foreseen(dict.fromkeys(ids, gates.MAX_TRIED))
        passed += sum((yield from decide_once(ids, _fill, rules, look, locked=0, left=left, foreseen=foreseen)))
        opened = left.opened
    return passed


def _fill(draft: Draft, gate_id: bytes) -> int:
    passed = 0
    for job in gates.fill(draft, gate_id):  # move each job before the generator looks at the next one
        move(draft, job, Event.DUE, READY)
        passed += 1
    return passed


def _free(draft: Draft, job_id: bytes) -> bool:
    """Release a HELD job if it awaits nothing, or begin to drop the notes of a job that is gone. If the job has to await more jobs in the
    meantime, its revision changes, and the release is decided again. If the job is locked, the next upkeep releases it."""
    job = draft.job(job_id)
    if job is None or job.status == BURIED:
        flows.put(draft, job_id, flows.Action(flows.FORGET, job_id), leaves=True)  # the job no longer exists, but has received a result
    elif job.status == HELD and job.header["awaits"] <= 0 and not job.has(Flag.BEHIND):
        release_job(draft, job)
    return True


def give_back(queue: str, limit: int, rules: Rules) -> Operation[int]:
    """Take back the slots held by up to `limit` READY jobs of a paused queue. Return the number of jobs."""

    def one(draft: Draft, job_id: bytes) -> bool:
        job = draft.job(job_id)
        if job is None or job.status != READY or not job.has(Flag.LIMITED) or draft.plain(Kind.QUEUE, job.queue.encode()) is None:
            return False
        move(draft, job, Event.PARK, SCHEDULED)
        enter(draft, job, Event.DUE)
        return True

    seen: Snapshot = yield Query(scans=(Scan("holding", limit, (queue,), with_records=False),))
    ids = [entry.ref.id for entry in seen.scans[0]]
    refs = [Ref(Kind.QUEUE, queue.encode()), *(Ref(Kind.JOB, job_id) for job_id in ids)]
    return sum((yield from decide(ids, one, rules, refs, scans=MOVE_SCANS, locked=False)))


def admit_again(gate_ids: AbstractSet[bytes], jobs: Sequence[Job], rules: Rules) -> Operation[None]:
    """Let READY jobs pass their gates again where they couldn't now: gates with fewer slots than jobs, and rates that are closed."""

    def one(draft: Draft, job_id: bytes) -> bool:
        job = draft.job(job_id)
        if job is None or job.status != READY:
            return False
        passed = [record.header for gate in job.limits if gate.id in gate_ids and (record := draft.plain(Kind.GATE, gate.id)) is not None]
        if not any(each["taken"] > each["most"] or (each["closed_until"] or 0) > draft.now for each in passed):
            return False
        move(draft, job, Event.PARK, SCHEDULED)
        enter(draft, job, Event.DUE)
        return True

    found = [job for job in jobs if not gate_ids.isdisjoint({gate.id for gate in job.limits})]
    for portion in portions(found):
        refs = {ref for job in portion for ref in (job.ref, Ref(Kind.QUEUE, job.queue.encode()), *gates.refs_of(job.limits))}
        yield from decide([job.id for job in portion], one, rules, refs, scans=MOVE_SCANS, locked=False)


def first_ready(limit: int) -> Operation[list[Job]]:
    """Return about `limit` READY jobs with limits, the first of each queue."""
    holding: Snapshot = yield Query(groups=(("holding", ()),))
    queues = [group.prefix[0] for group in holding.groups[0]][:limit]
    seen: Snapshot = yield Query(scans=tuple([Scan("holding", max(1, limit // len(queues)), (name,)) for name in queues]))
    return [Job.of_record(entry.record) for entries in seen.scans for entry in entries if entry.record is not None]


def take_back(queue: str, limit: int, rules: Rules) -> Operation[int]:
    """Take back the slots of up to `limit` jobs of a queue that have been READY for `UNTAKEN_TIMEOUT`, and pass the slots to waiting jobs
    of other queues. Return the number of jobs that lost their slots."""

    def one(draft: Draft, job_id: bytes) -> bool:
        job = draft.job(job_id)
        if job is None or job.status != READY or job.header["since"] is None or job.header["since"] > draft.now - UNTAKEN_TIMEOUT:
            return False
        if not gates.leave_to_others(draft, job):
            return False
        job.header["due_at"] = draft.now
        move(draft, job, Event.PARK, SCHEDULED)
        enter(draft, job, Event.DUE)
        return True

    seen: Snapshot = yield Query(scans=(Scan("holding", limit, (queue,)),))
    jobs = [Job.of_record(entry.record) for entry in seen.scans[0] if entry.record is not None]
    refs = {ref for job in jobs for ref in gates.refs_of(job.limits)}
    full: Snapshot = yield Query(tuple(refs))
    crowded = [ref.id for ref, record in full.records.items() if record is not None and record.header["has_waiting"]]
    if not crowded:
        return 0
    refs |= {Ref(Kind.JOB, job.id) for job in jobs}
    ids, foreseen = [job.id for job in jobs], Foreseen(dict.fromkeys(crowded, max(1, gates.MAX_TRIED // len(crowded))))
    taken_back = sum((yield from decide(ids, one, rules, refs, scans=MOVE_SCANS, locked=False, foreseen=foreseen)))
    if not taken_back and (after := (yield from _before_others(queue, crowded))):  # many jobs of this queue wait in front of the others
        foreseen = foreseen._replace(after=after)
        taken_back = sum((yield from decide(ids, one, rules, refs, scans=MOVE_SCANS, locked=False, foreseen=foreseen)))
    return taken_back


def _before_others(queue: str, gate_ids: Sequence[bytes]) -> Operation[dict[bytes, Position]]:
    """Find jobs of other queues that wait at these gates, among the first SCHEDULED jobs of each queue. Return the positions before the
    first ones."""
    scheduled: Snapshot = yield Query(groups=(("scheduled", ()),))
    others = [group.prefix[0] for group in scheduled.groups[0] if group.prefix[0] != queue][: gates.MAX_TRIED]
    size = 4 * gates.MAX_TRIED // max(1, len(others))
    seen: Snapshot = yield Query(scans=tuple([Scan("scheduled", size, (name,)) for name in others]))
    found = [entry.record.header for entries in seen.scans for entry in entries if entry.record is not None]
    at = [(each["gate"], -each["priority"], each["due_at"], each["seq"] - 1) for each in found if each["gate"] in gate_ids]
    return {position[0]: position for position in sorted(at, reverse=True)}


# --- flows ------------------------------------------------------------------------------------------------------------


def _carry_on(left: Left, rules: Rules, most: int) -> Operation[tuple[int, bool]]:
    number, revs, held_up, blocked = 0, dict[bytes, Rev](), set[bytes](), dict[bytes, flows.Action]()
    while number < most and left.actions:
        room = min(PORTION, most - number)
        groups = _grouped(left.actions, room)
        size = room // len(groups)
        refs = {Ref(Kind.FLOW, action_id) for group in groups for action_id in group}
        seen: Snapshot = yield Query((*refs,), (*MOVE_SCANS, *(flows.together(group.values()).scan(size) for group in groups)))
        if _is_outdated(left, seen, refs, revs):
            continue
        found = seen.scans[len(MOVE_SCANS) :]
        items = [(group, entry.ref) for group, entries in zip(groups, found, strict=True) for entry in entries]
        look = Query((*refs, *{ref for _, ref in items}), MOVE_SCANS)
        seen.records.update({entry.ref: entry.record for entries in found for entry in entries})
        acted = yield from decide_once(items, _act_on, rules, look, locked=False, together=None, left=left, foreseen=Foreseen(seen=seen))
        held_up.update(action_id for (group, _), has_acted in zip(items, acted, strict=True) if not has_acted for action_id in group)
        done = dict[bytes, flows.Action]()
        for group, entries in zip(groups, found, strict=True):
            for action_id, action in group.items():
                if len(entries) == size:
                    left.actions[action_id] = action.behind(entries[-1])
                else:  # the next upkeep repeats an action that was held up
                    (blocked if action_id in held_up else done)[action_id] = left.actions.pop(action_id)
        number += len(items)
        yield from _finish(done, revs, left, rules)
    remaining = [each for each in left.actions.items() if each[0] not in held_up]
    if remaining := [*remaining, *((each, msgspec.structs.replace(action, after=0)) for each, action in blocked.items() if action.begun)]:
        refs = {Ref(Kind.FLOW, action_id) for action_id, _ in remaining}
        yield from decide_once(remaining, _put_off, rules, Query(tuple(refs)), locked=None)
    return number, bool(held_up)


_Group = dict[bytes, flows.Action]
"""Actions with the same extent, by their ids."""


def _grouped(actions: Mapping[bytes, flows.Action], most: int) -> list[_Group]:
    groups = dict[object, _Group]()
    for action_id, action in actions.items():
        groups.setdefault(action.extent, {})[action_id] = action
    return [*groups.values()][: min(PORTION // 2, most)]


def _is_outdated(left: Left, seen: Snapshot, refs: Iterable[Ref], revs: dict[bytes, Rev]) -> bool:
    """Adopt the stored version of each action that is read for the first time: another client may have removed the action or replaced it,
    perhaps with the same action starting over. Return True if any stored version differed."""
    is_outdated = False
    for ref in [ref for ref in refs if ref.id not in revs]:
        known, record = left.actions[ref.id], seen.records[ref]
        if record is None:
            del left.actions[ref.id]
        else:
            left.actions[ref.id], revs[ref.id] = flows.action_in(ref.id, record), record.rev
        is_outdated = is_outdated or left.actions.get(ref.id) != known
    return is_outdated


def _act_on(draft: Draft, item: tuple[_Group, Ref]) -> bool:
    group, ref = item
    if ref.kind == Kind.NOTE:
        if draft.plain(*ref) is not None:
            draft.drop(ref)
    elif (job := draft.job(ref.id)) is not None and job.sent.member is not None:
        for action_id, action in group.items():
            is_meant = action.what != flows.RESTORE or job.state.cancelled_by in action.retried
            if is_meant and flows.is_current(draft, action_id, action):
                _act(draft, job, action)
                break
    return True


def _act(draft: Draft, job: Job, action: flows.Action) -> None:
    if action.what == flows.RESTORE:
        if job.status == CANCELLED:
            flows.redo(draft, job, acts=False)
            redo(draft, job, job.header["due_at"])
    elif job.is_waiting:
        finish(draft, job, Event.CANCEL, Status.CANCELLED, action.reason, keep=action.keep, by=action)
    elif job.status == RUNNING and action.what == flows.CANCEL:
        job.state.cancelled_by = action.cause
        ask_to_stop(draft, job)


def _finish(done: dict[bytes, flows.Action], revs: dict[bytes, Rev], left: Left, rules: Rules) -> Operation[None]:
    """Finish actions that have reached all their jobs. After a RESTORE, cancel jobs again if they are in the scope of another failure, or
    if they await a job that was dropped or remains cancelled. Then drop the stored actions, unless they were replaced."""
    for flow in {action.owner for action in done.values() if action.what == flows.RESTORE}:
        census = flows.Census()
        yield from each_portion(flows.whole(flow), census.add)
        for ids, one in ((census.failures(), flows.cancel_again), (census.in_vain(), _give_up)):
            look = Query(tuple(Ref(Kind.JOB, job_id) for job_id in ids), MOVE_SCANS)
            yield from decide_once(ids, one, rules, look, locked=False, left=left)

    def drop(draft: Draft, action_id: bytes) -> bool:
        record = draft.seen.records[Ref(Kind.FLOW, action_id)]
        if record is not None and record.rev == revs[action_id]:
            draft.drop(record.ref)
        return True

    refs = [Ref(Kind.FLOW, action_id) for action_id in done]
    yield from decide_once([*done], drop, rules, Query(tuple(refs)), locked=False)
    for action_id in done:
        del revs[action_id]


def each_portion(scan: Scan, take: Callable[[list[Entry]], object]) -> Operation[None]:
    """Pass the entries of a scan to `take`, in portions, until it returns True."""
    after = scan.after
    while True:
        seen: Snapshot = yield Query(scans=(scan._replace(after=after, limit=PORTION),))
        if take(seen.scans[0]) is True or len(seen.scans[0]) < PORTION:
            return
        after = seen.scans[0][-1].position


def portions(items: Sequence[T]) -> Iterator[tuple[T, ...]]:
    return (tuple(items[first : first + PORTION]) for first in range(0, len(items), PORTION))


def _give_up(draft: Draft, job_id: bytes) -> bool:
    """Cancel a job that awaits others in vain, unless it has changed."""
    job = draft.job(job_id)
    if job is not None and job.status == HELD and job.header["awaits"] > 0:
        finish(draft, job, Event.CANCEL, Status.CANCELLED, wording.AWAITS_IN_VAIN)
    return True


def _put_off(draft: Draft, item: tuple[bytes, flows.Action]) -> None:
    """Unless an action was replaced, store how far it has got, so that upkeep continues there."""
    if flows.is_current(draft, *item):
        flows.put(draft, *item, leaves=True)
