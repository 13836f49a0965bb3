"""Measures how fast the runs of a session end and how long they take. This determines how many jobs a worker prefetches."""

from __future__ import annotations

from typing import Final

STARTS_WITHIN: Final = 0.02
"""Seconds within which a lease in the reserve should start. While the median run of some queue
takes longer, there is no reserve, because another worker could start the jobs sooner."""

MEASURED_OVER: Final = 0.01
"""Seconds for which ended runs are counted, unless `ENDS_NEEDED` runs end sooner."""

ENDS_NEEDED: Final = 50
MOMENT: Final = 0.001
"""Minimum seconds for a measurement if `ENDS_NEEDED` runs have ended, so that the claim after a burst is large enough."""

REMEMBERED: Final = 16
"""Limits how far a queue's history can lean towards short or long runs: this many more runs of one kind outweigh all earlier ones."""

FADES_AFTER: Final = 60.0
"""If no run in a queue ends for this many seconds plus the duration of a long run, the queue is ignored, because it may be out of use."""

QUEUES: Final = 1_000
"""If there are more queues than this, for example because their names are generated, all statistics are dropped."""


class Prefetch:
    """Measures how fast the runs of one session end and how long they take. Times are on the monotonic clock."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._ended = 0
        self._rate = 0.0
        self._leanings: dict[str, int] = {}
        self._slow_until: dict[str, float] = {}
        self._now = now
        self._fades_at = now

    def note(self, queue: str, ran_for: float) -> None:
        """Record the end of a run."""
        self._ended += 1
        leaning = self._leanings.get(queue, 0)
        if ran_for > STARTS_WITHIN:
            self._lean(queue, min(REMEMBERED, leaning + 1), ran_for)
        elif leaning > -REMEMBERED:
            self._lean(queue, leaning - 1, ran_for)

    def reserve(self, now: float) -> int:
        """Return how many jobs are expected to start within `STARTS_WITHIN`
        seconds, or 0 while the median run of some queue takes longer than that."""
        self._now = now
        passed = now - self._since
        if passed >= MEASURED_OVER or (self._ended >= ENDS_NEEDED and passed >= MOMENT):
            self._rate = self._ended / passed
            self._since, self._ended = now, 0
        if self._slow_until and now >= self._fades_at:
            self._forget_silent()
        return 0 if self._slow_until else int(self._rate * STARTS_WITHIN)

    def _forget_silent(self) -> None:
        self._fades_at = self._now + FADES_AFTER / 60
        for queue in [queue for queue, until in self._slow_until.items() if until <= self._now]:
            del self._slow_until[queue], self._leanings[queue]

    def _lean(self, queue: str, leaning: int, ran_for: float) -> None:
        """Set the leaning of a queue after a short or long run. A leaning above 0 means that most of the queue's recent runs were long."""
        if len(self._leanings) >= QUEUES and queue not in self._leanings:
            self._leanings.clear()
            self._slow_until.clear()
        self._leanings[queue] = leaning
        if leaning > 0:
            self._slow_until[queue] = max(self._now + FADES_AFTER + ran_for, self._slow_until.get(queue, 0.0))
        else:
            self._slow_until.pop(queue, None)
