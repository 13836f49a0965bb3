"""A worker's part in schedules, with a world's store and clock."""

from __future__ import annotations

from typing import Any, Final, Self

from taskflow.app.app import App
from taskflow.app.decorator import _declare
from taskflow.app.events import Event, Events
from taskflow.model.session import Session
from taskflow.worker.maintenance import Scheduler
from tests.support.world import World

DAY: Final = 86_400.0


class Process:
    """A worker's part in schedules. `declared` is the schedule that its job "report" declares, or None if the code has no such job."""

    def __init__(self, world: World, name: str = "worker", **declared: Any) -> None:
        self._world = world
        self._name = name
        app = App()
        if declared:
            _declare(app, _report, {"name": "report", "keep_result": 1_000 * DAY, **declared})
        self.events = list[Event]()
        self.scheduler = Scheduler(world.broker, app.registry, app.settings.middleware, Events(self.events.append))
        self.scheduler.age = lambda: (world.clock.steady() - began_at) / 1e6  # type: ignore[method-assign]
        began_at = world.clock.steady()
        self.session: Session | None = None

    async def begin(self) -> Self:
        self.session = await self._world.a_session(self._name, ttl=1_000 * DAY)
        await self.scheduler.declare(self.session.id)
        return self

    async def end(self) -> None:
        assert self.session is not None
        await self._world.beat(self.session, leaving=True)

    async def upkeep(self) -> float:
        """Call maintenance once, and fire what it offers. Return the seconds until the next call."""
        done = await self._world.upkeep()
        if done.offers:
            return min(done.next_in, await self.scheduler.fire(done.offers))
        return done.next_in

    async def work(self, seconds: float, step: float = 60.0) -> None:
        """Let time pass in steps, and call maintenance."""
        until = self._world.clock.steady() + round(seconds * 1e6)
        while (left := (until - self._world.clock.steady()) / 1e6) > 0:
            while await self.upkeep() <= 0:
                pass
            self._world.clock.advance(min(step, left))
        while await self.upkeep() <= 0:
            pass


def _report() -> None: ...


async def replaced(process: Process, world: World, schedule: dict[str, Any]) -> Process:
    assert process.session is not None
    await world.die(process.session)
    return await Process(world, **schedule).begin()
