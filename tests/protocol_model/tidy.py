"""What can play no part any more is forgotten: worlds that differ in nothing else are one state of the search."""

from __future__ import annotations

from typing import Final

from tests.protocol_model.states import Job, Lease, Row, Session, Standing, Store
from tests.protocol_model.world import Bounds, Process, World

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
    return row is not None and row.standing is not Standing.ALIVE
