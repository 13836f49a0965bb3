"""Runs the store's maintenance, declares the jobs' schedules, and fires the schedules that maintenance offers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec.structs import replace

from taskflow.app.events import Events
from taskflow.app.job_type import Registry
from taskflow.app.middleware import Middleware, stamped_envelopes, stamping
from taskflow.broker import topics
from taskflow.broker.protocol import Added, Broker
from taskflow.broker.retry import retry
from taskflow.broker.wakeups import Waiter
from taskflow.model.clock import Chance, StartThread, start_thread, to_microseconds, to_seconds
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerError, BrokerUnavailable, DeclarationError, SessionLost, StoreFull
from taskflow.model.pauses import Pauses, Retries
from taskflow.model.schedule import MAX_OFFERS, Definition, Firing, Offer
from taskflow.model.session import WorkHint
from taskflow.worker.events import BrokerCallFailed, ScheduleFailed, ScheduleFired, ScheduleMissed
from taskflow.worker.registration import Registration
from taskflow.worker.thread_pool import ThreadPool

if TYPE_CHECKING:
    from taskflow.app.declared_schedules import DeclaredSchedule
    from taskflow.model.timetable import Timetable


PASS_ON_DELAY: Final = 0.1  # seconds after which a schedule is offered again, perhaps to a worker that can compute its times
FIRST_ROUNDS: Final = 3

MAX_BYTES: Final = 1 << 20  # the maximum size of the jobs in one call of `fire`, in bytes. A larger job or flow is sent alone.
JOB_OVERHEAD: Final = 1_000  # the size in bytes that a job without arguments counts as
PAUSES: Final = Pauses(0.5, 30.0)

STAMP_TIMEOUT: Final = 15.0  # seconds within which middleware must stamp the jobs of schedules. Maintenance waits for this.
LIMIT: Final = 250
"""The maximum number of moves (jobs changed or dropped) in one call while jobs are falling due. These
jobs wait for the call, and so do claims for the jobs that the previous call made ready."""
PORTIONS: Final = ((100, 50), (500, 250))
BATCH_PAUSE: Final = 0.01
"""Work that no job is waiting for, mostly dropping old results, is done in small batches, `BATCH_PAUSE`
seconds apart, so that claims find the server free. The first hundred batches have 50 moves each.
The next ones have 250, so that old results are dropped as fast as new ones are added."""
MAX_MAINTENANCE_INTERVAL: Final = 5.0
MAINTENANCE_PAUSES: Final = Pauses(0.5, MAX_MAINTENANCE_INTERVAL)
WORK_HINT_TTL: Final = 1.4 * MAX_MAINTENANCE_INTERVAL  # seconds for which a heartbeat's work hint is trusted
MAX_IDLE_INTERVAL: Final = 60.0  # seconds after which maintenance is called, whatever the heartbeats report
SHORT: Final = 2.0
UNANNOUNCED: Final = 0.1
"""If a heartbeat reports work that is due this many seconds or more before
the planned call, no nudge has announced that work, so maintenance is called earlier."""
# Minimum seconds between two calls. Each job that's due soon sends a nudge, and a flood of nudges must not become a flood of calls.
MIN_INTERVAL: Final = 0.005


class _Step(NamedTuple):
    """A firing, and how many seconds late it was when the schedule was offered."""

    firing: Firing
    lag: float


class _StampFailed(Exception):
    """Raised if middleware fails to stamp a job. The middleware's error is the `__cause__`."""


@dataclass(eq=False)
class Scheduler:
    """Declares a worker's schedules in each session, and fires the schedules that the store offers. Sessions report the worker's age, not
    their own, so that a new session isn't taken for a new deploy. Raises DeclarationError if a schedule is invalid or two share a name."""

    broker: Broker
    registry: Registry
    middleware: Sequence[Middleware]
    events: Events
    start_thread: StartThread = start_thread

    def __post_init__(self) -> None:
        self._threads: ThreadPool | None = None
        self._began_at = time.monotonic()
        self._declared = _by_name(self.registry)
        self._firing = asyncio.Lock()
        self._has_failed = dict[str, type[BaseException] | None]()

    def close(self) -> None:
        if self._threads is not None:
            self._threads.close()

    def age(self) -> float:
        return time.monotonic() - self._began_at

    async def begin(self, session: bytes) -> None:
        """Declare the schedules and fire the due ones, so that even a worker that exits right away computes the next times."""
        await self.declare(session)
        for _ in range(FIRST_ROUNDS if self._declared else 0):
            try:
                if not (offers := (await self.broker.upkeep(1)).offers):
                    break
                await self.fire(offers)
            except BrokerError:  # the session's maintenance tries again
                break
        async with self._firing:  # wait for schedules that the session's maintenance is firing
            pass

    async def declare(self, session: bytes) -> None:
        """Declare the schedules for a session that has just been registered. If the store does not answer or is full, retry."""
        definitions = [schedule.definition for schedule in self._declared.values()]
        for first in range(0, len(definitions), MAX_OFFERS):
            portion = definitions[first : first + MAX_OFFERS]
            try:
                taken = await retry(partial(self._define, portion, session), PAUSES, on=BrokerError, note=self._note)
            except SessionLost:  # the heartbeat reports this too
                return
            for definition, is_taken in zip(portion, taken, strict=True):
                if not is_taken:
                    self._fail(definition.name, "`schedules.put` has stored a schedule with this name: remove that one or rename this one")

    async def _define(self, portion: Sequence[Definition], session: bytes) -> list[bool]:
        return await self.broker.define(portion, session, self.age())  # the age is computed again for each attempt

    def _note(self, error: Exception, times: int) -> None:
        if isinstance(error, SessionLost):
            raise error
        self.events.emit(BrokerCallFailed("declaring schedules", str(error), times))

    async def fire(self, offers: Sequence[Offer]) -> float:
        """Fire the schedules. Return the seconds until one of them is due again, or infinity. Raises the broker's errors."""
        async with self._firing:
            return await self._fire(offers)

    async def _fire(self, offers: Sequence[Offer]) -> float:
        began_at, now = time.monotonic(), offers[0].now
        steps, looks, size = list[_Step](), [math.inf], 0
        for offer in offers:
            found = self._steps_of(offer)
            for step in found:
                more = sum([JOB_OVERHEAD + len(envelope.payload) for envelope in step.firing.envelopes])
                if steps and (len(steps) >= MAX_OFFERS or size + more > MAX_BYTES):
                    await self._send(steps, began_at)
                    steps, size = [], 0
                steps.append(step)
                size += more
            if found:
                offer_at = found[-1].firing.offer_at
                looks.append(math.inf if offer_at is None else to_seconds(offer_at - now))
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
                    at, offer_at = offer.next_at, offer.now + to_microseconds(PASS_ON_DELAY)
                    return [_Step(Firing(name=offer.name, digest=offer.digest, expected=at, next_at=at, offer_at=offer_at), 0.0)]
                times = declared.timetable
            return [_Step(firing, plan.lag_of(offer.name, firing.expected, offer.now)) for firing in firings_of(offer, plan, times)]
        except (Exception, asyncio.CancelledError, GeneratorExit, SystemExit) as error:  # one timetable's error must not affect others
            self._fail(offer.name, f"{type(error).__name__}: {error}", type(error))
            return []

    async def _send(self, steps: Sequence[_Step], began_at: float) -> None:
        try:
            answers = await self.broker.fire(await self._stamped([step.firing for step in steps]))
        except (BrokerUnavailable, StoreFull):
            raise
        except Exception as raised:  # the store cannot write one of the jobs, or middleware cannot stamp it
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
                self.events.emit(ScheduleMissed(step.name, step.missed))
            if answer is not None and step.expected is not None:
                late_by = lag + time.monotonic() - began_at
                self.events.emit(ScheduleFired(step.name, answer.id, isinstance(answer, Added), late_by))

    async def _stamped(self, firings: list[Firing]) -> list[Firing]:
        """Return the firings with their jobs stamped by the middleware. Raises _StampFailed."""
        envelopes = [envelope for firing in firings for envelope in firing.envelopes]
        if not envelopes or not stamping(self.middleware):
            return firings
        if self._threads is None:
            self._threads = ThreadPool(1, self.start_thread)
        raised = list[BaseException]()

        def stamp() -> list[Envelope]:
            try:
                return stamped_envelopes(self.middleware, self.registry.get, envelopes)
            except BaseException as error:  # if it were raised here, SystemExit would end the worker
                raised.append(error)
                return []

        outcome, stamped = self._threads.run(stamp), iter(envelopes)
        try:
            async with asyncio.timeout(STAMP_TIMEOUT):
                stamped = iter(await outcome)
        except TimeoutError:
            raised.append(TimeoutError(f"stamp() did not return within {STAMP_TIMEOUT:g} s"))
        finally:
            self._threads.give_up(outcome)
        if raised:
            raise _StampFailed from raised[0]
        return [replace(firing, envelopes=tuple(islice(stamped, len(firing.envelopes)))) for firing in firings]

    def _fail(self, name: str, why: str, kind: type[BaseException] | None = None) -> None:
        """Report a failure, unless the schedule's last failure was of the same kind: schedules that don't fire are offered every second."""
        if name not in self._has_failed or self._has_failed[name] is not kind:
            self._has_failed[name] = kind
            self.events.emit(ScheduleFailed(name, why))


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


@dataclass(eq=False)
class Maintenance:
    """Runs the store's maintenance when it is due. `on_ready` is called when jobs may be ready to claim. `on_offers` fires the schedules
    that are offered, and returns the seconds until the first of them is due again. `on_ended`, if given, receives the ids of jobs that
    ended without a settlement, and how many ids the store dropped. `is_at_rest` is True if the last call found nothing to do."""

    registration: Registration
    chance: Chance
    on_ready: Callable[[], None]
    on_offers: Callable[[Sequence[Offer]], Awaitable[float]]
    on_ended: Callable[[Sequence[bytes], int], None] | None

    def __post_init__(self) -> None:
        self._broker = self.registration.broker
        self._retries = Retries(MAINTENANCE_PAUSES, self.chance.random)
        self._is_awaited = False
        self._portions = 0
        self.is_at_rest = False
        self._outlook_at = self._due_at = self._next_at = 0.0
        self._nudge: Callable[[], None] = lambda: None
        self._when_due: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        with self._broker.listen([topics.DUE]) as waiter:
            self._nudge = waiter.nudge
            while True:
                pause = await self._once()
                ended_at = time.monotonic()
                if pause > 0 and await self._wait(waiter, pause):
                    await asyncio.sleep(max(0.0, ended_at + MIN_INTERVAL - time.monotonic()))

    def apply_work_hint(self, work_hint: WorkHint, asked_at: float) -> None:
        """Apply the work hint from the answer to a heartbeat that was sent at the monotonic time `asked_at`."""
        self._outlook_at, self._due_at = asked_at, asked_at + work_hint.due_in
        if self._due_at < self._next_at - UNANNOUNCED:
            self._forget_due()
            self._when_due = asyncio.get_running_loop().call_later(self._due_at - time.monotonic(), self._nudge)

    def _forget_due(self) -> None:
        if self._when_due is not None:
            self._when_due.cancel()
            self._when_due = None

    async def _wait(self, waiter: Waiter, pause: float) -> bool:
        """Wait `pause` seconds, and longer while heartbeats report that nothing is due. Return True if a nudge ended the wait."""
        began_at = time.monotonic()
        self._next_at = began_at + pause
        while not await waiter.wait(pause):
            now = time.monotonic()
            self._next_at = min(self._due_at, self._outlook_at + WORK_HINT_TTL, began_at + MAX_IDLE_INTERVAL)
            if self._next_at <= now or self._outlook_at < began_at or not self.is_at_rest:
                return False
            pause = self._next_at - now
        return True

    async def _once(self) -> float:
        self._next_at = 0.0
        self._forget_due()
        looks_in, fired_for = math.inf, 0.0
        portion = next((moves for number, moves in PORTIONS if self._portions < number), LIMIT)
        try:
            done = await self._broker.upkeep(LIMIT if self._is_awaited else portion, ends=self.on_ended is not None)
            if self.on_ended is not None and (done.ended or done.ends_dropped):
                self.on_ended(done.ended, done.ends_dropped)
            if done.offers:
                began_at = time.monotonic()
                looks_in = await self.on_offers(done.offers)
                fired_for = time.monotonic() - began_at
                self.on_ready()  # so a claim need not wait for the nudge
        except BrokerError as error:
            self.is_at_rest = False
            return await self.registration.record_failure("upkeep", error, self._retries)
        if self._retries.failures:
            await self.registration.record_success("upkeep", self._retries)
        self._is_awaited = done.readied > 0 or done.released > 0
        if self._is_awaited:
            self.on_ready()
        self.is_at_rest = not any((done.readied, done.released, done.reaped, done.expired, done.dropped, done.offers, done.ended))
        if done.next_in > 0:
            self._portions = 0
            next_in = done.next_in
            # Workers that get the same time spread their calls. They call early rather than late, because a planned job may be due then. A
            # short time is not changed: it means that this worker is alone, or that something is due.
            if next_in > SHORT:
                next_in *= 1.0 - 0.2 * self.chance.random()
            return max(0.0, min(looks_in, min(next_in, MAX_MAINTENANCE_INTERVAL) - fired_for))
        self._portions += 1
        return 0.0 if self._is_awaited else BATCH_PAUSE
