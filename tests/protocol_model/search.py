"""Breadth-first search over all that may happen: the first violation found is at the end of a shortest path.

State that can no longer have an effect is forgotten: worlds that differ in nothing else are one state of the search.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import Final

from tests.protocol_model import invariants
from tests.protocol_model.invariants import Invariant
from tests.protocol_model.rules import Rules
from tests.protocol_model.states import Job, Lease, ListenerState, Row, Session, Store
from tests.protocol_model.world import Action, Bounds, Process, World, first_world, successors


@dataclass(frozen=True)
class Counterexample:
    """A shortest path to a broken invariant."""

    invariant: Invariant
    path: tuple[Action, ...]


@dataclass(frozen=True)
class SearchResult:
    """The result of a search: its numbers of states and steps, its depth, and the counterexample, if there is one."""

    states: int
    steps: int
    depth: int
    counterexample: Counterexample | None


def search(rules: Rules, bounds: Bounds) -> SearchResult:
    """Search every state within the bounds, or those up to the first violation."""
    start = first_world(bounds)
    seen: dict[World, int] = {start: 0}
    worlds = [start]
    parents = array("l", [-1])
    depths = array("l", [0])
    steps = 0
    for index, before in enumerate(worlds):
        for action, after in successors(rules, bounds, before):
            steps += 1
            tidied = before if after is before else tidy(bounds, after)
            is_new = tidied not in seen
            broken = invariants.violated(rules, before, action, after, is_new=is_new)
            if broken is not None:
                path = (*_path(rules, bounds, worlds, parents, index), action)
                return SearchResult(len(worlds), steps, depths[index] + 1, Counterexample(broken, path))
            if is_new:
                seen[tidied] = len(worlds)
                worlds.append(tidied)
                parents.append(index)
                depths.append(depths[index] + 1)
    return SearchResult(len(worlds), steps, depths[-1], None)


def _path(rules: Rules, bounds: Bounds, worlds: list[World], parents: array[int], index: int) -> list[Action]:
    """Return the actions that lead there, computed again: storing one for every state would cost more memory than the states."""
    path: list[Action] = []
    while parents[index] >= 0:
        before, goal = worlds[parents[index]], worlds[index]
        path.append(next(action for action, after in successors(rules, bounds, before) if tidy(bounds, after) == goal))
        index = parents[index]
    return path[::-1]


# --- what may be forgotten ---

NOBODY: Final = Session(-1, 0)


def tidy(bounds: Bounds, world: World) -> World:
    """The same world, less

    - whose outcome a job's last one was, when nobody can send it again (its epoch stays);
    - the request of a former life's row, unless it is the last one, the only one that can still arrive;
    - what a process has seen, when its session is dead in every store that there may be.
    """
    sendable: set[Lease | None] = {world.stray, *(lease for process in world.processes for lease in process.holds)}
    lives = tuple([process.life for process in world.processes])
    store = _tidy_store(bounds, world.store, sendable, lives)
    kept = None if world.kept is None else _tidy_store(bounds, world.kept, sendable, lives)
    processes = tuple([_tidy_process(bounds, process, store, kept) for process in world.processes])
    return world._replace(store=store, kept=kept, processes=processes)


def _tidy_store(bounds: Bounds, store: Store, sendable: set[Lease | None], lives: tuple[int, ...]) -> Store:
    jobs = tuple([job if job.outcome in sendable else _without_sender(job) for job in store.jobs])
    rows = tuple([row if row.session.life == lives[row.session.worker] else _of_former_life(bounds, row) for row in store.rows])
    return store if jobs == store.jobs and rows == store.rows else Store(jobs, rows)


def _without_sender(job: Job) -> Job:
    return job if job.outcome is None else job._replace(outcome=Lease(job.outcome.job, job.outcome.epoch, NOBODY, 0, 0))


def _of_former_life(bounds: Bounds, row: Row) -> Row:
    return row if row.request in (0, bounds.requests) else row._replace(request=0)


def _tidy_process(bounds: Bounds, process: Process, store: Store, kept: Store | None) -> Process:
    if process.life == 0 or process.seen == bounds.requests or not _is_dead(store, process.session):
        return process
    return process._replace(seen=bounds.requests) if kept is None or _is_dead(kept, process.session) else process


def _is_dead(store: Store, session: Session) -> bool:
    row = store.row(session)
    return row is not None and row.standing is not ListenerState.ALIVE


# --- worlds --------------------------------------------------------------------------------------------------------

LEAN: Final = Bounds(late_beats=0, losses=0, lapses_apart=False, empty_answers=False)
"""Without behaviours that `Bounds` describes as equal or more permissive, so that the other bounds can be larger."""

REGULAR: Final = {
    "every detail, one life each": Bounds(epochs=2, restarts=0, losses=0, late_beats=0),
    "a restart": replace(LEAN, epochs=2, restarts=1, requests=1),
    "a lost tail": replace(LEAN, epochs=2, restarts=0, losses=1, requests=1),
    "two jobs": replace(LEAN, jobs=2, epochs=1, restarts=0, limit=2),
}
FULL: Final = {
    "every detail, late beats": Bounds(epochs=2, restarts=0, losses=0, late_beats=1, requests=2),
    "three leases, two restarts": replace(LEAN, epochs=3, restarts=2, requests=1),
    "a lost tail, two requests": replace(LEAN, epochs=2, restarts=0, losses=1),
    "a lost tail, a restart": replace(LEAN, epochs=2, restarts=1, losses=1, requests=1),
    "two jobs, one by one": replace(LEAN, jobs=2, epochs=2, restarts=0),
}
"""For the nightly run: they take a minute and a half."""
