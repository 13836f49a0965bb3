"""Begins a worker's next session when the current one is lost, and ends all of them when the worker winds down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import anyio

from taskflow.app.context import JobContext
from taskflow.app.events import Events
from taskflow.broker.retry import retry
from taskflow.model.clock import Chance
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.pauses import Pauses, Retries
from taskflow.worker.events import BrokerCallFailed, WaitingForBroker
from taskflow.worker.lease_table import HeldLease
from taskflow.worker.options import WorkerOptions
from taskflow.worker.services import Services
from taskflow.worker.session import Phase, WorkerSession

PAUSES: Final = Pauses(0.1, 5.0)
EARLY: Final = 10.0
"""A session that ends within this many seconds has ended early. The cause will
most likely end the next one too, so the next one begins only after a pause."""

EARLY_PAUSES: Final = Pauses(0.25, 30.0)


class SessionLoop:
    """Runs a worker's sessions, one after another. `past` holds lost sessions that are still offering their verdicts.

    One service runs the sessions in turn, and each session is itself a service. `phase` is the phase of the worker as a whole."""

    def __init__(self, make: Callable[[], WorkerSession], options: WorkerOptions, events: Events, chance: Chance) -> None:
        self.current: WorkerSession | None = None
        self.past: list[WorkerSession] = []
        self.phase = Phase.WORKING
        self.has_ended = asyncio.Event()
        self._make = make
        self._options = options
        self._events = events
        self._chance = chance
        self._lost: WorkerSession | None = None
        self._early_ends = Retries(EARLY_PAUSES, chance.random)
        self._services = Services(events, chance, on_end=lambda: None)
        self._moved = asyncio.Event()
        self._ends_at = 0.0
        self._is_hurried = False
        self._beginning: anyio.CancelScope | None = None

    async def begin(self) -> None:
        """Begin the first session. Raises BrokerUnavailable if the broker does not answer within `start_timeout` seconds."""
        timeout = self._options.start_timeout
        self._beginning = anyio.CancelScope()  # loads anyio's asyncio backend before jobs are claimed, not after

        def note(error: Exception, times: int) -> None:
            if timeout and times == 1:
                self._events.emit(WaitingForBroker(str(error), timeout))

        self.current = await retry(self._begin, PAUSES, on=BrokerUnavailable, note=note, give_up_at=time.monotonic() + timeout)
        self._services.start(self.current.run)
        self._services.start(self._run_sessions)

    async def finish(self) -> None:
        self._enter(Phase.FINISHING)
        if (current := self.current) is not None:
            await current.all_ended.wait()
            if current.phase is Phase.LOST:
                await current.until(Phase.ENDED)
        for session in list(self.past):
            await session.until(Phase.ENDED)

    def wind_down(self) -> None:
        self._ends_at = time.monotonic() + self._options.stop_timeout
        self._enter(Phase.WINDING_DOWN)

    def end_grace_period(self) -> None:
        self._is_hurried = True
        self._lead()

    def _enter(self, phase: Phase) -> None:
        self.phase = max(phase, self.phase)
        self._moved.set()
        if self._beginning is not None:
            self._beginning.cancel()
        self._lead()

    def _lead(self) -> None:
        """Bring the current session to the worker's phase."""
        if self.current is not None:
            if self.phase is Phase.FINISHING:
                self.current.finish()
            elif self.phase is Phase.WINDING_DOWN:
                self.current.wind_down()
                if self._is_hurried:
                    self.current.end_grace_period()

    async def _run_sessions(self) -> None:
        while self.phase is Phase.WORKING or self.current is not None:
            if self.current is not None:
                await self.current.until(Phase.LOST)
                if self.current.phase is Phase.ENDED or self.phase is Phase.WINDING_DOWN:
                    break
                self._lost, self.current = self.current, None
                self.past.append(self._lost)
            if self._lost is not None:
                await self._lost.runs_stopped.wait()
            await self._begin_next()
        await self._end_all()
        self.has_ended.set()

    async def _begin_next(self) -> None:
        def note(error: Exception, times: int) -> None:
            self._events.emit(BrokerCallFailed("a new session", str(error) or type(error).__name__, times))

        with anyio.CancelScope() as self._beginning:
            if self.phase is not Phase.WORKING:
                return
            if self._lost is not None and time.monotonic() - self._lost.made_at < EARLY:
                await asyncio.sleep(self._early_ends.failed())
            else:
                self._early_ends.succeeded()
            # Retry after any error, such as having no thread for the heartbeat: giving up would leave a live worker that does nothing.
            self.current = await retry(self._begin, PAUSES, on=Exception, note=note, draw=self._chance.random)
        if self.current is not None:
            self.past = [session for session in self.past if session.phase is not Phase.ENDED]
            self._services.start(self.current.run)
            self._lead()

    async def _begin(self) -> WorkerSession:
        session = self._make()
        await session.begin()
        return session

    async def _end_all(self) -> None:
        """Wait until the worker winds down and all sessions have ended. Past sessions still offer their verdicts in the meantime."""
        while self.phase is not Phase.WINDING_DOWN:
            self._moved.clear()
            await self._moved.wait()
        if self.current is not None:
            await self.current.until(Phase.ENDED)
        for session in self.past:
            session.settle_by(self._ends_at)
        for session in list(self.past):
            await session.until(Phase.ENDED)

    @property
    def all(self) -> list[WorkerSession]:
        return [*(() if (current := self.current) is None else (current,)), *self.past]

    @property
    def beats(self) -> object:
        """A value that changes with every answered heartbeat, with every new session, and at every read while there is no session."""
        current = self.current
        return object() if current is None else (current, current.heartbeat.beaten_at)

    @property
    def slow(self) -> tuple[HeldLease, float] | None:
        """The last slow run, and when it ended, or None. The lost session counts too, because a run may have blocked its heartbeats."""
        found = [slow for session in (self.current, self._lost) if session is not None and (slow := session.runs.slow) is not None]
        return max(found, key=lambda one: one[1], default=None)

    def holding_of(self, run: JobContext) -> HeldLease | None:
        return next((holding for session in self.all if (holding := session.lease_table.held_by(run)) is not None), None)

    def record_freed(self) -> None:
        """Wake the current session, because a thread that was running an abandoned function is free again."""
        if (current := self.current) is not None:
            current.lease_table.nudge()

    def record_silence(self) -> None:
        if (current := self.current) is not None:
            current.fall_silent("its heartbeat thread has sent nothing for longer than the ttl")

    def give_up(self, *, is_delivered: bool) -> None:
        """Stop the heartbeat, so that other workers take the jobs, and call `on_stall_limit`. If the loop resumes, a new session begins.
        `is_delivered` is True if the subscribers have handled StalledForGood."""
        if (current := self.current) is not None:
            current.fall_silent(f"the event loop was blocked for {self._options.stall_limit:g} s")
        if self._options.on_stall_limit is not None:
            self._options.on_stall_limit(is_delivered)
