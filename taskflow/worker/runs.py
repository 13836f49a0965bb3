"""Decides when the leases of a session start, and manages their runs until they are settled."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from typing import Final

from taskflow.broker.eager_tasks import started
from taskflow.model.envelope import Lease
from taskflow.model.verdict import Cancelled, HandedBack, Settlement, Verdict
from taskflow.worker.events import Events, RunEnded, StillRunning
from taskflow.worker.executor import CANCELLED, Executor
from taskflow.worker.lease_table import HeldLease, LeaseTable
from taskflow.worker.options import WorkerOptions
from taskflow.worker.prefetch import Prefetch
from taskflow.worker.settler import Settler
from taskflow.worker.thread_pool import ThreadPool

PORTION: Final = 0.002
"""Maximum seconds to spend on starting jobs before the event loop runs other tasks."""

RESERVED_FOR: Final = 0.1
"""Seconds that a lease may wait in the reserve before it is handed back, so that another worker can start the job."""

AHEAD: Final = 3
"""The reserve, and the leases whose settlements have not been answered, are each limited to this
many times the slots. Claiming, running and settling jobs in cycles of 200 costs less per job than in
cycles of 100, mostly in the store. In longer cycles, the worker and the store wait too long for each other."""

SLOW: Final = 0.5

REMINDER_FACTOR: Final = 10
"""A run that does not stop is reported again each time its delay has grown by this factor."""

SHORTEST_LOOK: Final = 0.05
LONGEST_LOOK: Final = 5.0
CUT_OFF_WITHIN: Final = 1.0
"""Seconds to wait for runs to end after they have been cut off."""


class Runs:
    """Gives each run a slot, and keeps a small reserve of leases so that no slot
    stands idle during a round trip. The next claim is made while jobs run and settle.

    At most `slots` jobs run at once, but the worker may hold more leases, all of which are affected if it is killed. The others are the
    reserve, and leases whose settlements have not been answered yet. The reserve is at most the number of runs expected to end within 20
    ms, and never more than `AHEAD` times `slots`. The same limit applies to unanswered settlements, except that `slots` of them are always
    allowed. While the jobs of some queue typically take longer than 20 ms, there is no reserve, so at most twice `slots` leases are held.
    """

    def __init__(
        self, options: WorkerOptions, threads: ThreadPool, lease_table: LeaseTable, executor: Executor, settler: Settler, events: Events
    ) -> None:
        self._slots = options.concurrency
        self._stop_timeout = options.stop_timeout
        self._threads = threads
        self._lease_table = lease_table
        self._executor = executor
        self._settler = settler
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._prefetch = Prefetch(time.monotonic())
        self._ahead = 0
        self._reserve: deque[HeldLease] = deque()
        self.under_way: dict[asyncio.Task[None], HeldLease] = {}
        self.slow: tuple[HeldLease, float] | None = None
        """The last slow run, and when it ended. It may explain a stall that is noticed later."""

    # --- how many leases there is room for --------------------------------------------------------------

    @property
    def free(self) -> int:
        """The number of slots in which a run may start now. May be read from any thread.

        A plain function that was abandoned occupies its slot until its thread ends, even if the worker has registered again.
        """
        if not self._lease_table.is_open:
            return 0
        unanswered = len(self._lease_table) - len(self._reserve) - self._slots
        most = max(self._slots, self._ahead)
        return max(0, min(self._slots - self._threads.left_behind - len(self.under_way), most - unanswered))

    @property
    def left_behind(self) -> int:
        return self._threads.left_behind

    @property
    def is_stuck(self) -> bool:
        """True if every slot is occupied by an abandoned function."""
        return self._threads.left_behind >= self._slots

    def room(self) -> int:
        """Return the number of leases to claim now. Free slots are filled at once. The reserve is
        refilled only when at least half of it is used, so that each round trip is worthwhile."""
        if not self._lease_table.is_open:
            return 0
        self._look_ahead()
        idle, reserve = self.free - len(self._reserve), self._ahead
        room = idle + reserve
        return room if idle > 0 or 2 * room >= max(1, reserve) else 0

    def _look_ahead(self) -> None:
        """Set the size of the reserve to an estimate of how many runs will end soon."""
        self._ahead = min(AHEAD * self._slots, self._prefetch.reserve(time.monotonic()))

    # --- leases that wait -------------------------------------------------------------------------------

    def add(self, leases: Iterable[Lease], claimed_at: float) -> None:
        """Add leases to the reserve. They start in order as slots become free."""
        self._reserve.extend([self._lease_table.add(lease, claimed_at) for lease in leases])
        self._lease_table.nudge()

    def give_back_reserve(self) -> None:
        """Hand back the leases in the reserve so that other workers can run them. This does not add to the jobs' hand-backs."""
        while self._reserve:
            self.give_back(self._reserve.popleft())

    def give_back(self, holding: HeldLease) -> None:
        self._settler.offer(holding, settlement_of(holding.lease, HandedBack(counts=False)))

    def drop_reserve(self) -> None:
        """Forget the leases in the reserve, because their jobs already belong to other workers."""
        self._lease_table.remove([holding.lease.claim for holding in self._reserve])
        self._reserve.clear()

    def ask_to_stop(self, holding: HeldLease, why: str) -> None:
        """Stop the lease's run. A lease in the reserve will never start; if its job was cancelled, it is settled at once."""
        holding.ask_to_stop(why)
        if holding in self._reserve:
            self._reserve.remove(holding)
            if why == CANCELLED:
                self._settler.offer(holding, settlement_of(holding.lease, Cancelled(CANCELLED)))

    async def run(self) -> None:
        """Start leases from the reserve as slots become free, and hand the reserve back if it has waited too long."""
        while True:
            self._look_ahead()
            while self.free and self._reserve:
                self.begin_waiting()
                await asyncio.sleep(0)
            if self._reserve and time.monotonic() - self._reserve[0].taken_at > RESERVED_FOR:
                self.give_back_reserve()
            await self._lease_table.wait_for_change(RESERVED_FOR if self._reserve else None)

    def begin_waiting(self) -> None:
        """Start leases from the reserve while slots are free, for at most `PORTION` seconds."""
        until = time.monotonic() + PORTION
        for _ in range(min(self.free, len(self._reserve))):
            self.begin(self._reserve.popleft())
            if time.monotonic() > until:
                break
        self._lease_table.nudge()

    # --- leases that run --------------------------------------------------------------------------------

    def begin(self, holding: HeldLease) -> asyncio.Task[None]:
        task = started(self._loop, self._run(holding))
        if not task.done():
            self.under_way[task] = holding
            task.add_done_callback(self._note_end)
        return task

    async def _run(self, holding: HeldLease) -> None:
        settlement: Settlement | None = None
        try:
            settlement = await self._executor.run(holding)
        except GeneratorExit as closed:
            task = asyncio.current_task(self._loop)
            if task is not None and self.under_way.get(task) is holding:  # otherwise the loop is gone, and its coroutines are closed
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

    def _note_end(self, task: asyncio.Task[None]) -> None:
        holding = self.under_way.pop(task)
        if holding.started is None:  # other code has cancelled it before its first step
            self._settler.offer(holding, settlement_of(holding.lease, HandedBack()))
        self._lease_table.nudge()

    # --- runs that were asked to stop -------------------------------------------------------------------

    async def stop_all(self, why: str) -> None:
        """Ask all runs to stop. After `stop_timeout` seconds, cut off those that remain, so that their jobs are handed back.

        A function in a thread continues until it returns.
        """
        for holding in list(self.under_way.values()):
            holding.ask_to_stop(why)
        await self._until_ended(self._stop_timeout)
        for holding in self.under_way.values():
            self._report_running(holding, time.monotonic())
        for task in list(self.under_way):
            task.cancel()
        await self._until_ended(CUT_OFF_WITHIN)

    async def _until_ended(self, timeout: float) -> None:
        if self.under_way:
            await asyncio.wait(list(self.under_way), timeout=timeout)

    async def watch(self) -> None:
        """Report runs that are still under way `stop_timeout` seconds after they were asked to stop, and again at growing intervals.

        Otherwise a thread, or a job that swallows its cancellation, would go unnoticed. Each
        check also makes the fetcher look for free slots, so that the health checks stay up to date.
        """
        grace = max(SHORTEST_LOOK, self._stop_timeout)
        while True:
            await asyncio.sleep(min(LONGEST_LOOK, grace))
            now = time.monotonic()
            for holding in self.under_way.values():
                if holding.asked_at is not None and now - holding.asked_at >= grace * REMINDER_FACTOR**holding.reminders:
                    holding.reminders += 1
                    self._report_running(holding, now)
            self._lease_table.nudge()

    def _report_running(self, holding: HeldLease, now: float) -> None:
        if holding.asked_at is not None and holding.why_stopped is not None:
            self._events.emit(StillRunning(holding.lease, now - holding.asked_at, holding.why_stopped))


def settlement_of(lease: Lease, verdict: Verdict) -> Settlement:
    """Return a settlement with only a verdict, for a run that never started or about which nothing is known."""
    return Settlement(id=lease.envelope.id, epoch=lease.epoch, claim=lease.claim, verdict=verdict, key=lease.envelope.key)
