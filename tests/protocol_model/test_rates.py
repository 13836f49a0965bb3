"""Rates in every order of events: however long workers and upkeep are away, no period has more starts than the rate allows.

A job pays when it becomes READY, for now or for a later time. It may start up to a second after that time. After that it is admitted anew:
by the upkeep that finds it due, or by its worker, which hands it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import pytest

from taskflow.model.limits import Gate, earliest, paid

pytestmark = pytest.mark.unmeasured  # it searches a model of the engine's rates

SECOND: Final = 1
"""Ticks for which a payment is valid."""

GATES: Final = (Gate(bytes(16), "limit", "", 1, 1), Gate(bytes(16), "limit", "", 1, 1, 2), Gate(bytes(16), "limit", "", 2, 3))
JOBS: Final = 5
UNTIL: Final = 7


@dataclass(frozen=True)
class Rules:
    """The defaults are those of `engine/gates.py`, and of `unadmitted` in `app/declared_limits.py`."""

    name: str = "correct"
    pays: bool = True
    upkeep_admits_anew: bool = True
    workers_admit_anew: bool = True
    admitted_anew_pays: bool = True
    payment_counts: bool = True


BROKEN: Final = (
    Rules("jobs start as they come", pays=False),
    Rules("all that became due while nobody looked are READY at once", upkeep_admits_anew=False),
    Rules("all that were READY while no worker ran start at once", workers_admit_anew=False),
    Rules("a job that is admitted anew does not pay again", admitted_anew_pays=False),
)
STARVED: Final = Rules("a job pays again each time, also when the time has come for which it has paid", payment_counts=False)


class At(IntEnum):
    NEW = 0
    DUE = 1
    READY = 2
    STARTED = 3


class Job(NamedTuple):
    """`time` is that for which it has paid, or when it started."""

    at: At = At.NEW
    time: int = 0


class World(NamedTuple):
    now: int = 0
    tat: int = 0
    jobs: tuple[Job, ...] = (Job(),) * JOBS

    def put(self, job: int, at: At, time: int) -> World:
        """Return the world with a changed job. The jobs are alike, so their order doesn't matter."""
        return self._replace(jobs=tuple(sorted((*self.jobs[:job], Job(at, time), *self.jobs[job + 1 :]))))

    def admitted(self, job: int, gate: Gate, *, pays: bool) -> World:
        start = earliest(self.tat, None, gate, self.now) if pays else self.now
        world = self._replace(tat=paid(self.tat, gate, start)) if pays else self
        return world.put(job, At.READY if start == self.now else At.DUE, start)


def events(rules: Rules, gate: Gate, world: World) -> Iterator[World]:
    """Yield the worlds after one event other than the passing of time."""
    if world.jobs[0].at is At.NEW:
        yield world.admitted(0, gate, pays=rules.pays)
    for number, (at, time) in enumerate(world.jobs):
        is_late = world.now - time > SECOND
        if at is At.DUE and time <= world.now:
            if rules.payment_counts and not (is_late and rules.upkeep_admits_anew):
                yield world.put(number, At.READY, time if rules.upkeep_admits_anew else world.now)
            else:
                yield world.admitted(number, gate, pays=rules.admitted_anew_pays)
        elif at is At.READY:
            is_refused = is_late and rules.workers_admit_anew
            yield world.admitted(number, gate, pays=rules.admitted_anew_pays) if is_refused else world.put(number, At.STARTED, world.now)


def is_over(world: World, gate: Gate) -> bool:
    starts = [job.time for job in world.jobs if job.at is At.STARTED]
    most = gate.most + gate.burst + -(-SECOND * gate.most // gate.per)
    return any(sum(first <= start < first + gate.per for start in starts) > most for first in starts)


def breaks(rules: Rules, gate: Gate) -> bool:
    seen, worlds = set[World](), [World()]
    for world in worlds:
        later = [world._replace(now=world.now + 1)] if world.now < UNTIL else []
        for each in (*events(rules, gate, world), *later):
            if is_over(each, gate):
                return True
            if each not in seen:
                seen.add(each)
                worlds.append(each)
    assert len(worlds) > 1_000
    return False


def started(rules: Rules, gate: Gate) -> int:
    """Return how many jobs have started in the end if upkeep and a worker look at each tick."""
    world = World()
    for _ in range(3 * UNTIL):
        for _ in range(3 * JOBS):
            world = next(events(rules, gate, world), world)
        world = world._replace(now=world.now + 1)
    return sum(job.at is At.STARTED for job in world.jobs)


@pytest.mark.parametrize("gate", GATES, ids=repr)
def test_no_order_breaks_a_rate(gate: Gate) -> None:
    assert not breaks(Rules(), gate)
    assert started(Rules(), gate) == JOBS


@pytest.mark.parametrize("rules", BROKEN, ids=lambda rules: rules.name)
def test_broken_rates_are_found_out(rules: Rules) -> None:
    assert any(breaks(rules, gate) for gate in GATES)


def test_a_rate_that_starves_jobs_is_found_out() -> None:
    assert started(STARVED, GATES[0]) < JOBS
