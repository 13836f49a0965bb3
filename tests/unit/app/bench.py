"""A store on a clock that the test moves, and the executor that runs its jobs: what a worker does, at the test's own pace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from types import ModuleType
from typing import Any

from taskflow.app import app as app_module
from taskflow.app.app import App, default_app
from taskflow.app.handle import JobHandle
from taskflow.model.clock import instant_of
from taskflow.model.envelope import Lease
from taskflow.model.ids import parse_id
from taskflow.model.verdict import Verdict
from taskflow.worker.executor import Executor
from taskflow.worker.lease_table import HeldLease
from taskflow.worker.thread_pool import ThreadPool
from tests.support.world import World

FOR_EVER = 1e9


class Bench:
    """The default application on `world`, and a worker with one session that runs when called."""

    def __init__(self, world: World, app: App) -> None:
        self.world = world
        self.app = app
        self.clock = world.clock
        self.broker = world.broker
        self._threads = ThreadPool(4, world.seams.start_thread)

    async def run_all(self, *, by: App | None = None, state: Any = None) -> list[Verdict]:
        """Run ready jobs until none is left, one after the other, as a worker that has loaded the application `by`."""
        verdicts: list[Verdict] = []
        while leases := await self.claim():
            verdicts += [await self.run(lease, by=by, state=state) for lease in leases]
        return verdicts

    async def claim(self) -> list[Lease]:
        return await self.world.claim(await self.world.a_session(ttl=FOR_EVER), limit=100)

    async def run(self, lease: Lease, *, by: App | None = None, state: Any = None) -> Verdict:
        app = by or self.app
        executor = Executor(app, middleware=self.app.settings.middleware, threads=self._threads, seams=self.world.seams, state=state)
        settlement = await executor.run(HeldLease(lease))
        await self.broker.settle([settlement])
        return settlement.verdict

    @property
    def now(self) -> datetime:
        """Return the store's time, to the microsecond."""
        return instant_of(self.clock.wall())

    async def pass_time(self, seconds: float) -> None:
        await self.world.pass_time(seconds)

    async def seconds_until_due(self, handle: JobHandle[Any]) -> float:
        record = await self.world.record(parse_id(handle.id))
        return (record.due_at.timestamp() * 1_000_000 - self.clock.wall()) / 1_000_000

    async def lease_of(self, handle: JobHandle[Any]) -> Lease:
        """Return the lease of the job, which must be the only one that is ready."""
        [lease] = await self.claim()
        assert lease.envelope.id == parse_id(handle.id)
        return lease

    def close(self) -> None:
        self._threads.close()


@contextmanager
def speaking_for(app: App) -> Iterator[App]:
    """In this block, declarations and queries belong to this application, as if it had its own process."""
    before = default_app()
    app_module._default_app = app
    try:
        yield app
    finally:
        app_module._default_app = before


def loaded(source: str, *, app: App, file: str = "/srv/app/tasks.py", name: str = "app.tasks") -> ModuleType:
    """Return a module made from source text, as if it were in that file; its jobs are in `app`."""
    module = ModuleType(name)
    module.__file__ = file
    with speaking_for(app):
        exec(compile(source, file, "exec"), module.__dict__)
    return module
