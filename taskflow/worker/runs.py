"""The runs of a session: which lease begins when, from its claim to the offer of its settlement."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from typing import Final

from taskflow.broker.eager_tasks import started
from taskflow.model.envelope import Lease
from taskflow.model.verdict import Cancelled, HandedBack, Settlement, Verdict
from taskflow.worker.events import Ended, Events
from taskflow.worker.executor import CANCELLED, Executor
from taskflow.worker.lease_table import HeldLease, LeaseTable
from taskflow.worker.pace import Pace
from taskflow.worker.settler import Settler
from taskflow.worker.threads import Threads

PORTION: Final = 0.002
"""Seconds for which jobs are begun one after the other before the loop turns to what else there is."""

PATIENCE: Final = 0.1
"""Seconds that a lease waits in reserve at most: then it goes back, since another worker could begin it."""

AHEAD: Final = 3
"""Times as many as there are slots are held in reserve at most, or await their answer. A cycle of two hundred costs less by the job than
one of a hundred, at the store above all; longer ones let worker and store wait for each other more than they save."""

SLOW: Final = 0.5


class Runs:
    """A slot for each run, and a small reserve, so that no slot waits for a round trip: the next claim is under way while these run and
    the last ones settle.

    `slots` bounds what runs at one time. What a kill of the worker puts at risk is more: what has ended and waits for its settlement's
    answer, and the reserve. Each of the two is as many as end within 20 ms, as things go, and not more than `AHEAD` times `slots`; what
    has ended may always be as many as `slots`. With jobs that take longer than 20 ms, then, never more than twice `slots` are leased.
    """

    def __init__(self, slots: int, threads: Threads, lease_table: LeaseTable, executor: Executor, settler: Settler, events: Events) -> None:
        self._slots = slots
        self._threads = threads
        self._lease_table = lease_table
        self._executor = executor
        self._settler = settler
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._pace = Pace(time.monotonic())
        self._ahead = 0
        self._reserve: deque[HeldLease] = deque()
        self.under_way: dict[asyncio.Task[None], HeldLease] = {}
        self.slow: tuple[HeldLease, float] | None = None
        """The last run that took a while, and when it ended: it may be what nobody could see at work."""

    # --- how many leases there is room for --------------------------------------------------------------

    @property
    def free(self) -> int:
        """Slots that a run could begin in; from any thread. A plain function that a run has left behind, here or in an earlier session,
        takes one: the thread would be missing to another."""
        if self._lease_table.is_closed or self._lease_table.is_over:
            return 0
        unanswered = len(self._lease_table) - len(self._reserve) - self._slots
        most = max(self._slots, self._ahead)
        return max(0, min(self._slots - self._threads.left_behind - len(self.under_way), most - unanswered))

    @property
    def left_behind(self) -> int:
        return self._threads.left_behind

    @property
    def is_stuck(self) -> bool:
        """No slot will come free by itself."""
        return self._threads.left_behind >= self._slots

    def room(self) -> int:
        """How many leases to claim now. A slot is not kept waiting; the reserve is filled when half of it is used, in full round trips."""
        if self._lease_table.is_closed or self._lease_table.is_over:
            return 0
        self._look_ahead()
        idle, reserve = self.free - len(self._reserve), self._ahead
        room = idle + reserve
        return room if idle > 0 or 2 * room >= max(1, reserve) else 0

    def _look_ahead(self) -> None:
        """How many will end in a moment, as things go."""
        self._ahead = min(AHEAD * self._slots, self._pace.reserve(time.monotonic()))

    # --- leases that wait -------------------------------------------------------------------------------

    def add(self, leases: Iterable[Lease], claimed_at: float) -> None:
        """They begin, in their order, as soon as the loop comes to it and slots are free."""
        self._reserve.extend([self._lease_table.add(lease, claimed_at) for lease in leases])
        self._lease_table.nudge()

    def give_back_reserve(self) -> None:
        """To whoever has a slot for them. It does not count: they have not begun."""
        while self._reserve:
            self.give_back(self._reserve.popleft())

    def give_back(self, holding: HeldLease) -> None:
        self._settler.offer(holding, settlement_of(holding.lease, HandedBack(counts=False)))

    def drop_reserve(self) -> None:
        """They are another's already."""
        self._lease_table.remove_all([holding.lease.claim for holding in self._reserve])
        self._reserve.clear()

    def ask_to_stop(self, holding: HeldLease, why: str) -> None:
        """Its run; a lease that has not begun never will, and one that was to be cancelled is, at once."""
        holding.ask_to_stop(why)
        if holding in self._reserve:
            self._reserve.remove(holding)
            if why == CANCELLED:
                self._settler.offer(holding, settlement_of(holding.lease, Cancelled(CANCELLED)))

    async def run(self) -> None:
        """Begin what waits, as slots come free."""
        while True:
            self._look_ahead()
            while self.free and self._reserve:
                self.begin_waiting()
                await asyncio.sleep(0)
            if self._reserve and time.monotonic() - self._reserve[0].taken_at > PATIENCE:
                self.give_back_reserve()
            await self._lease_table.wait_for_change(PATIENCE if self._reserve else None)

    def begin_waiting(self) -> None:
        """As many of them as there are slots for, or as fit into a portion of time."""
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
            if task is not None and self.under_way.get(task) is holding:  # else the loop is gone, and its coroutines are cleared away
                settlement = self._executor.close(holding, closed)
        finally:
            self._end(holding, settlement or settlement_of(holding.lease, HandedBack()))  # a cancellation may come past the executor

    def _end(self, holding: HeldLease, settlement: Settlement) -> None:
        lease, ran_for = holding.lease, settlement.ran_for
        if ran_for >= SLOW:
            self.slow = (holding, time.monotonic())
        try:
            self._events.tell(Ended(lease, settlement.verdict, ran_for))
        finally:  # an exit or a Ctrl-C in a subscriber must not lose the verdict
            self._settler.offer(holding, settlement)
        self._pace.note(lease.envelope.queue, ran_for)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        holding = self.under_way.pop(task)
        if holding.started is None:  # a stranger has cancelled it before its first step
            self._settler.offer(holding, settlement_of(holding.lease, HandedBack()))
        self._lease_table.nudge()


def settlement_of(lease: Lease, verdict: Verdict) -> Settlement:
    """Of a run that has not been, or of which nothing is known."""
    return Settlement(id=lease.envelope.id, epoch=lease.epoch, claim=lease.claim, verdict=verdict)
