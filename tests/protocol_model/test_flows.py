"""Flows in every order of reads and steps: a join starts once, with all results, and never waits for a job that will not run.

Two members and a join. Each operation reads, and later applies its decision, if the state that it expects is unchanged. Between the two
others may do the same. An operation that is stale, or whose process dies between the two, changes nothing; upkeep repeats an action's work.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Final, NamedTuple

import pytest

from tests.support import tiers

pytestmark = pytest.mark.unmeasured  # it searches a model of the engine's flows


@dataclass(frozen=True)
class Rules:
    """The defaults are those of `engine/flows.py`."""

    name: str = "correct"
    counts_in_every_status: bool = True
    ends_by_fence: bool = True
    notes_with_the_end: bool = True
    keeps_awaits: bool = True
    falls_expect_the_action: bool = True
    restores_look_for_others: bool = True
    lone_retries_act: bool = True
    ends_expect_what_was_scanned: bool = True
    failures_count: bool = False


BROKEN: Final = (
    Rules("lost join: a success does not count while the join is cancelled", counts_in_every_status=False),
    Rules("double release: a settlement sent again counts again", ends_by_fence=False),
    Rules("lost result: the note is put apart from the end", notes_with_the_end=False),
    Rules("early join: a restored one awaits nothing", keeps_awaits=False),
    Rules("lost join: it is cancelled after the retry that restores", falls_expect_the_action=False),
    Rules("a restored join waits for ever, because another failure stands", restores_look_for_others=False),
    Rules("a join that is retried alone waits for ever for a member that has failed", lone_retries_act=False),
    Rules("a join waits for ever: an action that was begun anew counts as done", ends_expect_what_was_scanned=False),
    Rules("early join: a failure counts too", failures_count=True),
)


class At(Enum):
    HELD = "held"
    READY = "ready"
    RUNS = "runs"
    DONE = "done"
    FAILED = "failed"


class Job(NamedTuple):
    """`cancelled_by` is the member whose failure has cancelled it: then it has no other status."""

    at: At
    rev: int = 0
    cancelled_by: int | None = None

    @property
    def waits(self) -> bool:
        return self.cancelled_by is None and self.at in (At.HELD, At.READY)


class Does(Enum):
    SUCCEED = "succeed"
    FAIL = "fail"
    FREE = "free"
    FELL = "fell"
    RESTORE = "restore"
    FINISH = "finish"
    RETRY = "retry"


class Action(NamedTuple):
    what: Does
    rev: int


class Operation(NamedTuple):
    """What an operation has read of a job, and of the action that another job, or itself, has caused."""

    does: Does
    job: int
    seen: Job
    cause: int
    action: Action | None
    awaits: int


JOIN: Final = 2
MOST_IN_FLIGHT: Final = 2
MOST_FAILURES: Final = 2
"""The most failures of members and retries of the join alone, which bounds the search."""


class World(NamedTuple):
    jobs: tuple[Job, Job, Job] = (Job(At.READY), Job(At.READY), Job(At.HELD))
    actions: tuple[Action | None, Action | None, Action | None] = (None, None, None)
    awaits: int = 2
    notes: frozenset[int] = frozenset()
    failures: int = 0
    in_flight: tuple[Operation, ...] = ()
    begun: int = 0

    def put(self, number: int, at: At, cancelled_by: int | None = None) -> World:
        jobs = list(self.jobs)
        jobs[number] = Job(at, jobs[number].rev + 1, cancelled_by)
        return self._replace(jobs=(jobs[0], jobs[1], jobs[2]))

    def act(self, cause: int, what: Does | None) -> World:
        begun = self.begun + (what is not None)
        actions = list(self.actions)
        actions[cause] = None if what is None else Action(what, begun)
        return self._replace(actions=(actions[0], actions[1], actions[2]), begun=begun)


def successors(rules: Rules, world: World) -> Iterator[World]:
    for number in (0, 1):
        if world.jobs[number].waits:
            yield world.put(number, At.RUNS)  # a claim, which is native
    if world.jobs[JOIN].waits and world.jobs[JOIN].at is At.READY:
        yield world.put(JOIN, At.DONE)
    if len(world.in_flight) < MOST_IN_FLIGHT:
        for wanted in _wanted(world):
            yield world._replace(in_flight=tuple(sorted((*world.in_flight, wanted), key=repr)))
    for operation in world.in_flight:
        rest = list(world.in_flight)
        rest.remove(operation)
        after = world._replace(in_flight=tuple(rest))
        yield after  # stale, or its process has died
        if (applied := _applied(rules, after, operation)) is not None:
            yield applied
            if operation.does is Does.SUCCEED and not rules.ends_by_fence:  # the reply was lost
                yield applied._replace(in_flight=(*after.in_flight, operation))


def _wanted(world: World) -> Iterator[Operation]:
    for number in (0, 1):
        member = world.jobs[number]
        if member.cancelled_by is None and member.at is At.RUNS:
            yield Operation(Does.SUCCEED, number, member, number, None, 0)
            if world.failures < MOST_FAILURES:
                yield Operation(Does.FAIL, number, member, number, None, 0)
        if member.at is At.FAILED:
            yield Operation(Does.RETRY, number, member, number, world.actions[number], 0)
    if world.jobs[JOIN].cancelled_by is not None and world.failures < MOST_FAILURES:
        yield Operation(Does.RETRY, JOIN, world.jobs[JOIN], JOIN, world.actions[JOIN], world.awaits)
    for number, action in enumerate(world.actions):
        for target in range(3) if action is not None else ():
            job = world.jobs[target]
            if action is not None and (job.waits if action.what is Does.FELL else job.cancelled_by == number):
                yield Operation(action.what, target, job, number, action, world.awaits)
        if action is not None and not any(job.waits if action.what is Does.FELL else job.cancelled_by == number for job in world.jobs):
            yield Operation(Does.FINISH, number, world.jobs[number], number, action, 0)
    if world.jobs[JOIN].waits and world.jobs[JOIN].at is At.HELD and world.awaits <= 0:
        yield Operation(Does.FREE, JOIN, world.jobs[JOIN], 0, None, 0)


def _applied(rules: Rules, world: World, operation: Operation) -> World | None:
    does, number, seen, cause, action, awaits = operation
    is_as_seen = world.jobs[number] == seen
    if does is Does.SUCCEED and (is_as_seen or (not rules.ends_by_fence and world.jobs[number].at is At.DONE)):
        ended = world.put(number, At.DONE)
        if rules.counts_in_every_status or world.jobs[JOIN].waits:
            ended = ended._replace(awaits=world.awaits - 1)
        return ended._replace(notes=world.notes | {number}) if rules.notes_with_the_end else ended
    if not is_as_seen:
        return None
    if does is Does.FAIL:
        failed = world.put(number, At.FAILED)._replace(failures=world.failures + 1).act(number, Does.FELL)
        return failed._replace(awaits=failed.awaits - 1) if rules.failures_count else failed
    if does is Does.RETRY and number == JOIN:
        retried = world.put(JOIN, At.HELD if awaits > 0 else At.READY)._replace(failures=world.failures + 1)
        return retried.act(JOIN, Does.RESTORE) if awaits > 0 and rules.lone_retries_act else retried
    if does is Does.RETRY:
        return world.put(number, At.READY).act(number, Does.RESTORE)
    if does is Does.FREE:
        return world.put(JOIN, At.READY)
    present = world.actions[cause]
    is_alike = present is not None and action is not None and present.what is action.what
    is_current = (
        present == action
        or (does is Does.FELL and not rules.falls_expect_the_action)
        or (does is Does.FINISH and is_alike and not rules.ends_expect_what_was_scanned)
    )
    if not is_current:
        return None
    if does is Does.FELL:
        return world.put(number, seen.at, cancelled_by=cause)
    if does is Does.RESTORE:
        is_held = number == JOIN and awaits > 0 and rules.keeps_awaits
        return world.put(number, At.HELD if is_held else At.READY)
    return _finished(rules, world, cause, action)


def _finished(rules: Rules, world: World, cause: int, action: Action | None) -> World:
    done = world.act(cause, None)
    stands = [other for other in (0, 1) if other != cause and world.jobs[other].at is At.FAILED and world.jobs[other].cancelled_by is None]
    if action is not None and action.what is Does.RESTORE and stands and rules.restores_look_for_others:
        return done.act(stands[0], Does.FELL)
    return done


def is_broken(world: World) -> bool:
    members, join = world.jobs[:JOIN], world.jobs[JOIN]
    has_begun = join.cancelled_by is None and join.at in (At.READY, At.DONE)
    if has_begun and (len(world.notes) < JOIN or any(member.at is not At.DONE for member in members)):
        return True
    if world.in_flight or any(world.actions) or any(member.waits or member.at is At.RUNS for member in members):
        return False
    waits_for_ever = join.waits and join.at is At.HELD and world.awaits > 0
    is_lost = join.cancelled_by is not None and all(member.at is At.DONE for member in members)
    return waits_for_ever or is_lost


def tidy(world: World) -> World:
    """Number the revisions that still count from 0."""
    flights = world.in_flight
    known = sorted({each.rev for each in (*world.actions, *(flight.action for flight in flights)) if each is not None})
    of_jobs = [sorted({job.rev, *(each.seen.rev for each in flights if each.job == at)}) for at, job in enumerate(world.jobs)]

    def renumbered(action: Action | None) -> Action | None:
        return None if action is None else action._replace(rev=known.index(action.rev))

    jobs = [job._replace(rev=of_jobs[at].index(job.rev)) for at, job in enumerate(world.jobs)]
    tidied = list[Operation]()
    for each in flights:
        rev = of_jobs[each.job].index(each.seen.rev)
        tidied.append(each._replace(seen=each.seen._replace(rev=rev), action=renumbered(each.action)))
    actions = (renumbered(world.actions[0]), renumbered(world.actions[1]), renumbered(world.actions[2]))
    in_flight = tuple(sorted(tidied, key=repr))
    return world._replace(jobs=(jobs[0], jobs[1], jobs[2]), actions=actions, in_flight=in_flight, begun=len(known) - 1)


FIRST_STATES: Final = 40_000
"""A third of the states. Those nearest to the start show what is wrong with each of the broken rules."""


def search(rules: Rules, max_states: int | None = None) -> tuple[int, bool]:
    """Return the number of states, and whether one is broken. Continue from this many of them, the nearest to the start (default: all)."""
    seen, worlds = set[World](), [World()]
    for world in islice(worlds, max_states):
        for each in map(tidy, successors(rules, world)):
            if is_broken(each):
                return len(worlds), True
            if each not in seen:
                seen.add(each)
                worlds.append(each)
    return len(worlds), False


def test_no_order_breaks_a_flow() -> None:
    """The nightly run searches all 120,095 states."""
    states, found = search(Rules(), None if os.environ.get(tiers.ALL) else FIRST_STATES)
    assert not found
    assert states > FIRST_STATES


@pytest.mark.parametrize("rules", BROKEN, ids=lambda rules: rules.name)
@pytest.mark.sampled(3)
def test_broken_flows_are_found_out(rules: Rules) -> None:
    assert search(rules, FIRST_STATES)[1]
