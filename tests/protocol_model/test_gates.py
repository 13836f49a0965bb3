"""Gates in every order of reads and steps: a slot is neither lost nor given twice, and no job waits for ever where there is room.

Each operation reads, and later applies its decision, if the state that it expects is unchanged. Between the two others may do the same. An
operation that is stale, or whose process dies between the two, changes nothing. A process's next operation, to which it leaves work, may
never come.
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


BROKEN: Final = (
    Rules("double release: a settlement sent again gives the slot back twice", ends_by_fence=False),
    Rules("lost hand-over: a job begins to wait at a gate that is not full any more", waiters_expect_the_gate=False),
    Rules("lost hand-over: nobody looks for the first job that waits", first_waiter_is_noted=False),
    Rules("lost hand-over: who makes room does not look again", looks_again=False),
    Rules("two slots become one: both go to the same job", expects_who_is_next=False),
    Rules("leak: two ends read the same number, and both write one less", ends_expect_the_gate=False),
    Rules("leak on a crash: the slot of a dead worker stays taken", reaps_slots=False),
)


class At(Enum):
    NEW = "new"
    WAITS = "waits"
    HOLDS = "holds"
    ENDED = "ended"


class Gate(NamedTuple):
    rev: int = 0
    taken: int = 0
    has_waiting: bool = False


class Operation(NamedTuple):
    """What an operation has read. `job` is None for one that lets waiting jobs pass at a gate with room."""

    job: int | None
    seen: Gate
    next: int | None


class World(NamedTuple):
    gate: Gate
    jobs: tuple[At, ...]
    in_flight: tuple[Operation, ...] = ()

    def put(self, job: int, at: At) -> World:
        return self._replace(jobs=(*self.jobs[:job], at, *self.jobs[job + 1 :]))

    def gated(self, taken: int, *, has_waiting: bool) -> World:
        """Return the world with another revision, as after each put."""
        return self._replace(gate=Gate(self.gate.rev + 1, self.gate.taken + taken, has_waiting))


MOST_IN_FLIGHT: Final = 2


def successors(rules: Rules, most: int, world: World) -> Iterator[World]:
    if len(world.in_flight) < MOST_IN_FLIGHT:
        yield from _looks(world, most)
    for operation in world.in_flight:
        rest = list(world.in_flight)
        rest.remove(operation)
        after = world._replace(in_flight=tuple(rest))
        yield after  # stale, or its process has died
        yield from _applied(rules, most, after, operation)
    for job, at in enumerate(world.jobs):
        if at is At.WAITS:
            yield world.put(job, At.ENDED)  # cancelled
        if at is At.HOLDS and not rules.reaps_slots:
            yield world.put(job, At.ENDED)


def _looks(world: World, most: int) -> Iterator[World]:
    first = next((job for job, at in enumerate(world.jobs) if at is At.WAITS), None) if world.gate.has_waiting else None
    wanted: list[int | None] = [job for job, at in enumerate(world.jobs) if at in (At.NEW, At.HOLDS)]
    if world.gate.has_waiting and world.gate.taken < most:
        wanted.append(None)
    for job in wanted:
        yield world._replace(in_flight=tuple(sorted((*world.in_flight, Operation(job, world.gate, first)), key=repr)))


def _applied(rules: Rules, most: int, world: World, operation: Operation) -> Iterator[World]:
    job, seen, following = operation
    is_current = world.gate == seen
    is_next_there = following is None or world.jobs[following] is At.WAITS or not rules.expects_who_is_next
    if job is None:
        if is_current and is_next_there:
            yield world.gated(0, has_waiting=False) if following is None else world.put(following, At.HOLDS).gated(1, has_waiting=True)
    elif world.jobs[job] is At.NEW:
        if seen.taken < most and is_current:
            yield world.put(job, At.HOLDS).gated(1, has_waiting=seen.has_waiting)
        elif seen.taken >= most and (is_current or not rules.waiters_expect_the_gate):
            waiting = world.put(job, At.WAITS)
            is_noted = world.gate.has_waiting or not rules.first_waiter_is_noted
            yield waiting if is_noted else waiting.gated(0, has_waiting=True)
    elif world.jobs[job] is At.HOLDS or (world.jobs[job] is At.ENDED and not rules.ends_by_fence):
        if not is_next_there or not (is_current or not rules.ends_expect_the_gate):
            return
        ended = world.put(job, At.ENDED)
        if following is not None:
            yield ended.put(following, At.HOLDS)
        else:
            yield ended._replace(gate=Gate(world.gate.rev + 1, seen.taken - 1, seen.has_waiting and rules.looks_again))


def is_broken(world: World, most: int) -> bool:
    holders = world.jobs.count(At.HOLDS)
    has_room, is_quiet = world.gate.taken < most, not world.in_flight
    is_lost = is_quiet and has_room and At.WAITS in world.jobs and not world.gate.has_waiting
    return world.gate.taken != holders or holders > most or is_lost


def tidy(world: World) -> World:
    """Number the revisions that still count from 0."""
    known = sorted({world.gate.rev, *(each.seen.rev for each in world.in_flight)})
    in_flight = tuple([each._replace(seen=each.seen._replace(rev=known.index(each.seen.rev))) for each in world.in_flight])
    return world._replace(gate=world.gate._replace(rev=known.index(world.gate.rev)), in_flight=in_flight)


def search(rules: Rules, most: int, jobs: int) -> tuple[int, bool]:
    """Return the number of states, and whether one is broken."""
    seen, worlds = set[World](), [World(Gate(), (At.NEW,) * jobs)]
    for world in worlds:
        for each in map(tidy, successors(rules, most, world)):
            if is_broken(each, most):
                return len(worlds), True
            if each not in seen:
                seen.add(each)
                worlds.append(each)
    return len(worlds), False


@pytest.mark.parametrize(("most", "jobs"), [(1, 4), (2, 4)])
def test_no_order_breaks_a_gate(most: int, jobs: int) -> None:
    states, found = search(Rules(), most, jobs)
    assert not found
    assert states > 1_000


@pytest.mark.parametrize("rules", BROKEN, ids=lambda rules: rules.name)
def test_broken_gates_are_found_out(rules: Rules) -> None:
    assert any(search(rules, most, 4)[1] for most in (1, 2))
    assert not search(replace(Rules(), name=rules.name), 1, 3)[1]
