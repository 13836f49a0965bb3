"""Decides when a session's leases start to run, and manages the runs until they are settled."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from taskflow.app.events import Event, Events
from taskflow.broker.tasks import started
from taskflow.model.envelope import Lease
from taskflow.model.verdict import Cancelled, Discarded, Failed, HandedBack, Settlement, Verdict
from taskflow.worker.events import CompletionRolledBack, QuarantineStarted, RunEnded, StillRunning, VerdictIgnored, VerdictRejected
from taskflow.worker.executor import CANCELLED, Executor
from taskflow.worker.lease_table import HeldLease, LeaseTable
from taskflow.worker.options import WorkerOptions
from taskflow.worker.settler import Settler
from taskflow.worker.thread_pool import ThreadPool

PORTION: Final = 0.002  # maximum seconds to spend on starting jobs before the event loop runs other tasks
RESERVE_TTL: Final = 0.1  # seconds that a lease may wait in the reserve before it is handed back, so that another worker can start the job
AHEAD: Final = 3
"""The reserve, and the leases whose settlements have not been answered, are each limited to this
many times the slots. Claiming, running and settling jobs in cycles of 200 costs less per job than in
cycles of 100, mostly in the store. In longer cycles, the worker and the store wait too long for each other."""

SLOW: Final = 0.5

REMINDER_FACTOR: Final = 10  # a run that does not stop is reported again each time its delay has grown by this factor
MIN_CHECK_INTERVAL: Final = 0.05
MAX_CHECK_INTERVAL: Final = 5.0
CUT_OFF_TIMEOUT: Final = 1.0  # seconds to wait for runs to end after they have been cut off
RESERVE_WINDOW: Final = 0.02
"""Seconds within which a lease in the reserve should start. While the median run of some queue
takes longer, there is no reserve, because another worker could start the jobs sooner."""
MEASURED_OVER: Final = 0.01  # seconds for which ended runs are counted, unless `ENDS_NEEDED` runs end sooner
ENDS_NEEDED: Final = 50
MOMENT: Final = 0.001  # minimum seconds for a measurement if `ENDS_NEEDED` runs have ended, so that the claim after a burst is large enough
# Limits how far a queue's history can lean towards short or long runs: this many more runs of one kind outweigh all earlier ones.
HISTORY_CAP: Final = 16
# If no run in a queue ends for this many seconds plus the duration of a long run, the queue is ignored, because it may be out of use.
SLOW_TTL: Final = 60.0


class Runs:
    """Gives each run a slot, and holds a small reserve of leases so that no slot is idle during a round trip.

    The reserve is limited to the number of runs expected to end within 20 ms, and to `AHEAD` times the slots. For unanswered settlements,
    the limit is the same, or the number of slots if that's higher. While some queue's jobs usually take over 20 ms, there's no reserve."""

    def __init__(
        self, options: WorkerOptions, threads: ThreadPool, lease_table: LeaseTable, executor: Executor, settler: Settler, events: Events
    ) -> None:
        self._slots = options.concurrency
        self._stop_timeout = options.stop_timeout
        self._threads = threads
        self.lease_table = lease_table
        self._executor = executor
        self._settler = settler
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._prefetch = Prefetch(time.monotonic())
        self._ahead = 0
        self._reserve: deque[HeldLease] = deque()
        self._paused = frozenset[str]()
        self._fills_batches = True
        self.under_way: dict[asyncio.Task[None], HeldLease] = {}
        self.slow: tuple[HeldLease, float] | None = None
        """The last run of `SLOW` seconds or more, and when it ended. That run may explain a stall that is noticed later."""

    @property
    def free(self) -> int:
        """The number of slots in which a run may start now."""
        unanswered = len(self.lease_table) - len(self._reserve) - self.surplus - self._slots
        return max(0, min(self._empty, max(self._slots, self._ahead) - unanswered))

    @property
    def _empty(self) -> int:
        """The number of slots without a run. An abandoned plain function occupies its slot until it returns."""
        return self._slots - self._threads.left_behind - len(self.under_way) + self.surplus if self.lease_table.is_open else 0

    @property
    def surplus(self) -> int:
        """The number of runs that need no slot, because another run of the same batch has one."""
        return 0 if self._executor.batches is None else self._executor.batches.surplus

    @property
    def left_behind(self) -> int:
        return self._threads.left_behind

    @property
    def is_stuck(self) -> bool:
        """True if every slot is occupied by an abandoned function."""
        return self._threads.left_behind >= self._slots

    def room(self) -> int:
        """Return how many leases to claim. A half-empty reserve is refilled, to save round trips. A full worker still fills batches."""
        if not self.lease_table.is_open:
            return 0
        self._look_ahead()
        idle, reserve = self.free - len(self._reserve), self._ahead
        room = idle + reserve
        if idle <= 0 and self._fills_batches and not self._reserve and (batches := self._executor.batches) is not None and batches.wanted:
            return batches.wanted
        return room if idle > 0 or 2 * room >= max(1, reserve) else 0

    def _look_ahead(self) -> None:
        self._ahead = min(AHEAD * self._slots, self._prefetch.reserve(time.monotonic()))

    def add(self, leases: Iterable[Lease], claimed_at: float) -> None:
        """Add leases to the reserve. They start in order as slots become free."""
        self._reserve.extend([self.lease_table.add(lease, claimed_at) for lease in leases])
        self._fill_batches()
        self.lease_table.nudge()

    def _fill_batches(self) -> None:
        """Start each run in the reserve whose job is gathering a batch that has room."""
        if (batches := self._executor.batches) is not None and batches.wanted:
            for holding in list(self._reserve):
                if batches.gathers(self._executor.registry.get(holding.lease.envelope.job)):
                    self._reserve.remove(holding)
                    self.begin(holding)

    def pause(self, jobs: Iterable[str]) -> None:
        """Set the names of paused jobs. These jobs don't start, and those in the reserve are handed back."""
        self._paused = frozenset(jobs)
        for holding in [each for each in self._reserve if each.lease.envelope.job in self._paused]:
            self._reserve.remove(holding)
            self._park(holding)

    def without_paused(self, leases: Sequence[Lease], claimed_at: float) -> Sequence[Lease]:
        """Hand back the leases of paused jobs, and return the others."""
        if not self._paused:
            return leases
        for lease in leases:
            if lease.envelope.job in self._paused:
                self._park(self.lease_table.add(lease, claimed_at))
        return [lease for lease in leases if lease.envelope.job not in self._paused]

    def _park(self, holding: HeldLease) -> None:
        self._settler.offer(holding, settlement_of(holding.lease, HandedBack(counts=False, is_paused=True)))

    def give_back_reserve(self) -> None:
        while self._reserve:
            self.give_back(self._reserve.popleft())

    def give_back(self, holding: HeldLease) -> None:
        self._settler.offer(holding, settlement_of(holding.lease, HandedBack(counts=False)))

    def refuse(self, leases: Iterable[Lease], claimed_at: float) -> None:
        """Hand back leases that were claimed but can't be run."""
        for lease in leases:
            self.give_back(self.lease_table.add(lease, claimed_at))

    def set_gathering(self, gathers: bool) -> None:
        """Set whether batches wait for further jobs. If not, begin the calls of those that are gathering runs."""
        self._executor.gathers = gathers
        if (batches := self._executor.batches) is not None:
            batches.waits = gathers
            if not gathers:
                batches.begin_all()

    def drop_reserve(self) -> None:
        self.lease_table.remove([holding.lease.claim for holding in self._reserve])
        self._reserve.clear()

    def ask_to_stop(self, holding: HeldLease, why: str) -> None:
        """Ask the lease's run to stop. If the lease is still in the reserve, remove it, so that its run never starts, and settle it at once
        if its job was cancelled."""
        holding.ask_to_stop(why)
        if holding in self._reserve:
            self._reserve.remove(holding)
            if why == CANCELLED:
                self._settler.offer(holding, settlement_of(holding.lease, Cancelled(CANCELLED)))

    async def run(self) -> None:
        """Start leases from the reserve as slots become free, and hand the reserve back if it has waited too long for a slot.

        If the reserve waits for the store's answer to settlements instead, it's kept: a hand-back would be sent only after that answer."""
        while True:
            self._look_ahead()
            while self.free and self._reserve:
                self.begin_waiting()
                await asyncio.sleep(0)
            if self._reserve and self._empty <= 0 and time.monotonic() - self._reserve[0].taken_at > RESERVE_TTL:
                self.give_back_reserve()
                self._fills_batches = False  # otherwise, jobs ahead of the batch's in the queue would be claimed again at once
            await self.lease_table.wait_for_change(RESERVE_TTL if self._reserve else None)

    def begin_waiting(self) -> None:
        """Start leases from the reserve while slots are free, for at most `PORTION` seconds."""
        until = time.monotonic() + PORTION
        for _ in range(min(self.free, len(self._reserve))):
            self.begin(self._reserve.popleft())
            if time.monotonic() > until:
                break
        self._fill_batches()
        self.lease_table.nudge()

    def begin(self, holding: HeldLease) -> asyncio.Task[None]:
        task = started(self._loop, self._run(holding))
        if not task.done():
            self.under_way[task] = holding
            task.add_done_callback(self._record_end)
        return task

    async def _run(self, holding: HeldLease) -> None:
        settlement: Settlement | None = None
        try:
            settlement = await self._executor.run(holding)
        except GeneratorExit as closed:
            task = asyncio.current_task(self._loop)
            if task is not None and self.under_way.get(task) is holding:  # otherwise the loop is gone, and its coroutines are being closed
                settlement = self._executor.close(holding, closed)
        finally:
            self._end(holding, settlement or settlement_of(holding.lease, HandedBack()))  # a cancellation may bypass the executor

    def _end(self, holding: HeldLease, settlement: Settlement) -> None:
        lease, ran_for = holding.lease, settlement.ran_for
        if ran_for >= SLOW:
            self.slow = (holding, time.monotonic())
        try:
            self._events.emit(RunEnded(lease, settlement.verdict, ran_for))
        finally:  # an exit or a Ctrl-C in a subscriber must not lose the verdict
            if holding.raised is not None:
                holding.forget_raised()
            self._settler.offer(holding, settlement)
        self._prefetch.note(lease.envelope.queue, ran_for)

    def _record_end(self, task: asyncio.Task[None]) -> None:
        holding = self.under_way.pop(task)
        self._fills_batches = True
        if holding.started is None:  # other code has cancelled the task before its first step
            self._settler.offer(holding, settlement_of(holding.lease, HandedBack()))
        self.lease_table.nudge()

    async def stop_all(self, why: str) -> None:
        """Ask all runs to stop. After `stop_timeout` seconds, cut off the remaining ones, so that their jobs are handed back."""
        for holding in list(self.under_way.values()):
            holding.ask_to_stop(why)
        if self.under_way:
            await asyncio.wait(list(self.under_way), timeout=self._stop_timeout)
        for task, holding in list(self.under_way.items()):
            self._report_running(holding, time.monotonic())
            task.cancel()
        if self.under_way:
            await asyncio.wait(list(self.under_way), timeout=CUT_OFF_TIMEOUT)

    async def watch(self) -> None:
        """Report runs that don't stop in time, repeatedly. Each check also wakes the fetcher, so that the health checks stay current."""
        grace = max(MIN_CHECK_INTERVAL, self._stop_timeout)
        while True:
            await asyncio.sleep(min(MAX_CHECK_INTERVAL, grace))
            now = time.monotonic()
            for holding in self.under_way.values():
                if holding.asked_at is not None and now - holding.asked_at >= grace * REMINDER_FACTOR**holding.reminders:
                    holding.reminders += 1
                    self._report_running(holding, now)
            self.lease_table.nudge()

    def _report_running(self, holding: HeldLease, now: float) -> None:
        if holding.asked_at is not None and holding.why_stopped is not None:
            self._events.emit(StillRunning(holding.lease, now - holding.asked_at, holding.why_stopped))


def settlement_of(lease: Lease, verdict: Verdict) -> Settlement:
    """Return a settlement with only a verdict, for a run about which nothing else is known."""
    return Settlement(
        id=lease.envelope.id, epoch=lease.epoch, claim=lease.claim, verdict=verdict, key=lease.envelope.key, limits=lease.envelope.limits
    )


class Prefetch:
    """Measures how fast the runs of one session end and how long they take: this determines how many jobs the worker prefetches."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._ended = 0
        self._rate = 0.0
        self._bias: dict[str, int] = {}
        self._slow_until: dict[str, float] = {}
        self._now = now
        self._fades_at = now

    def note(self, queue: str, ran_for: float) -> None:
        self._ended += 1
        leaning = self._bias.get(queue, 0)
        if ran_for > RESERVE_WINDOW:
            self._lean(queue, min(HISTORY_CAP, leaning + 1), ran_for)
        elif leaning > -HISTORY_CAP:
            self._lean(queue, leaning - 1, ran_for)

    def reserve(self, now: float) -> int:
        """Return how many jobs are expected to start within `RESERVE_WINDOW` seconds; 0 while the median run of some queue takes longer."""
        self._now = now
        passed = now - self._since
        if passed >= MEASURED_OVER or (self._ended >= ENDS_NEEDED and passed >= MOMENT):
            self._rate = self._ended / passed
            self._since, self._ended = now, 0
        if self._slow_until and now >= self._fades_at:
            self._fades_at = now + SLOW_TTL / 60
            for queue in [queue for queue, until in self._slow_until.items() if until <= now]:
                del self._slow_until[queue], self._bias[queue]
        return 0 if self._slow_until else int(self._rate * RESERVE_WINDOW)

    def _lean(self, queue: str, leaning: int, ran_for: float) -> None:
        """Update a queue's bias. A bias above 0 means that most of the queue's recent runs were long."""
        self._bias[queue] = leaning
        if leaning > 0:
            self._slow_until[queue] = max(self._now + SLOW_TTL + ran_for, self._slow_until.get(queue, 0.0))
        else:
            self._slow_until.pop(queue, None)


class Trial(NamedTuple):
    """A plan for trying suspects, which are jobs that have crashed."""

    together: int  # the number of jobs that run at the same time
    probation: float  # seconds after which other jobs may start alongside them
    # Seconds to wait for earlier runs to end and for the store to take back other leases. Runs that continue after that share the risk
    until_alone: float


TRIALS: Final = {
    # This clears most of a hundred neighbours of the guilty job in seconds, because a job that kills its worker usually does so at once.
    1: Trial(10, 0.5, 2.0),
    # The job may run out of memory after a while.
    2: Trial(1, 10.0, 10.0),
}
LAST: Final = Trial(1, 300.0, 30.0)


class Quarantine:
    """Isolates jobs that have crashed from all others, so that a job that kills its worker doesn't end other runs each time.

    After a first crash, suspects run a few at a time; after further crashes, one by one. Before they start, the worker hands back all other
    leases and gives running jobs time to end. It claims nothing until the suspects have survived a period that grows with their crashes.
    Batches don't wait for further jobs meanwhile: a suspect that was gathered after that period would run beside the others."""

    def __init__(self, lease_table: LeaseTable, runs: Runs, events: Events) -> None:
        self._lease_table = lease_table
        self._runs = runs
        self._events = events
        self._waiting: list[HeldLease] = []
        self._chosen: list[HeldLease] = []
        self._has_some = asyncio.Event()

    def add(self, lease: Lease, claimed_at: float) -> None:
        self._waiting.append(self._lease_table.add(lease, claimed_at))
        self._lease_table.set_trial(True)
        self._has_some.set()

    def take_all(self) -> list[HeldLease]:
        """Remove and return the leases whose runs haven't started and that are still held."""
        taken = self._held([*self._chosen, *self._waiting])
        self._chosen, self._waiting = [], []
        return taken

    async def run(self) -> None:
        while True:
            await self._has_some.wait()
            if (trial := self._choose()) is not None:
                self._runs.set_gathering(False)
                alone_by = time.monotonic() + trial.until_alone
                while (self._runs.under_way or len(self._lease_table) > len(self._chosen)) and (left := alone_by - time.monotonic()) > 0:
                    await self._lease_table.wait_for_change(left)
                chosen, self._chosen = self._held(self._chosen), []
                for holding in chosen:
                    self._events.emit(QuarantineStarted(holding.lease, trial.probation))
                if runs := [self._runs.begin(holding) for holding in chosen]:
                    await asyncio.wait(runs, timeout=trial.probation)
            if not self._waiting:
                self._has_some.clear()
                self._runs.set_gathering(True)
                self._lease_table.set_trial(False)

    def _choose(self) -> Trial | None:
        """Choose leases to try, and hand back the others. Return the plan, or None if there is none. A restart of `run` chooses again."""
        waiting = sorted(self.take_all(), key=_crashes)
        if not waiting:
            return None
        trial = TRIALS.get(_crashes(waiting[0]), LAST)
        self._chosen = [holding for holding in waiting[: trial.together] if _crashes(holding) == _crashes(waiting[0])]
        for holding in waiting[len(self._chosen) :]:
            self._runs.give_back(holding)
        return trial

    def _held(self, waiting: list[HeldLease]) -> list[HeldLease]:
        """Return the leases that are still held; the others were lost."""
        return [holding for holding in waiting if self._lease_table.holds(holding)]


def _crashes(holding: HeldLease) -> int:
    return holding.lease.crashes


_FAILURES: Final = (Failed, Discarded)


class RunCounts:
    """Counts a worker's runs from its events. `ended` counts the runs that ended their job, and `failed` those whose job ended as FAILED.
    `set_aside` counts jobs that a drain found FAILED because they are poison or their stored values cannot be read."""

    def __init__(self) -> None:
        self.runs = self.ended = self.failed = self.set_aside = 0

    def __call__(self, event: Event) -> None:
        if type(event) is RunEnded:  # by far the most frequent event
            self.runs += 1
            self.ended += event.verdict.is_final
            self.failed += isinstance(event.verdict, _FAILURES)
        elif isinstance(event, VerdictIgnored | VerdictRejected | CompletionRolledBack):
            self._count(event.verdict, -1)
            if not isinstance(event, VerdictIgnored):
                self._count(event.instead, 1)

    def _count(self, verdict: Verdict, times: int) -> None:
        self.ended += times * verdict.is_final
        self.failed += times * isinstance(verdict, _FAILURES)
