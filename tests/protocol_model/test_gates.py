"""Gates in every order of reads and steps: a slot is neither lost nor given twice, and no job waits for ever where there is room.

Each operation reads, and later applies its decision, if the state that it expects is unchanged. Between the two others may do the same. An
operation that is stale, or whose process dies between the two, changes nothing. A process's next operation, to which it leaves work, may
never come. Some jobs may be in a queue without a worker: their slots are taken back for the jobs of other queues.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, NamedTuple

import pytest

pytestmark = pytest.mark.unmeasured  # it searches a model of the engine's gates


@dataclass(frozen=True)
class Rules:
    """The defaults are those of `engine/gates.py`."""

    name: str = "correct"
    ends_by_fence: bool = True
    waiters_expect_the_gate: bool = True
    first_waiter_is_noted: bool = True
    looks_again: bool = True
    expects_who_is_next: bool = True
    ends_expect_the_gate: bool = True
    reaps_slots: bool = True
    takes_back: bool = True
    takes_back_of_ready_jobs_only: bool = True
    hands_on_what_it_takes_back: bool = True
    looks_past_its_own_queue: bool = True


BROKEN: Final = (
    Rules("double release: a settlement sent again gives the slot back twice", ends_by_fence=False),
    Rules("lost hand-over: a job begins to wait at a gate that is not full any more", waiters_expect_the_gate=False),
    Rules("lost hand-over: nobody looks for the first job that waits", first_waiter_is_noted=False),
    Rules("lost hand-over: who makes room does not look again", looks_again=False),
    Rules("two slots become one: both go to the same job", expects_who_is_next=False),
    Rules("leak: two ends read the same number, and both write one less", ends_expect_the_gate=False),
    Rules("leak on a crash: the slot of a dead worker stays taken", reaps_slots=False),
    Rules("taken twice: a slot is taken back from a job that a worker has just claimed", takes_back_of_ready_jobs_only=False),
    Rules("leak: the slot that is taken back is given to nobody", hands_on_what_it_takes_back=False),
)

STUCK: Final = (
    Rules("a queue without a worker keeps its slots", takes_back=False),
    Rules("a slot is taken back only for the first job that waits", looks_past_its_own_queue=False),
)


class At(Enum):
    NEW = "new"
    WAITS = "waits"
    READY = "ready"
    RUNS = "runs"
    ENDED = "ended"


HOLDING: Final = (At.READY, At.RUNS)


class Gate(NamedTuple):
    rev: int = 0
    taken: int = 0
    has_waiting: bool = False


class Operation(NamedTuple):
    """What an operation has read. `job` is None for one that lets waiting jobs pass at a gate with room."""

    job: int | None
    seen: Gate
    next: int | None
    takes_back: bool = False


class World(NamedTuple):
    """`unserved` is the number of jobs whose queue has no worker: the first ones. `line` has the waiting jobs in their order."""

    gate: Gate
    jobs: tuple[At, ...]
    unserved: int = 0
    line: tuple[int, ...] = ()
    in_flight: tuple[Operation, ...] = ()

    def put(self, job: int, at: At) -> World:
        line = tuple([each for each in self.line if each != job])
        return self._replace(jobs=(*self.jobs[:job], at, *self.jobs[job + 1 :]), line=(*line, job) if at is At.WAITS else line)

    def gated(self, taken: int, *, has_waiting: bool) -> World:
        """Return the world with another revision, as after each put."""
        return self._replace(gate=Gate(self.gate.rev + 1, self.gate.taken + taken, has_waiting))


MOST_IN_FLIGHT: Final = 2


def successors(rules: Rules, most: int, world: World, *, cancels: bool) -> Iterator[World]:
    """Yield the worlds after one event. With `cancels`, any job may be claimed or cancelled. Otherwise, no job is cancelled, and the
    unserved ones are never claimed."""
    if len(world.in_flight) < MOST_IN_FLIGHT:
        yield from _looks(rules, world, most, cancels=cancels)
    for operation in world.in_flight:
        rest = list(world.in_flight)
        rest.remove(operation)
        after = world._replace(in_flight=tuple(rest))
        yield after  # stale, or its process has died
        yield from _applied(rules, most, after, operation)
    for job, at in enumerate(world.jobs):
        if at is At.READY and (cancels or job >= world.unserved):
            yield world.put(job, At.RUNS)
        if at is At.WAITS and cancels:
            yield world.put(job, At.ENDED)
        if at in HOLDING and not rules.reaps_slots:
            yield world.put(job, At.ENDED)


def _looks(rules: Rules, world: World, most: int, *, cancels: bool) -> Iterator[World]:
    line = world.line if world.gate.has_waiting else ()
    first = line[0] if line else None
    found = list[Operation]()
    for job, at in enumerate(world.jobs):
        if at is At.NEW or (at in HOLDING and (cancels or job >= world.unserved)):
            found.append(Operation(job, world.gate, first))
        if at is At.READY and job < world.unserved and rules.takes_back:
            others = [each for each in (line if rules.looks_past_its_own_queue else line[:1]) if each >= world.unserved]
            found += [Operation(job, world.gate, others[0], takes_back=True)] if others else []
    if world.gate.has_waiting and world.gate.taken < most:
        found.append(Operation(None, world.gate, first))
    for operation in found:
        yield world._replace(in_flight=tuple(sorted((*world.in_flight, operation), key=repr)))


def _applied(rules: Rules, most: int, world: World, operation: Operation) -> Iterator[World]:
    job, seen, following, takes_back = operation
    is_current = world.gate == seen
    is_next_there = following is None or world.jobs[following] is At.WAITS or not rules.expects_who_is_next
    if job is None:
        if is_current and is_next_there:
            yield world.gated(0, has_waiting=False) if following is None else world.put(following, At.READY).gated(1, has_waiting=True)
    elif takes_back:
        is_taken = world.jobs[job] is At.READY or (world.jobs[job] is At.RUNS and not rules.takes_back_of_ready_jobs_only)
        if is_taken and is_current and is_next_there and following is not None:
            parked = world.put(job, At.WAITS) if world.jobs[job] is At.READY else world
            yield (parked.put(following, At.READY) if rules.hands_on_what_it_takes_back else parked).gated(0, has_waiting=True)
    elif world.jobs[job] is At.NEW:
        if seen.taken < most and is_current:
            yield world.put(job, At.READY).gated(1, has_waiting=seen.has_waiting)
        elif seen.taken >= most and (is_current or not rules.waiters_expect_the_gate):
            waiting = world.put(job, At.WAITS)
            is_noted = world.gate.has_waiting or not rules.first_waiter_is_noted
            yield waiting if is_noted else waiting.gated(0, has_waiting=True)
    elif world.jobs[job] in HOLDING or (world.jobs[job] is At.ENDED and not rules.ends_by_fence):
        if not is_next_there or not (is_current or not rules.ends_expect_the_gate):
            return
        ended = world.put(job, At.ENDED)
        if following is not None:
            yield ended.put(following, At.READY)
        else:
            yield ended._replace(gate=Gate(world.gate.rev + 1, seen.taken - 1, seen.has_waiting and rules.looks_again))


def is_broken(world: World, most: int) -> bool:
    holders = sum(at in HOLDING for at in world.jobs)
    has_room, is_quiet = world.gate.taken < most, not world.in_flight
    is_lost = is_quiet and has_room and At.WAITS in world.jobs and not world.gate.has_waiting
    return world.gate.taken != holders or holders > most or is_lost


def tidy(world: World) -> World:
    """Number the revisions that still count from 0."""
    known = sorted({world.gate.rev, *(each.seen.rev for each in world.in_flight)})
    in_flight = tuple([each._replace(seen=each.seen._replace(rev=known.index(each.seen.rev))) for each in world.in_flight])
    return world._replace(gate=world.gate._replace(rev=known.index(world.gate.rev)), in_flight=in_flight)


def search(rules: Rules, most: int, jobs: int, unserved: int = 0) -> tuple[int, bool]:
    """Return the number of states, and whether one is broken."""
    seen, worlds = set[World](), [World(Gate(), (At.NEW,) * jobs, unserved)]
    for world in worlds:
        for each in map(tidy, successors(rules, most, world, cancels=True)):
            if is_broken(each, most):
                return len(worlds), True
            if each not in seen:
                seen.add(each)
                worlds.append(each)
    return len(worlds), False


def is_stuck(rules: Rules, most: int, jobs: int, unserved: int) -> bool:
    """Return True if from some state the jobs of queues with workers cannot all end, however long they wait."""
    start = World(Gate(), (At.NEW,) * jobs, unserved)
    before: dict[World, list[World]] = {start: []}
    worlds = [start]
    for world in worlds:
        for each in map(tidy, successors(rules, most, world, cancels=False)):
            if each not in before:
                before[each] = []
                worlds.append(each)
            before[each].append(world)
    reached = [world for world in worlds if {*world.jobs[unserved:]} == {At.ENDED}]
    good = set(reached)
    for world in reached:
        new = [each for each in before[world] if each not in good]
        good.update(new)
        reached += new
    return len(good) < len(worlds)


@pytest.mark.parametrize(("most", "jobs", "unserved"), [(1, 4, 0), (2, 4, 0), (1, 4, 2)])
def test_no_order_breaks_a_gate(most: int, jobs: int, unserved: int) -> None:
    states, found = search(Rules(), most, jobs, unserved)
    assert not found
    assert states > 1_000
    assert not is_stuck(Rules(), most, jobs, unserved)


@pytest.mark.parametrize("rules", BROKEN, ids=lambda rules: rules.name)
def test_broken_gates_are_found_out(rules: Rules) -> None:
    assert any(search(rules, most, 4, unserved)[1] for most, unserved in ((1, 0), (2, 0), (1, 2)))
    assert not search(replace(Rules(), name=rules.name), 1, 3)[1]


@pytest.mark.parametrize("rules", STUCK, ids=lambda rules: rules.name)
def test_gates_that_hold_a_job_up_for_ever_are_found_out(rules: Rules) -> None:
    assert is_stuck(rules, 1, 3, 2)
