"""One session of a worker, from its registration to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio

from taskflow.app.events import Events
from taskflow.broker import topics
from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Lease
from taskflow.model.errors import SessionLost
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, BeatAnswer
from taskflow.worker import events
from taskflow.worker.executor import CANCELLED, LOST, WINDING_DOWN, Executor
from taskflow.worker.fetcher import Fetcher
from taskflow.worker.heartbeat import Heartbeat
from taskflow.worker.lease_table import LeaseTable
from taskflow.worker.maintenance import Maintenance, Scheduler
from taskflow.worker.options import WorkerOptions
from taskflow.worker.registration import Registration, new_session
from taskflow.worker.runs import Quarantine, Runs
from taskflow.worker.services import Services
from taskflow.worker.settler import Settler

if TYPE_CHECKING:  # loaded only by workers with ended() hooks, or with telemetry that counts runs
    from taskflow.worker.ended_hooks import EndedHooks
    from taskflow.worker.measuring import WorkerMeasures

LAST_CLAIM: Final = 1.0  # seconds to wait for the answer to a claim in progress when the session stops claiming
STUCK_RUN_CHECK_INTERVAL: Final = 1.0  # seconds between two checks for runs that ignore a request to stop
SURPLUS_INTERVAL: Final = 2.0  # seconds between two checks of how many leases need no slot, which `taskflow status` shows
PARKED_CHECK_INTERVAL: Final = 1.0  # minimum seconds between two heartbeats that are sent because jobs of a paused name were claimed
_RULES: Final = Rules()


class Phase(IntEnum):
    """A phase of a session, which never returns to an earlier one. Events have these effects:

    | phase        | `finish`     | `wind_down`     | `end_grace_period` | the session is lost                                    |
    |--------------|--------------|-----------------|--------------------|--------------------------------------------------------|
    | WORKING      | -> FINISHING | -> WINDING_DOWN | -                  | -> LOST; runs are cancelled, verdicts offered; another |
    |              |              |                 |                    | session begins                                         |
    | FINISHING    | -            | -> WINDING_DOWN | -                  | -> LOST; the same, but no other session begins         |
    | WINDING_DOWN | -            | -               | -> STOPPING        | -> LOST; verdicts are offered for a while              |
    | STOPPING     | -            | -               | -                  | -> LOST; as before                                     |

    A worker has a phase too: WORKING, FINISHING or WINDING_DOWN. Its current session adopts that phase."""

    WORKING = 0
    FINISHING = 1  # the session claims no more jobs. Its runs may take as long as they need
    WINDING_DOWN = 2  # the runs have the grace period to finish
    STOPPING = 3  # the grace period is over. The remaining runs are cancelled and handed back, then the session leaves
    LOST = 4  # the store, or the worker itself, has declared the session dead. Other workers may run its jobs
    ENDED = 5


class Hooks(NamedTuple):
    """The receivers of settlements. Each is None unless the application asked for it."""

    ended: EndedHooks | None = None
    measures: WorkerMeasures | None = None


class WorkerSession:
    """One session of a worker. If it ends while the worker continues, the worker begins another one.

    `run` takes the session through its phases. `finish`, `wind_down`, `end_grace_period` and `lose` only set the phase; `settle_by` sets
    a time limit. `has_forced` is True if runs had to be cancelled. `all_ended` is set when a finishing session has nothing left to wait
    for, `runs_stopped` when no run continues except in threads, and `schedules_begun` when the worker's schedules have been declared."""

    def __init__(
        self, broker: Broker, executor: Executor, scheduler: Scheduler, options: WorkerOptions, events: Events, hooks: Hooks
    ) -> None:
        assert executor.threads is not None
        seams = executor.seams
        self.session = new_session(options, executor.registry.names, wants_ends=hooks.ended is not None)
        self.phase = Phase.WORKING
        self.has_forced = False
        self.all_ended, self.runs_stopped, self.schedules_begun = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._broker = broker
        self._scheduler = scheduler
        self._options = options
        self._events = events
        self._moved = asyncio.Event()
        self._grace_ends_at: float | None = None
        self._settles_until: float | None = None
        self.made_at = time.monotonic()
        self._parked_at = 0.0
        self.lease_table = LeaseTable()
        self.settler = Settler(broker, self.lease_table, events, [each.settled for each in hooks if each is not None])
        self.runs = Runs(options, executor.threads, self.lease_table, executor, self.settler, events)
        self._registration = registration = Registration(broker, self.session, events)
        self.fetcher = Fetcher(registration, options, self.runs, hooks.ended, seams.chance, on_leases=self.take, on_lost=self.lose)
        on_ended = None if hooks.ended is None else hooks.ended.tell_ended
        self._maintenance = Maintenance(registration, seams.chance, on_ready=self.fetcher.poll, on_offers=scheduler.fire, on_ended=on_ended)
        self._quarantine = Quarantine(self.lease_table, self.runs, events)
        self.heartbeat = Heartbeat(
            self.session, self.fetcher, self.lease_table, events, seams.start_thread, self.apply_answer, self.lose, hooks.measures
        )
        self._running = partial(Services, events, seams.chance, self.lease_table.nudge)

    async def begin(self) -> None:
        """Register the session and start its heartbeat. Raises the broker's errors."""
        self.runs.pause(await self._broker.register(self.session))
        self._events.emit(events.SessionOpened(self.session.name, self.session.id))
        self.heartbeat.start(self._broker.sibling())

    async def run(self) -> None:
        """Run the session until it ends. If a call is cancelled, the next call continues in the same phase."""
        if self.phase is Phase.ENDED:
            return
        async with self._running(self.settler.run, self.settler.run_held_up, self._watch_cancellations):
            if not self.runs_stopped.is_set():
                await self._work()
            if self.phase is Phase.LOST:
                await self.heartbeat.stop()
            await self._until_settled()
        await self.heartbeat.stop()
        await self._leave()
        self._enter(Phase.ENDED)

    async def _work(self) -> None:
        """Claim and run jobs until the session winds down or is lost. Return once no jobs are running, except in threads."""
        async with self._running(self.runs.watch, self._register_surplus):
            async with self._running(self._keep_up, self._begin_schedules):
                # The fetcher is first, because a caller may be waiting for this worker.
                async with self._running(self.fetcher.run, self.runs.run, self._quarantine.run):
                    await self.until(Phase.FINISHING)
                    if self.phase is not Phase.LOST:
                        await self.fetcher.stop(min(LAST_CLAIM, self._options.stop_timeout))
                self._release_unstarted()
                await self._finish_runs()
            await self._use_grace()
        self.has_forced = self.has_forced or bool(self.runs.under_way)
        await self.runs.stop_all(LOST if self.phase is Phase.LOST else WINDING_DOWN)
        self.runs_stopped.set()

    async def _keep_up(self) -> None:
        await self.fetcher.has_tried.wait()  # a caller may be waiting for this worker, and maintenance would keep the server busy
        await self._maintenance.run()

    async def _register_surplus(self) -> None:
        while True:
            await asyncio.sleep(SURPLUS_INTERVAL)
            await self._registration.update(self.runs.surplus)

    async def _begin_schedules(self) -> None:
        await self._scheduler.begin(self.session.id)
        self.schedules_begun.set()

    def _release_unstarted(self) -> None:
        """If the session is lost, drop the leases whose runs have not started. Otherwise, hand them back, stop runs that wait for a child
        process, and begin the calls of batches that are gathering runs."""
        waiting = self._quarantine.take_all()
        if self.phase is Phase.LOST:
            self.lease_table.remove([holding.lease.claim for holding in waiting])
            self.runs.drop_reserve()
            return
        for holding in waiting:
            self.runs.give_back(holding)
        self.runs.give_back_reserve()
        self.runs.set_gathering(False)
        for holding in self.runs.under_way.values():
            if holding.started is None and holding.stop is not None:  # the run is waiting for a child process
                holding.ask_to_stop(WINDING_DOWN)

    async def _finish_runs(self) -> None:
        """Wait for the runs to end, except those that have ignored a request to stop for a whole grace period. Then set
        `all_ended`, and wait until the session winds down."""
        while self.phase is Phase.FINISHING and not self.all_ended.is_set():
            by = time.monotonic() - self._options.grace
            if any(holding.asked_at is None or holding.asked_at > by for holding in self.lease_table.all()):
                await self.lease_table.wait_for_change(STUCK_RUN_CHECK_INTERVAL)
            else:
                self.all_ended.set()
        self.all_ended.set()
        await self.until(Phase.WINDING_DOWN)

    async def _use_grace(self) -> None:
        ends_at = self._grace_ends_at or 0.0
        while self.runs.under_way and self.phase is Phase.WINDING_DOWN and (left := ends_at - time.monotonic()) > 0:
            await self.lease_table.wait_for_change(left)
        self._enter(Phase.STOPPING)

    async def _until_settled(self) -> None:
        """Wait for the answers to all settlements: up to `stop_timeout` seconds when winding down, or until the time set by `settle_by`."""
        if self._settles_until is None and self._grace_ends_at is not None:
            self._settles_until = time.monotonic() + self._options.stop_timeout
        while self.lease_table.unanswered() if self._settles_until is not None else len(self.lease_table):
            left = None if self._settles_until is None else self._settles_until - time.monotonic()
            if left is not None and left <= 0:
                break
            await self.lease_table.wait_for_change(left)
        if untold := tuple(holding.lease for holding in self.lease_table.unanswered() if holding.started is not None):
            self._events.emit(events.VerdictsLost(untold, "the broker did not answer before the worker ended"))

    async def _leave(self) -> None:
        """End the session in the store, which hands back the leases that are left. A lost session doesn't leave while its runs continue."""
        is_past, within = self._grace_ends_at is None, self._options.stop_timeout
        if is_past and self.runs.under_way:
            return
        if is_past and self._settles_until is not None:
            within = self._settles_until - time.monotonic()
        error: Exception | None = None
        with anyio.move_on_after(within) as waiting:
            try:
                await self._broker.beat(Beat(session=self.session.id, leaving=True))
            except SessionLost:  # the session has no leases any more
                pass
            except Exception as raised:
                error = raised
        if not is_past and (error is not None or waiting.cancelled_caught):
            self._events.emit(events.LeaveFailed(self.session.name, str(error or "no answer in time"), self.session.ttl))

    def finish(self) -> None:
        self._enter(Phase.FINISHING)

    def wind_down(self) -> None:
        """Stop claiming, let runs finish during the grace period, cancel and hand back the remaining ones, and leave."""
        if self.phase < Phase.WINDING_DOWN:
            self._grace_ends_at = time.monotonic() + self._options.grace
            self._enter(Phase.WINDING_DOWN)
            self._events.emit(events.WindingDown(len(self.runs.under_way), self._options.grace))

    def end_grace_period(self) -> None:
        """End the grace period now, if it has begun."""
        if self.phase is Phase.WINDING_DOWN:
            self._enter(Phase.STOPPING)

    def lose(self, why: str) -> None:
        """Give up the session and cancel its runs, because other workers may already run its jobs."""
        if self.phase < Phase.LOST:
            is_followed = self.phase is Phase.WORKING
            self.lease_table.close()  # no further runs start
            self._enter(Phase.LOST)
            self._events.emit(events.SessionEnded(self.session.name, why, is_followed))

    def fall_silent(self, why: str) -> None:
        """Stop sending heartbeats. The session is lost as soon as the event loop handles this. May be called from any thread."""
        self.heartbeat.fall_silent(why)

    def settle_by(self, instant: float) -> None:
        self._settles_until = instant
        self.lease_table.nudge()

    async def until(self, phase: Phase) -> None:
        """Wait until the session has reached this phase or a later one."""
        while self.phase < phase:
            self._moved.clear()
            await self._moved.wait()

    def _enter(self, phase: Phase) -> None:
        self.phase = max(phase, self.phase)
        self._moved.set()
        self.lease_table.nudge()

    @property
    def is_over(self) -> bool:
        return self.phase >= Phase.WINDING_DOWN

    def take(self, leases: Sequence[Lease], claimed_at: float) -> None:
        """Start claimed leases. Quarantine those of jobs that have crashed before; if there are any, hand back leases that find no slot."""
        if self.phase >= Phase.WINDING_DOWN:
            self.runs.refuse(leases, claimed_at)
            return
        if leases:
            self._maintenance.is_at_rest = False
            number, leases = len(leases), self.runs.without_paused(leases, claimed_at)
            if len(leases) < number and time.monotonic() - self._parked_at > PARKED_CHECK_INTERVAL:
                self._parked_at = time.monotonic()
                self.heartbeat.beat_now()  # to learn whether the pause is over
        for lease in leases:
            if lease.hand_backs and _RULES.hand_back_wait(lease.hand_backs):
                self._events.emit(events.HandedBackOften(lease))
        quarantine = [lease for lease in leases if lease.crashes and lease.poison is None]
        self.runs.add([lease for lease in leases if lease not in quarantine] if quarantine else leases, claimed_at)
        if quarantine:
            self.runs.begin_waiting()
            self.runs.give_back_reserve()
            for lease in quarantine:
                self._quarantine.add(lease, claimed_at)

    def apply_answer(self, answer: BeatAnswer, asked_at: float) -> None:
        self.runs.pause(answer.paused_jobs)
        if answer.work_hint is not None:
            self.fetcher.apply_work_hint(answer.work_hint, asked_at)
            self._maintenance.apply_work_hint(answer.work_hint, asked_at)
        for claim in answer.stopping:
            if (holding := self.lease_table.get(claim)) is not None:
                self.runs.ask_to_stop(holding, CANCELLED)
        for claim in answer.lost:
            # Ignored if the run is being settled, or was completed in a transaction: that ended the lease, and an answer follows.
            if (holding := self.lease_table.get(claim)) is not None and not holding.is_offered and holding.completed is None:
                self._events.emit(events.LeaseRevoked(holding.lease))
                self.runs.ask_to_stop(holding, LOST)
                self.lease_table.remove([claim])

    async def _watch_cancellations(self) -> None:
        """Send a heartbeat whenever a nudge arrives, because the answer names the runs to stop."""
        with self._broker.listen([topics.session(self.session.id)]) as waiter:
            while True:
                await waiter.wait()
                self.heartbeat.beat_now()
