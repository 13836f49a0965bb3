"""Retries the failed jobs of one cause in stages, and stops when one of them fails again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from taskflow.app.bulk_actions import CHANGED, ActionProgress, ActionResult, CallBroker, apply, recorded
from taskflow.model.ids import id_text
from taskflow.model.printable import message
from taskflow.model.record import Status

AT_ONCE: Final = 100
MAX_CHECKED: Final = 1_000  # maximum number of jobs that are read between two batches, however many haven't ended yet
POLL_INTERVAL: Final = 0.2


def stages_of(ids: Sequence[bytes], sizes: Iterable[int | None]) -> Iterator[Sequence[bytes]]:
    """Yield the ids of each stage that has any. The last stage contains all remaining ids, as does one of size None."""
    begin = 0
    for size in (*sizes, None):
        if begin < len(ids) and size != 0:
            end = len(ids) if size is None else begin + size
            yield ids[begin:end]
            begin = end


class Rollout:
    """Retries jobs and watches them. The audit log has an entry for each stage.

    `total`  the number of jobs in all stages
    `which`  describes the jobs in the audit log
    `wait`   the maximum time in seconds that a stage waits for its jobs
    `rate`   the maximum number of jobs to retry per second (default: no maximum)

    `done` counts the outcomes, `stage` is the number of jobs in the current stage, and `watched` has the jobs that haven't ended yet.
    """

    def __init__(
        self, call: CallBroker, total: int, which: Mapping[str, str], *, by: str | None, reason: str, wait: float, rate: float | None = None
    ) -> None:
        self.done, self.stage, self.watched = ActionResult(), 0, list[bytes]()
        self._call, self._total, self._which, self._by, self._reason, self._wait, self._rate = call, total, which, by, reason, wait, rate

    @property
    def left_alone(self) -> str:
        return f"{self._total - self.done.seen:,} of {self._total:,} were not retried"

    async def run(self, stage: Sequence[bytes], *, waits: bool = True) -> str | None:
        """Retry these jobs, and if `waits` is True, wait until they have ended. Return why the rollout must stop, or None."""
        self.stage = len(stage)
        async with recorded(self._call, "retry", by=self._by, reason=self._reason, which=self._which) as progress:
            problem = await self._retry(stage, progress)
            progress.stopped = problem or ""
        return await self._until_ended() if waits and problem is None else problem

    async def _retry(self, stage: Sequence[bytes], progress: ActionProgress) -> str | None:
        size = AT_ONCE if self._rate is None else max(1, min(AT_ONCE, int(self._rate)))
        for begin in range(0, len(stage), size):
            portion, began = stage[begin : begin + size], time.monotonic()
            answers = await apply(self._call, "retry", portion)
            self.watched += [job_id for job_id, answer in zip(portion, answers, strict=True) if answer == CHANGED]
            done = ActionResult.of(answers)
            self.done += done
            progress.affected += done.changed
            if (problem := await self._check()) is not None:
                return problem
            if self._rate is not None:
                await asyncio.sleep(max(0.0, len(portion) / self._rate - (time.monotonic() - began)))
        return None

    async def _until_ended(self) -> str | None:
        give_up_at = time.monotonic() + self._wait
        while (problem := await self._check()) is None and self.watched:
            if time.monotonic() > give_up_at:
                number = len(self.watched)
                subject = "1 job has" if number == 1 else f"{number:,} jobs have"
                return f"{subject} not ended within {self._wait:g} s, for example {id_text(self.watched[0])}"
            await asyncio.sleep(POLL_INTERVAL)
        return problem

    async def _check(self) -> str | None:
        """Return a message about the jobs that failed again, or None. Unfinished jobs are checked again after the others."""
        left, failures, next_ones = list[bytes](), list[str](), self.watched[:MAX_CHECKED]
        for begin in range(0, len(next_ones), AT_ONCE):
            ids = next_ones[begin : begin + AT_ONCE]
            for job_id, record in zip(ids, await self._call(lambda broker, ids=ids: broker.read(ids)), strict=True):  # type: ignore[misc]
                # The retry cleared the counters. A job that failed again may be waiting for its next attempt.
                if record is not None and (record.status is Status.FAILED or record.failures > 0 or record.crashes > 0):
                    error = record.errors[-1] if record.errors else None
                    why = record.reason or (f"{error.type}: {error.message}" if error else "")
                    failures.append(f"{message(why)} ({id_text(job_id)})")
                elif record is not None and not record.status.is_ended:
                    left.append(job_id)
        self.watched = self.watched[MAX_CHECKED:] + left
        return f"{len(failures):,} of {self.stage:,} failed again: {failures[0]}" if failures else None
