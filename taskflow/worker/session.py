"""One session of a worker, from its registration to its end."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from taskflow.app.context import JobContext
from taskflow.broker import topics
from taskflow.broker.protocol import Broker
from taskflow.model.envelope import ClaimId, Lease
from taskflow.model.ids import id_text
from taskflow.model.rules import Rules
from taskflow.model.seams import Seams
from taskflow.model.session import BeatAnswer, Session
from taskflow.worker.events import (
    Broken,
    BrokerTrouble,
    Events,
    HandedBackOften,
    LeaseLost,
    PartFailed,
    ReportDropped,
    SessionEnded,
    SessionOpened,
    WindingDown,
)
from taskflow.worker.executor import CANCELLED, LOST, WINDING_DOWN, Executor
from taskflow.worker.fetcher import Fetcher, LeaseSink
from taskflow.worker.keeper import BeatListeners, Keeper
from taskflow.worker.lease_table import HeldLease, LeaseTable
from taskflow.worker.leaving import Leaving
from taskflow.worker.options import WorkerOptions
from taskflow.worker.phase import Phase
from taskflow.worker.quarantine import Quarantine
from taskflow.worker.runs import Runs
from taskflow.worker.settler import Settler
from taskflow.worker.task_supervisor import TaskSupervisor
from taskflow.worker.threads import Threads
from taskflow.worker.upkeep import Upkeep
from taskflow.worker.vitals import Signs
from taskflow.worker.watch import Watch, tell_of

LAST_CLAIM: Final = 1.0
"""Seconds that the answer of a claim is waited for when the worker winds down."""

DEAF_LOOK: Final = 1.0
"""Seconds between two looks at runs that do not end when they are asked to."""

_RULES: Final = Rules()


class WorkerSession:
    """One session. After it a worker that goes on begins another.

    `on_lost` is called at most once, in the loop, when the session is dead while the worker goes on.
    """

    def __init__(
        self,
        broker: Broker,
        executor: Executor,
        threads: Threads,
        options: WorkerOptions,
        seams: Seams,
        events: Events,
        on_lost: Callable[[], None],
    ) -> None:
        self._broker = broker
        self._options = options
        self._seams = seams
        self._events = events
        self._on_lost = on_lost
        self.session = _a_session(options)
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._lease_table = LeaseTable()
        self._settler = Settler(broker, self._lease_table, events)
        self._runs = Runs(options.concurrency, threads, self._lease_table, executor, self._settler, events)
        self._fetcher = Fetcher(broker, self.session.id, options.queues, events, self._sink(), seams.chance)
        self._upkeep = Upkeep(broker, seams.chance, events, on_ready=self._fetcher.look)
        self._quarantine = Quarantine(self._lease_table, self._runs.begin, self._runs.under_way.keys, self._runs.give_back, events)
        self._watch = Watch(self._runs.under_way.values, options.last_words, events, self._lease_table.nudge)
        self._task_supervisor = TaskSupervisor(
            on_end=self._lease_table.nudge,
            on_failed=lambda part, error, pause: events.tell(PartFailed(part, error, pause)),
            chance=seams.chance,
        )
        self._keeper: Keeper | None = None
        self._phase = Phase.WORKING
        self._grace_ends_at: float | None = None
        self._has_forced = False
        self._leaving = Leaving(broker, self.session, self._lease_table, events, options.last_words)
        self._made_at = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._made_at

    @property
    def slow(self) -> tuple[HeldLease, float] | None:
        """The last run that took a while, and when it ended."""
        return self._runs.slow

    def holding_of(self, run: JobContext) -> HeldLease | None:
        """Of a run of this life, as long as its lease is held; from any thread."""
        for holding in self._lease_table.all():
            if holding.lease.epoch == run.epoch and id_text(holding.lease.envelope.id) == run.job_id:
                return holding
        return None

    def signs(self) -> Signs:
        """From any thread."""
        keeper = self._keeper
        return Signs(
            running=len(self._runs.under_way),
            free=self._runs.free,
            beaten_at=keeper.beaten_at if keeper else None,
            tried_at=keeper.tried_at if keeper else self._made_at,
            claimed_at=self._fetcher.answered_at,
            full_at=self._fetcher.full_at,
            settling_since=self._settler.waiting_since,
            left_behind=self._runs.left_behind,
            is_stuck=self._runs.is_stuck,
            is_over=self._is_over,
        )

    def fall_silent(self, why: str) -> None:
        """From any thread: beats no more, and is lost as soon as the loop hears of it."""
        if self._keeper is not None:
            self._keeper.fall_silent()
        self._in_loop(self._lose, why)

    def look_again(self) -> None:
        """There may be room for more than there was."""
        self._lease_table.nudge()

    async def begin(self) -> None:
        """Raises what the broker raises when it cannot be reached."""
        await self._broker.register(self.session)
        self._events.tell(SessionOpened(self.session.name, self.session.id))
        self._keeper = Keeper(
            self._broker.sibling(),
            self.session,
            self._lease_table,
            seen=lambda: self._fetcher.request,
            beat_listeners=self._beat_listeners(),
            start_thread=self._seams.start_thread,
        )
        self._lease_table.on_news = self._keeper.beat_soon
        self._keeper.start()
        duties = (
            self._fetcher.run,  # first of all: who has waited for this worker
            self._runs.run,
            self._settler.run,
            self._settler.run_held_up,
            self._upkeep.run,
            self._quarantine.run,
            self._watch.run,
            self._hear_of_stops,
        )
        for duty in duties:
            self._task_supervisor.attend(duty)

    def _sink(self) -> LeaseSink:
        return LeaseSink(
            room=self._runs.room,
            wait=self._lease_table.wait_for_change,
            take=self._take,
            begin=self._runs.begin_waiting,
            give_back=self._give_back,
            too_old=self._options.ttl / 4,  # half the ghost time, which is half the ttl
            on_lost=self._lose,
        )

    def _beat_listeners(self) -> BeatListeners:
        return BeatListeners(
            answer=lambda answer, asked_at: self._in_loop(self._heed, answer, asked_at),
            lost=lambda why: self._in_loop(self._lose, why),
            trouble=lambda why, times: self._in_loop(self._events.tell, BrokerTrouble("a beat", why, times)),
            broken=lambda why: self._events.tell(Broken(why)),
            dropped=lambda claim, why: self._in_loop(self._note_dropped, claim, why),
        )

    @property
    def _is_over(self) -> bool:
        return self._phase >= Phase.WINDING_DOWN

    async def finish(self) -> bool:
        """Claim nothing more, and let what runs end, however long that takes, but for what was asked to stop longer ago than the
        grace time. Whether the broker knows all of it: not when the session is lost.

        The keeper beats, and upkeep is done, until the worker winds down.
        """
        self._enter(Phase.FINISHING)
        await self._end_fetching()
        await self._task_supervisor.dismiss(self._quarantine.run, self._runs.run)
        self._give_back_what_waits()
        while len(self._lease_table) and not self._is_over and not self._lease_table.do_not_end(time.monotonic() - self._options.grace):
            await self._lease_table.wait_for_change(DEAF_LOOK)
        return not self._is_over

    async def wind_down(self, hurry: Callable[[], bool]) -> bool:
        """Stop claiming, let runs finish for the grace time, cancel and hand back the rest, and leave.

        `look_again` ends the grace time early if `hurry()` is then true.

        Return True if every run ended by itself. After a cancellation it may be called again and continues where it was.
        """
        self._enter(Phase.WINDING_DOWN)
        await self._task_supervisor.dismiss(self._upkeep.run, self._quarantine.run, self._runs.run)
        self._give_back_what_waits()
        if self._grace_ends_at is None:
            self._grace_ends_at = time.monotonic() + self._options.grace
            self._events.tell(WindingDown(len(self._runs.under_way), self._options.grace))
        await self._end_fetching()
        await self._until_runs_end(self._grace_ends_at, hurry)
        self._has_forced = self._has_forced or bool(self._runs.under_way)
        await self._stop_runs(LOST if self._phase is Phase.LOST else WINDING_DOWN)
        await self._settle_rest()
        await self._leaving.leave()
        return not self._has_forced

    async def abandon(self) -> None:
        """Cancel the runs and stop the heartbeat: the session is dead, or must be considered dead."""
        self._enter(Phase.LOST)
        await self._task_supervisor.dismiss(self._upkeep.run, self._fetcher.run, self._quarantine.run, self._runs.run)
        for holding in self._quarantine.take_all():
            self._lease_table.remove(holding.lease.claim)
        self._runs.drop_reserve()
        await self._stop_runs(LOST)
        await self._end_beating()

    async def settle_verdicts(self) -> None:
        """After `abandon`: offer the verdicts of runs that had ended until the store answers. It decides whether they still count."""
        while len(self._lease_table):
            await self._lease_table.wait_for_change()
        await self._end_settling()
        if not self._runs.under_way:
            await self._leaving.give_up()

    async def end(self, patience: float) -> None:
        """After `abandon`, when the worker ends: wait at most `patience` seconds for the store to answer the settlements.

        Runs are not waited for. If the store does not answer, it learns of the rest when the session lapses.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._leaving.until_answered()
                if not self._runs.under_way:
                    await self._leaving.give_up()
        self._leaving.tell_of_untold()
        await self._end_settling()

    async def _end_settling(self) -> None:
        await self._task_supervisor.dismiss(self._settler.run, self._settler.run_held_up)

    # --- runs ------------------------------------------------------------------------------------------

    def _take(self, leases: Sequence[Lease], claimed_at: float) -> None:
        """Begin the other runs before those in quarantine; nothing waits while these are tried."""
        if self._is_over:
            self._give_back(leases, claimed_at)
            return
        if leases:
            self._upkeep.note_work()
        for lease in leases:
            if lease.hand_backs and _RULES.hand_back_wait(lease.hand_backs):
                self._events.tell(HandedBackOften(lease))
        self._runs.add([lease for lease in leases if not lease.crashes], claimed_at)
        if quarantine := [lease for lease in leases if lease.crashes]:
            self._runs.begin_waiting()
            self._runs.give_back_reserve()
            for lease in quarantine:
                self._quarantine.add(lease, claimed_at)

    def _give_back(self, leases: Sequence[Lease], claimed_at: float) -> None:
        for lease in leases:
            self._runs.give_back(self._lease_table.add(lease, claimed_at))

    def _give_back_what_waits(self) -> None:
        for holding in self._quarantine.take_all():
            self._runs.give_back(holding)
        self._runs.give_back_reserve()
        for holding in self._runs.under_way.values():
            if holding.started is None and holding.stop is not None:  # it waits for a child process still, and need not wait here
                holding.ask_to_stop(WINDING_DOWN)

    async def _end_fetching(self) -> None:
        """A claim that is under way is answered in a moment, or never: what it brings goes back, which then need not count."""
        self._fetcher.stop()
        self._lease_table.nudge()
        if (fetching := self._task_supervisor.at(self._fetcher.run)) is not None:
            await asyncio.wait([fetching], timeout=min(LAST_CLAIM, self._options.last_words))
        await self._task_supervisor.dismiss(self._fetcher.run)

    async def _until_runs_end(self, give_up_at: float, hurry: Callable[[], bool]) -> None:
        while self._runs.under_way and not hurry() and self._phase is not Phase.LOST and (left := give_up_at - time.monotonic()) > 0:
            await self._lease_table.wait_for_change(left)

    async def _stop_runs(self, why: str) -> None:
        """Ask; after a while cut off what has not reacted, so that its job is given back. A thread goes on until it ends."""
        await self._task_supervisor.dismiss(self._watch.run)
        runs = self._runs.under_way
        for holding in list(runs.values()):
            holding.ask_to_stop(why)
        if runs:
            await asyncio.wait(list(runs), timeout=self._options.last_words)
        for holding in runs.values():
            tell_of(holding, time.monotonic(), self._events)
        for task in list(runs):
            task.cancel()
        if runs:
            await asyncio.wait(list(runs), timeout=1.0)

    async def _settle_rest(self) -> None:
        """Bounded: what the store does not answer now, it learns from the lapse of the session.

        What runs still, against its cancellation, is not waited for: the session's leave hands it back.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.last_words):
                await self._leaving.until_answered()
        self._leaving.tell_of_untold()
        await self._end_settling()
        await self._end_beating()

    async def _end_beating(self) -> None:
        await self._task_supervisor.dismiss(self._hear_of_stops)
        if self._keeper is not None:
            await self._keeper.stop()

    # --- what the keeper hears, told in the loop --------------------------------------------------------

    async def _hear_of_stops(self) -> None:
        """What was asked to stop the next beat tells: it comes at once then."""
        with self._broker.listen([topics.session(self.session.id)]) as nudges:
            while True:
                await nudges.wait()
                if self._keeper is not None:
                    self._keeper.beat_now()

    def _heed(self, answer: BeatAnswer, asked_at: float) -> None:
        if answer.outlook is not None:
            self._fetcher.heed(answer.outlook, asked_at)
            self._upkeep.heed(answer.outlook, asked_at)
        for claim in answer.stopping:
            if (holding := self._lease_table.get(claim)) is not None:
                self._runs.ask_to_stop(holding, CANCELLED)
        for claim in answer.lost:
            # Not when its settlement is under way: that took it off the session, and its answer follows.
            if (holding := self._lease_table.get(claim)) is not None and not holding.is_offered:
                self._events.tell(LeaseLost(holding.lease))
                self._runs.ask_to_stop(holding, LOST)
                self._lease_table.remove(claim)

    def _lose(self, why: str) -> None:
        if (phase := self._phase) is Phase.LOST or self._leaving.has_left:
            return
        self._enter(Phase.LOST)
        is_followed = phase < Phase.WINDING_DOWN
        self._events.tell(SessionEnded(self.session.name, why, is_followed))
        if is_followed:  # else `wind_down` goes on, and stops the runs now: others may run these jobs already
            self._on_lost()

    def _enter(self, phase: Phase) -> None:
        if phase > self._phase:
            self._phase = phase
        if self._phase is Phase.LOST:
            self._lease_table.is_over = True  # nothing begins any more
            self._lease_table.nudge()

    def _note_dropped(self, claim: ClaimId, why: str) -> None:
        if (holding := self._lease_table.get(claim)) is not None:
            self._events.tell(ReportDropped(holding.lease, why))

    def _in_loop(self, function: Callable[..., None], *args: Any) -> None:
        """With the context variables of where this life was made, not the caller's: another life may come of it, and that one's runs."""
        try:
            self._loop.call_soon_threadsafe(function, *args, context=self._context)
        except RuntimeError:  # the loop is closed: the worker is gone
            return


def _a_session(options: WorkerOptions) -> Session:
    name = f"{socket.gethostname()}:{os.getpid()}"
    queues = options.queues.names
    return Session(id=secrets.token_bytes(16), name=name, ttl=options.ttl, queues=queues, concurrency=options.concurrency)
