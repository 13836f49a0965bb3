"""A store on a clock that moves by hand, and the executor that works it off: what a worker does, at the test's own pace."""

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
    """The default application on `world`, and a worker of one session that runs when it is told to."""

    def __init__(self, world: World, app: App) -> None:
        self.world = world
        self.app = app
        self.clock = world.clock
        self.broker = world.broker
        self._threads = ThreadPool(4, world.seams.start_thread)

    async def run_all(self, *, by: App | None = None, state: Any = None) -> list[Verdict]:
        """Run what is ready until nothing is, one job after the other, as a worker that has loaded the application `by`."""
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
        """The store's, to the microsecond."""
        return instant_of(self.clock.wall())

    async def pass_time(self, seconds: float) -> None:
        await self.world.pass_time(seconds)

    async def seconds_until_due(self, handle: JobHandle[Any]) -> float:
        record = await self.world.record(parse_id(handle.id))
        return (record.due_at.timestamp() * 1_000_000 - self.clock.wall()) / 1_000_000

    async def lease_of(self, handle: JobHandle[Any]) -> Lease:
        """The job must be the only one that is ready."""
        [lease] = await self.claim()
        assert lease.envelope.id == parse_id(handle.id)
        return lease

    def close(self) -> None:
        self._threads.close()


@contextmanager
def speaking_for(app: App) -> Iterator[App]:
    """What is declared and asked for meanwhile belongs to this application, as if it had a process of its own."""
    before = default_app()
    app_module._default_app = app
    try:
        yield app
    finally:
        app_module._default_app = before


def loaded(source: str, *, app: App, file: str = "/srv/app/tasks.py", name: str = "app.tasks") -> ModuleType:
    """A module made of its text, as if it lay in that file; its jobs are in `app`."""
    module = ModuleType(name)
    module.__file__ = file
    with speaking_for(app):
        exec(compile(source, file, "exec"), module.__dict__)
    return module
