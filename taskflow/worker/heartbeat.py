"""Sends the session's heartbeat from a separate thread and connection, so that a job that blocks the event loop keeps its lease."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVarTuple

import anyio
import msgspec

from taskflow.app.events import Events
from taskflow.broker.protocol import Broker
from taskflow.broker.tasks import Deadline
from taskflow.broker.wakeups import Waiter, WakeUpFlag
from taskflow.model.clock import StartThread
from taskflow.model.errors import BrokerError, BrokerUnavailable, SessionLost
from taskflow.model.pauses import Pauses, Retries
from taskflow.model.session import Beat, BeatAnswer, Report, Session
from taskflow.worker.events import BrokerCallFailed, DescriptorsClosed, ReportDropped
from taskflow.worker.fetcher import Fetcher
from taskflow.worker.lease_table import LeaseTable

if TYPE_CHECKING:  # loaded only by workers that count their runs
    from taskflow.worker.measuring import WorkerMeasures

Args = TypeVarTuple("Args")

BEATS_PER_TTL: Final = 4
IDLE_BEATS_PER_TTL: Final = 3  # the number of heartbeats per ttl that a session without leases sends. Each of them also checks for work.
PAUSES: Final = Pauses(0.1, 0.5)

PROGRESS_INTERVAL: Final = 1.0  # minimum seconds between two heartbeats that are sent only to report progress
STOP_TIMEOUT: Final = 5.0
NO_ANSWER: Final = "it does not answer"
# The errors of a loop's selector if its descriptor has been closed, or has since been reused.
LOST_DESCRIPTORS: Final = (errno.EBADF, errno.EINVAL)


@dataclass(eq=False)
class Heartbeat:
    """Sends a session's heartbeats. In the session's loop, it calls `on_answer` with each answer and the time when its heartbeat was sent,
    and `on_lost` with the reason. `beaten_at` is when the last answer arrived, `tried_at` when the last attempt ended (monotonic clock).

    One ttl after the last answered heartbeat was sent, an attempt in progress is cancelled, and the session is given up. In the store, it
    lapses one ttl after that heartbeat arrived. Only an attempt that begins later, after the process was suspended, may still succeed."""

    session: Session
    fetcher: Fetcher
    lease_table: LeaseTable
    events: Events
    start_thread: StartThread
    on_answer: Callable[[BeatAnswer, float], None]
    on_lost: Callable[[str], None]
    measures: WorkerMeasures | None = None

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        self._waiter = Waiter(WakeUpFlag(), ())
        self._is_urgent = False
        self._trouble = NO_ANSWER
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self.beaten_at: float | None = None
        self.tried_at = time.monotonic()
        self.lease_table.on_news = self._waiter.nudge  # may be called from any thread; see `_rest`

    def start(self, broker: Broker) -> None:
        """Start the heartbeat thread. `broker` is a separate connection, which the thread closes."""
        self._broker = broker
        context = contextvars.copy_context()
        self.start_thread(lambda: context.run(self._run_thread), "taskflow-heartbeat")

    async def stop(self) -> None:
        """End the thread. Wait at most `STOP_TIMEOUT` seconds for a heartbeat that is in progress."""
        self._stop_beating()
        with anyio.move_on_after(STOP_TIMEOUT):
            await self._ended.wait()

    def fall_silent(self, why: str) -> None:
        """Stop sending heartbeats. The session is lost as soon as the event loop handles this. May be called from any thread."""
        self._stop_beating()
        self._in_loop(self.on_lost, why)

    def _stop_beating(self) -> None:
        self._stopping.set()
        self.beat_now()

    def beat_now(self) -> None:
        """Send the next heartbeat without delay. May be called from any thread."""
        self._is_urgent = True
        self._waiter.nudge()

    def _run_thread(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # any error ends the thread, and a session without heartbeats must not continue
            if isinstance(error, OSError) and error.errno in LOST_DESCRIPTORS:
                self.events.emit(DescriptorsClosed(str(error)))
            self._in_loop(self.on_lost, f"its heartbeat thread has failed: {type(error).__name__}: {error}")
        finally:
            self._in_loop(self._ended.set)

    def _in_loop(self, function: Callable[[*Args], object], *args: *Args) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the worker is gone
            self._loop.call_soon_threadsafe(function, *args)

    async def _main(self) -> None:
        beating = asyncio.timeout(None)

        def end() -> None:
            self._lapse()
            beating.reschedule(0.0)

        deadline = Deadline(end)
        try:
            with contextlib.suppress(TimeoutError):
                async with beating:
                    await self._beat_on(deadline)
        finally:
            deadline.drop()
            if self.measures is not None:
                await self.measures.record(self._broker, self.session.id, at_once=True)
            await self._broker.close()

    async def _beat_on(self, deadline: Deadline) -> None:
        interval = self.session.ttl / BEATS_PER_TTL
        lapses_at = self.tried_at + self.session.ttl  # the session was registered after `tried_at`
        retries = Retries(PAUSES.at_most(interval))
        while not self._stopping.is_set():
            if self._loop.is_closed():  # the worker didn't wind down: let other workers take the jobs now, not when this process ends
                with contextlib.suppress(BrokerError):
                    await self._broker.beat(Beat(session=self.session.id, leaving=True))
                return
            try:
                asked_at, seen = time.monotonic(), self.fetcher.request  # read before the claims: a claim answered in between is newer
                claims = self.lease_table.claims()
                beat = Beat(session=self.session.id, claims=claims, seen=seen, looks=not claims)
                deadline.begin(left if (left := lapses_at - asked_at) > 0 else math.inf)
                answer = await self._send(beat, self.lease_table.reports())
                deadline.end()
                self._in_loop(self.on_answer, answer, asked_at)
                self.beaten_at = self.tried_at = time.monotonic()
                lapses_at = asked_at + self.session.ttl
                retries.succeeded()
                self._trouble = NO_ANSWER
                pause = self.session.ttl / IDLE_BEATS_PER_TTL if beat.looks else interval
                pause = max(0.0, pause - (self.tried_at - asked_at))  # counted from sending, so that a slow answer delays no heartbeat
            except SessionLost as error:
                self._in_loop(self.on_lost, str(error))
                return
            except Exception as error:  # includes refusals (a revoked right, a migration) and bugs
                if isinstance(error, OSError) and error.errno in LOST_DESCRIPTORS:
                    raise
                why = self._trouble = str(error) if isinstance(error, BrokerError) else f"{type(error).__name__}: {error}"
                self.tried_at = time.monotonic()
                if self.tried_at >= lapses_at:
                    self._lapse()
                    return
                pause = retries.failed()
                self._in_loop(self.events.emit, BrokerCallFailed("a heartbeat", why, retries.failures))
            if self.measures is not None:
                await self.measures.record(self._broker, self.session.id)
            await self._rest(pause)

    def _lapse(self) -> None:
        self._in_loop(self.on_lost, f"no heartbeat has reached the broker for {self.session.ttl:g} s: {self._trouble}")

    async def _rest(self, pause: float) -> None:
        rested_at = time.monotonic()
        await self._waiter.wait(pause)
        while not self._is_urgent and (left := min(pause, PROGRESS_INTERVAL) - (time.monotonic() - rested_at)) > 0:
            await self._waiter.wait(left)
        self._is_urgent = False

    async def _send(self, beat: Beat, reports: tuple[Report, ...]) -> BeatAnswer:
        """Send the heartbeat with the reports. A report that can't be written is dropped, without affecting the others or the leases."""
        try:
            answer = await self._broker.beat(msgspec.structs.replace(beat, reports=reports) if reports else beat)
        except (BrokerUnavailable, SessionLost):
            raise
        except Exception as error:
            if not reports:
                raise
            if half := len(reports) // 2:
                await self._send(beat, reports[:half])
                return await self._send(beat, reports[half:])
            answer = await self._broker.beat(beat)
            if (holding := self.lease_table.get(reports[0].claim)) is not None:
                self._in_loop(self.events.emit, ReportDropped(holding.lease, f"{type(error).__name__}: {error}"))
        self.lease_table.reported(reports)
        return answer
