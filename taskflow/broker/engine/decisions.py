"""Decides on items, and then on what the decisions bring about for other jobs: those that await nothing any more, that wait at gates with
room, or belong to a flow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from taskflow.broker import topics
from taskflow.broker.engine import flows, gates
from taskflow.broker.engine.draft import Draft, Left, decide as decide_once
from taskflow.broker.engine.job import Job
from taskflow.broker.engine.moves import MOVE_SCANS, ask_to_stop, enter, finish, move, redo, release as release_job
from taskflow.broker.engine.records import CANCELLED, HELD, READY, RUNNING, SCHEDULED, Flag, Kind, Position
from taskflow.broker.engine.seam import Operation, Query, Ref, Scan, Snapshot
from taskflow.model.record import Status
from taskflow.model.rules import Rules
from taskflow.model.transitions import Event

Item = TypeVar("Item")
T = TypeVar("T")

MAX_FILLS: Final = 16

PORTION: Final = 500
"""The most jobs of flows on which one decision acts."""

MAX_LOOKED_AT: Final = 1_000_000

MAX_FELLED: Final = 2_000
"""The most jobs of flows on which an operation acts after a failure. The rest is left to upkeep."""


def decide(
    items: Sequence[Item],
    one: Callable[[Draft, Item], T],
    rules: Rules,
    refs: Iterable[Ref],
    *,
    scans: tuple[Scan, ...] = (),
    groups: tuple[tuple[str, Position], ...] = (),
    most: int = MAX_FELLED,
    **more: Any,
) -> Operation[list[T]]:
    """Decide on items as `draft.decide` does, and then on what this brings about. `most` bounds the jobs of flows that it acts on."""
    left = Left()
    answers: list[T] = yield from decide_once(items, one, rules, Query(tuple(refs), scans, groups), left=left, **more)
    yield from _follow(left, rules, scans, most)
    return answers


def release(awaiting: Iterable[bytes], rules: Rules) -> Operation[None]:
    """Release those of these jobs that have nothing to await any more."""
    left = Left()
    left.released.update(awaiting)
    yield from _follow(left, rules, MOVE_SCANS)


def _follow(left: Left, rules: Rules, scans: tuple[Scan, ...], most: int = MAX_FELLED) -> Operation[int]:
    """Decide on what decisions have brought about. Return how many jobs of flows were looked at."""
    number = (yield from _carry_on(left, rules, most)) if left.actions else 0
    if left.released:
        ids = sorted(left.released)
        look = Query(tuple(Ref(Kind.JOB, job_id) for job_id in ids), scans)
        yield from decide_once(ids, _free, rules, look, locked=False, left=left)
    if left.opened:
        yield from fill(left.opened, rules)
    return number


def fill(opened: set[bytes], rules: Rules) -> Operation[int]:
    """Let jobs that wait at gates with room pass, and return their number. What the last round leaves is left to upkeep."""
    passed = 0
    for _ in range(MAX_FILLS):
        if not opened:
            break
        ids, left = sorted(opened), Left()
        look = Query(tuple(Ref(Kind.GATE, gate_id) for gate_id in ids), MOVE_SCANS)
        passed += sum((yield from decide_once(ids, _fill, rules, look, locked=0, left=left)))
        opened = left.opened
    return passed


def _fill(draft: Draft, gate_id: bytes) -> int:
    passed = 0
    for job in gates.fill(draft, gate_id):  # each before the next one is looked at
        move(draft, job, Event.DUE, READY)
        passed += 1
    return passed


def _free(draft: Draft, job_id: bytes) -> bool:
    """Release a HELD job if it awaits nothing. Additions do not change its revision, but nothing else makes it HELD again. If another
    program's open transaction has locked it, the next upkeep releases it."""
    job = draft.job(job_id)
    if job is not None and job.status == HELD and job.header["awaits"] <= 0 and not job.has(Flag.BEHIND):
        release_job(draft, job)
    return True


def give_back(queue: str, limit: int, rules: Rules) -> Operation[int]:
    """Let READY jobs of a paused queue give back the slots that they hold. Return how many have."""

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


# --- flows ------------------------------------------------------------------------------------------------------------


def begin(action_id: bytes, action: flows.Action, rules: Rules) -> Operation[int]:
    """Do what an action asks for, and return the number of jobs. If the process dies meanwhile, upkeep continues."""

    def one(draft: Draft, action_id: bytes) -> None:
        flows.put(draft, action_id, action)

    yield from decide_once([action_id], one, rules, Query((Ref(Kind.FLOW, action_id),)))
    return (yield from carry_on({action_id: action}, rules, MAX_LOOKED_AT))


def carry_on(actions: dict[bytes, flows.Action], rules: Rules, most: int) -> Operation[int]:
    """Do what actions on flows ask for, on at most about `most` jobs. Return how many it has looked at."""
    left = Left()
    left.actions.update(actions)
    return (yield from _follow(left, rules, MOVE_SCANS, most))


def _carry_on(left: Left, rules: Rules, most: int) -> Operation[int]:
    number = 0
    while left.actions and number < most:
        actions = dict(list(left.actions.items())[: PORTION // 2])
        size = PORTION // len(actions)
        seen: Snapshot = yield Query(scans=tuple(action.scan(size) for action in actions.values()))
        items = [(action_id, entry.ref) for action_id, entries in zip(actions, seen.scans, strict=True) for entry in entries]
        refs = {*(ref for _, ref in items), *(Ref(Kind.FLOW, action_id) for action_id in actions)}
        acted = yield from decide_once(items, _actor(actions), rules, Query(tuple(refs), MOVE_SCANS), locked=False, left=left)
        held_up = {action_id for (action_id, _), has_acted in zip(items, acted, strict=True) if not has_acted}
        done = dict[bytes, flows.Action]()
        for (action_id, action), entries in zip(actions.items(), seen.scans, strict=True):
            if len(entries) == size:
                left.actions[action_id] = action.behind(entries[-1])
                continue
            del left.actions[action_id]
            if action_id not in held_up:  # otherwise the next upkeep begins again
                done[action_id] = action
        yield from _finish(done, left, rules)
        number += len(items)
    if left.actions:
        refs = {Ref(Kind.FLOW, action_id) for action_id in left.actions}
        yield from decide_once([*left.actions.items()], _put_off, rules, Query(tuple(refs)), locked=None)
    return number


def _actor(actions: Mapping[bytes, flows.Action]) -> Callable[[Draft, tuple[bytes, Ref]], bool]:
    def one(draft: Draft, item: tuple[bytes, Ref]) -> bool:
        action_id, ref = item
        if not flows.is_current(draft, action_id, actions[action_id]):
            return True
        if ref.kind != Kind.NOTE:
            _act(draft, draft.job(ref.id), actions[action_id])
        elif draft.plain(*ref) is not None:
            draft.drop(ref)
        return True

    return one


def _act(draft: Draft, job: Job | None, action: flows.Action) -> None:
    if job is None or job.sent.member is None:
        return
    if action.what == flows.RESTORE:
        if job.status == CANCELLED and job.state.felled_by == action.cause:
            flows.redo(draft, job)
            redo(draft, job)
    elif job.is_waiting:
        keep = draft.rules.keep_failed if action.what == flows.FELL else None  # for as long as the job that failed can be retried
        finish(draft, job, Event.CANCEL, Status.CANCELLED, action.reason, keep=keep, by=action)
    elif job.status == RUNNING and action.what == flows.CANCEL:
        job.state.felled_by = action.cause
        ask_to_stop(draft, job)


def _finish(done: Mapping[bytes, flows.Action], left: Left, rules: Rules) -> Operation[None]:
    """Drop the actions that are done. Other failures of their flows cancel what they have restored."""
    others = dict[bytes, list[bytes]]()
    for action_id, action in done.items():
        others[action_id] = (yield from _other_failures(action)) if action.what == flows.RESTORE else []
    refs = {*(Ref(Kind.FLOW, action_id) for action_id in done), *(Ref(Kind.JOB, job_id) for ids in others.values() for job_id in ids)}

    def one(draft: Draft, action_id: bytes) -> bool:
        flows.finish(draft, action_id, done[action_id], others[action_id])
        return True

    yield from decide_once([*done], one, rules, Query(tuple(refs)), locked=False, left=left)


def _other_failures(action: flows.Action) -> Operation[list[bytes]]:
    found, after = dict[tuple[int, int], bytes](), 0
    while True:
        seen: Snapshot = yield Query(scans=(flows.whole(action.owner, after, PORTION),))
        found |= flows.other_failures(seen.scans[0], action)
        if len(seen.scans[0]) < PORTION:
            return [*found.values()]
        after = flows.number_of(seen.scans[0][-1]) + 1


def _put_off(draft: Draft, item: tuple[bytes, flows.Action]) -> None:
    """Note how far an action has got, for upkeep."""
    if flows.is_current(draft, *item):
        flows.put(draft, *item)
        draft.wake(topics.DUE)
