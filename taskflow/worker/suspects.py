"""Jobs whose last run has taken its worker with it, or was beside the one that did: which of them it was, nobody knows.

Run among others, the guilty one would take down as many leases each time, and those would be counted as crashed as often as it. So suspects
are tried by themselves: a few at a time while each has but one crash, one at a time after that, the least suspicious first. What has begun
before is waited for, what else was claimed goes back, so that it is nobody's when the worker dies, and nothing is claimed until those on
trial have lived for a moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Final

from taskflow.model.envelope import Lease
from taskflow.worker.holdings import Holding, Holdings

TOGETHER: Final = 10
"""Of those with one crash: as many of a hundred neighbours of the guilty one as can be cleared in seconds."""

PROBATION: Final = 0.5
"""Seconds that they have lived when others begin beside them. What kills its worker does so at once, as a rule."""

UNTIL_ALONE: Final = 2.0
"""Seconds for which runs that began before are waited for, and the store to take back the rest. What stays is at the suspects' risk."""


class Suspects:
    """Holds them until they are tried or given back.

    `begin` starts a run; `runs` are those under way; `give_back` settles a lease that has not begun.
    """

    def __init__(
        self,
        holdings: Holdings,
        begin: Callable[[Holding], asyncio.Task[None]],
        runs: Callable[[], Collection[asyncio.Task[None]]],
        give_back: Callable[[Holding], None],
    ) -> None:
        self._holdings = holdings
        self._begin = begin
        self._runs = runs
        self._give_back = give_back
        self._waiting: list[Holding] = []
        self._chosen: list[Holding] = []
        self._has_some = asyncio.Event()

    def add(self, lease: Lease, claimed_at: float) -> None:
        self._waiting.append(self._holdings.add(lease, claimed_at))
        self._holdings.is_closed = True
        self._has_some.set()

    def take_all(self) -> list[Holding]:
        """Those that have not begun, chosen or not. They will not, any more."""
        taken = self._held([*self._chosen, *self._waiting])
        self._chosen, self._waiting = [], []
        return taken

    async def run(self) -> None:
        while True:
            await self._has_some.wait()
            self._choose()
            await self._be_alone()
            if runs := self._begin_chosen():
                await asyncio.wait(runs, timeout=PROBATION)
            if not self._waiting:
                self._has_some.clear()
                self._holdings.is_closed = False
                self._holdings.nudge()

    def _choose(self) -> None:
        """Those that are tried now, while the rest goes back. Cancelled after that by a stranger, `run` begins again and chooses anew."""
        waiting = sorted(self.take_all(), key=lambda holding: holding.lease.crashes)
        together = sum(holding.lease.crashes == 1 for holding in waiting[:TOGETHER]) or 1
        for holding in waiting[together:]:
            self._give_back(holding)
        self._chosen = waiting[:together]

    def _begin_chosen(self) -> list[asyncio.Task[None]]:
        chosen, self._chosen = self._held(self._chosen), []
        return [self._begin(holding) for holding in chosen]

    async def _be_alone(self) -> None:
        give_up_at = time.monotonic() + UNTIL_ALONE
        while (self._runs() or len(self._holdings) > len(self._chosen)) and (left := give_up_at - time.monotonic()) > 0:
            await self._holdings.wait_for_change(left)

    def _held(self, waiting: list[Holding]) -> list[Holding]:
        """Those that have not been lost meanwhile."""
        return [holding for holding in waiting if self._holdings.get(holding.lease.claim) is holding]
