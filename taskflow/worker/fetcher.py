"""Claims jobs while there is room for them, and waits for a nudge when no job is ready."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio

from taskflow.broker import topics
from taskflow.broker.wakeups import Waiter
from taskflow.model.clock import Chance
from taskflow.model.envelope import Lease
from taskflow.model.errors import BrokerError, SessionLost
from taskflow.model.pauses import Pauses, Retries
from taskflow.model.session import WorkHint
from taskflow.worker.options import WorkerOptions
from taskflow.worker.registration import Registration
from taskflow.worker.runs import Runs

if TYPE_CHECKING:  # loaded only by workers with ended() hooks
    from taskflow.worker.ended_hooks import EndedHooks

POLL_INTERVAL: Final = 5.0
"""Seconds without a nudge after which the fetcher claims again, because nudges may
be lost. It keeps waiting while heartbeats report that there is no work."""

TRUSTED_INTERVALS: Final = 1.4
"""A heartbeat's report is trusted for this many times `POLL_INTERVAL`, which is slightly
longer than the 6.7 s between an idle session's heartbeats (with a ttl of 20 s)."""

MAX_IDLE_INTERVAL: Final = 60.0  # seconds after which the fetcher claims again, whatever the heartbeats report
MANY: Final = 8
"""If a claim fills more than 1/MANY of the room, jobs are arriving so fast that the next
claim follows without a nudge. With fewer jobs, every second claim would find nothing."""

PAUSES: Final = Pauses(0.05, 2.0)
BEHIND_PAUSE: Final = 0.1  # seconds after which the fetcher checks again whether the `ended` hooks have caught up


@dataclass(eq=False)
class Fetcher:
    """Claims jobs for a session, one claim at a time. A claim whose answer was lost is repeated with the same number.

    `answered_at` is when a claim was last answered, and `full_at` when the worker was last full (monotonic clock). `has_tried` is set once
    a claim has been answered or has failed, or the worker was full. `on_leases` receives the leases and the time of the request, and
    `on_lost` the reason if the session is lost."""

    registration: Registration
    options: WorkerOptions
    runs: Runs
    ended_hooks: EndedHooks | None
    chance: Chance
    on_leases: Callable[[Sequence[Lease], float], None]
    on_lost: Callable[[str], None]

    def __post_init__(self) -> None:
        self._broker = self.registration.broker
        self._queues = self.options.queues
        self._too_old = self.options.ttl / 4  # half of `ghost_after`, which in turn is half the ttl
        self._retries = Retries(PAUSES, self.chance.random)
        self._nudge: Callable[[], None] = lambda: None
        self._answered = asyncio.Event()
        self._answered.set()
        self.has_tried = asyncio.Event()
        self._is_stopping = False
        self._is_waiting = False
        self._nothing_since = self._polled_at = -math.inf
        self.request = 0
        self.answered_at: float | None = None
        self.full_at: float | None = None

    async def run(self) -> None:
        try:
            with self._broker.listen([topics.queue(name) for name in self._queues.names] or [topics.ANY_QUEUE]) as waiter:
                self._nudge = waiter.nudge
                while not self._is_stopping:
                    await self._fetch(waiter)
        except SessionLost as error:
            self.on_lost(str(error))

    async def stop(self, within: float) -> None:
        """Stop claiming. Wait at most `within` seconds for a claim in progress, because no worker would run its jobs until the store
        takes the leases back."""
        self._is_stopping = True
        with anyio.move_on_after(within):
            await self._answered.wait()

    def apply_work_hint(self, work_hint: WorkHint, asked_at: float) -> None:
        """Apply the work hint from the answer to a heartbeat that was sent at `asked_at`."""
        self._nothing_since = -math.inf if work_hint.is_ready else asked_at
        if not self._is_waiting:
            return
        if not work_hint.is_ready:
            self.answered_at = asked_at
        elif time.monotonic() - self._polled_at >= POLL_INTERVAL:  # otherwise the ready jobs are probably in other workers' queues
            self._nudge()

    def poll(self) -> None:
        if self._is_waiting:
            self._nudge()

    async def _fetch(self, waiter: Waiter) -> None:
        is_behind = self.ended_hooks is not None and self.ended_hooks.is_behind
        limit = 0 if is_behind else self.runs.room()
        if not limit:
            self.has_tried.set()
            await self.runs.lease_table.wait_for_change(BEHIND_PAUSE if is_behind else None)
            self.full_at = time.monotonic()
            return
        asked_at = self._polled_at = time.monotonic()
        self._answered.clear()
        try:
            leases = await self._claim(self._queues.order(), limit)
            self.answered_at = time.monotonic()
            # After a slow answer, the store may have taken the leases back, as "ghosts" that no heartbeat names, and given them to others.
            take = self.on_leases if self.answered_at - asked_at < self._too_old else self.runs.refuse
            take(leases, asked_at)
        finally:
            self._answered.set()
        if len(leases) == limit:
            return
        if leases:  # no more jobs are ready: start these before claiming again
            self.runs.begin_waiting()
            await asyncio.sleep(0)
        if not leases or (len(leases) * MANY <= limit and waiter.is_prompt):  # a job that arrived since the claim has sent a nudge
            await self._rest(waiter)

    async def _rest(self, waiter: Waiter) -> None:
        longest, pause = time.monotonic() + MAX_IDLE_INTERVAL, POLL_INTERVAL
        self._is_waiting = True
        try:
            while not await waiter.wait(pause):
                now = time.monotonic()
                until = min(longest, self._nothing_since + TRUSTED_INTERVALS * POLL_INTERVAL)
                if now >= until or not waiter.is_prompt:
                    break
                pause = min(POLL_INTERVAL, until - now)
        finally:
            self._is_waiting = False

    async def _claim(self, queues: Sequence[str], limit: int) -> list[Lease]:
        number = self.request + 1
        while True:
            try:
                leases = await self._broker.claim(self.registration.session.id, number, queues, limit)
            except SessionLost:
                raise
            except BrokerError as error:
                await asyncio.sleep(await self.registration.record_failure("claiming", error, self._retries))
                if self._is_stopping:
                    return []
            except Exception:
                # The same request would get the same answer. After the next request, the store treats these leases as ghosts and gives
                # them back without counting a hand-back.
                self.request = number
                raise
            else:
                break
            finally:
                self.has_tried.set()
        if self._retries.failures:
            await self.registration.record_success("claiming", self._retries)
        self.request = number
        return leases
