"""Declares the schedules of a worker's jobs, and fires the schedules that upkeep offers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec.structs import replace

from taskflow.app.job_type import Registry
from taskflow.app.middleware import Middleware, stamped_envelopes, stamping
from taskflow.broker.protocol import Added, Broker
from taskflow.broker.retry import retry
from taskflow.model.clock import StartThread, start_thread, to_microseconds, to_seconds
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerError, BrokerUnavailable, DeclarationError, SessionLost, StoreFull
from taskflow.model.pauses import Pauses
from taskflow.model.schedule import MAX_OFFERS, Definition, Firing, Offer
from taskflow.worker.events import BrokerCallFailed, Events, ScheduleFailed, ScheduleFired, ScheduleMissed
from taskflow.worker.thread_pool import ThreadPool

if TYPE_CHECKING:
    from taskflow.app.declared_schedules import DeclaredSchedule
    from taskflow.model.timetable import Timetable


PASSED_ON_AFTER: Final = 0.1  # seconds after which a schedule is offered again if this worker cannot compute its times
FIRST_ROUNDS: Final = 3

MAX_BYTES: Final = 1 << 20  # the maximum size, in bytes, of the arguments in one call of `fire`, unless one job alone has more
PAUSES: Final = Pauses(0.5, 30.0)

STAMPED_WITHIN: Final = 15.0  # seconds within which middleware must stamp the jobs of schedules. Upkeep waits for it.


class _Step(NamedTuple):
    """A firing, and how late it was, in seconds, when the schedule was offered."""

    firing: Firing
    lag: float


class _StampFailed(Exception):
    """The cause is what middleware has raised."""


class Scheduler:
    """Declares a worker's schedules in each of its sessions, and fires the schedules that it is offered. Every session reports the age of
    the worker, so that a worker whose session is replaced does not look like a newer deploy. Middleware stamps the jobs in a thread without
    an event loop: it may block there. Raises DeclarationError if two schedules have the same name, or if a call does not fit its job."""

    def __init__(
        self,
        broker: Broker,
        registry: Registry,
        middleware: Sequence[Middleware],
        events: Events,
        start_thread: StartThread = start_thread,
    ) -> None:
        self._broker = broker
        self._registry = registry
        self._middleware = middleware
        self._events = events
        self._start_thread = start_thread
        self._threads: ThreadPool | None = None
        self._began_at = time.monotonic()
        self._declared = _by_name(registry)
        self._firing = asyncio.Lock()
        self._has_failed = dict[str, type[BaseException] | None]()

    def close(self) -> None:
        if self._threads is not None:
            self._threads.close()

    def age(self) -> float:
        return time.monotonic() - self._began_at

    async def begin(self, session: bytes) -> None:
        """Declare the schedules, and fire those that are due, so that even a worker that ends at once computes the next times."""
        await self.declare(session)
        for _ in range(FIRST_ROUNDS if self._declared else 0):
            try:
                if not (offers := (await self._broker.upkeep(1)).offers):
                    break
                await self.fire(offers)
            except BrokerError:  # the session's upkeep tries again
                break
        async with self._firing:  # the session's upkeep may have been offered some
            pass

    async def declare(self, session: bytes) -> None:
        """Declare the schedules for a session that has just been registered. If the store does not answer or is full, retry."""
        definitions = [schedule.definition for schedule in self._declared.values()]
        for first in range(0, len(definitions), MAX_OFFERS):
            portion = definitions[first : first + MAX_OFFERS]
            try:
                taken = await retry(partial(self._define, portion, session), PAUSES, on=BrokerError, note=self._note)
            except SessionLost:  # the heartbeat reports it too
                return
            for definition, is_taken in zip(portion, taken, strict=True):
                if not is_taken:
                    self._fail(definition.name, "a schedule with its name was put by `schedules.put`: remove that, or rename this one")

    async def _define(self, portion: Sequence[Definition], session: bytes) -> list[bool]:
        return await self._broker.define(portion, session, self.age())  # the age at each try

    def _note(self, error: Exception, times: int) -> None:
        if isinstance(error, SessionLost):
            raise error
        self._events.emit(BrokerCallFailed("declaring schedules", str(error), times))

    async def fire(self, offers: Sequence[Offer]) -> float:
        """Fire the offered schedules. Return the seconds until the first of them is due
        again, or infinity if none is. Raises the broker's errors."""
        async with self._firing:
            return await self._fire(offers)

    async def _fire(self, offers: Sequence[Offer]) -> float:
        began_at, now = time.monotonic(), offers[0].now
        steps, looks, size = list[_Step](), [math.inf], 0
        for offer in offers:
            found = self._steps_of(offer)
            for step in found:
                more = 0 if step.firing.envelope is None else len(step.firing.envelope.payload)
                if steps and (len(steps) >= MAX_OFFERS or size + more > MAX_BYTES):
                    await self._send(steps, began_at)
                    steps, size = [], 0
                steps.append(step)
                size += more
            if found:
                look_at = found[-1].firing.look_at
                looks.append(math.inf if look_at is None else to_seconds(look_at - now))
            await asyncio.sleep(0)  # computing the steps takes milliseconds if many instants were missed
        if steps:
            await self._send(steps, began_at)
        return max(0.0, min(looks) - (time.monotonic() - began_at))

    def _steps_of(self, offer: Offer) -> list[_Step]:
        from taskflow.model.schedule_plan import SchedulePlan, firings_of
        from taskflow.model.timetable import OwnTimes

        try:
            plan = SchedulePlan.from_body(offer.body)
            times: Timetable
            if not isinstance(plan.times, OwnTimes):
                times = plan.times
            else:
                declared = self._declared.get(offer.name)
                if declared is None or declared.definition.digest != offer.digest:
                    return [_Step(_passed_on(offer), 0.0)]
                times = declared.timetable
            return [_Step(firing, plan.lag_of(offer.name, firing.expected, offer.now)) for firing in firings_of(offer, plan, times)]
        except (Exception, asyncio.CancelledError, GeneratorExit, SystemExit) as error:  # whatever a timetable raises concerns only itself
            self._fail(offer.name, f"{type(error).__name__}: {error}", type(error))
            return []

    async def _send(self, steps: Sequence[_Step], began_at: float) -> None:
        try:
            answers = await self._broker.fire(await self._stamped([step.firing for step in steps]))
        except (BrokerUnavailable, StoreFull):
            raise
        except Exception as raised:  # the store cannot take one of them, or middleware cannot stamp it
            names = list(dict.fromkeys(step.firing.name for step in steps))
            error = (raised.__cause__ if isinstance(raised, _StampFailed) else None) or raised
            if len(names) == 1 or isinstance(error, TimeoutError):
                for name in names:
                    self._fail(name, f"{type(error).__name__}: {error}", type(error))
                return
            for name in names:
                await self._send([step for step in steps if step.firing.name == name], began_at)
            return
        for (step, lag), answer in zip(steps, answers, strict=True):
            if step.missed:
                self._events.emit(ScheduleMissed(step.name, step.missed))
            if answer is not None and step.expected is not None:
                late_by = lag + time.monotonic() - began_at
                self._events.emit(ScheduleFired(step.name, answer.id, isinstance(answer, Added), late_by))

    async def _stamped(self, firings: list[Firing]) -> list[Firing]:
        """Return the firings with their jobs as the middleware stamps them."""
        envelopes = [firing.envelope for firing in firings if firing.envelope is not None]
        if not envelopes or not stamping(self._middleware):
            return firings
        if self._threads is None:
            self._threads = ThreadPool(1, self._start_thread)
        raised = list[BaseException]()

        def stamp() -> list[Envelope]:
            try:
                return stamped_envelopes(self._middleware, self._registry.get, envelopes)
            except BaseException as error:  # raised here, SystemExit would end the worker
                raised.append(error)
                return []

        outcome, stamped = self._threads.run(stamp), iter(envelopes)
        try:
            async with asyncio.timeout(STAMPED_WITHIN):
                stamped = iter(await outcome)
        except TimeoutError:
            raised.append(TimeoutError(f"stamp() did not return within {STAMPED_WITHIN:g} s"))
        finally:
            self._threads.give_up(outcome)
        if raised:
            raise _StampFailed from raised[0]
        return [firing if firing.envelope is None else replace(firing, envelope=next(stamped)) for firing in firings]

    def _fail(self, name: str, why: str, kind: type[BaseException] | None = None) -> None:
        """Report a failure, unless the schedule's last one was of the same kind: a schedule that does not fire is offered each second."""
        if name not in self._has_failed or self._has_failed[name] is not kind:
            self._has_failed[name] = kind
            self._events.emit(ScheduleFailed(name, why))


def _passed_on(offer: Offer) -> Firing:
    """Return a step that only has the schedule offered again soon, so that a worker that can compute its times may receive it."""
    at = offer.next_at
    return Firing(name=offer.name, digest=offer.digest, expected=at, next_at=at, look_at=offer.now + to_microseconds(PASSED_ON_AFTER))


def _by_name(registry: Registry) -> dict[str, DeclaredSchedule]:
    found: dict[str, DeclaredSchedule] = {}
    for job in registry:
        for schedule in job.schedules:
            if schedule.name in found:
                raise DeclarationError(f"two schedules are called {schedule.name!r}: give one of them another name=")
            try:
                _ = schedule.definition
            except (TypeError, ValueError) as error:
                raise DeclarationError(f"schedule {schedule.name!r} of {job.name}: {error}") from error
            found[schedule.name] = schedule
    return found
