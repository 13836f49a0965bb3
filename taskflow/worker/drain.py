"""Decides when a worker has drained its queues, and counts the jobs that it leaves there."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Final

from taskflow.app.job_type import Registry
from taskflow.broker.console import QueueRecord, View
from taskflow.broker.paging import first
from taskflow.broker.protocol import Broker
from taskflow.model.errors import CodecError
from taskflow.model.record import Record, Status
from taskflow.model.wording import POISON, UNREADABLE
from taskflow.worker.executor import PARKED_ON
from taskflow.worker.options import WorkerOptions

# The maximum number of scheduled or failed jobs that one search examines. Examining more would put load on the store.
LOOKED_AT: Final = 1_000


class Drain:
    """Checks whether the worker's queues are drained, one queue after another."""

    def __init__(self, broker: Broker, registry: Registry, options: WorkerOptions) -> None:
        self._broker = broker
        self._registry = registry
        self._names = options.queues.names
        self._horizon = options.drain_horizon
        self._awaited: Record | None = None
        self._began_at: datetime | None = None

    async def note_begin(self, session: bytes) -> None:
        """Record when the store registered the session. Jobs that fail without a run after that count as failures of this drain."""
        workers = await self._broker.console.workers()
        self._began_at = next((worker.registered_at for worker in workers if worker.session.id == session), None)

    async def set_aside(self) -> int:
        """Return how many of the newest failed jobs the store has set aside since it registered the session: unreadable ones, and the
        poison in the worker's queues."""
        if self._began_at is None:
            return 0
        failed = await self._broker.console.page(View(statuses=(Status.FAILED,)), limit=LOOKED_AT)
        return sum(
            self._is_set_aside(record) and (record.ended_at is None or record.ended_at >= self._began_at) for record in failed.records
        )

    def _is_set_aside(self, record: Record) -> bool:
        if record.unreadable or ((error := record.last_error) is not None and error.type == UNREADABLE):
            return True
        return (record.reason or "").startswith(POISON) and (not self._names or record.queue in self._names)

    async def is_over(self) -> bool:
        """Return True if no job in the queues is READY or RUNNING, and none that this worker can run is due within the horizon.

        Runs on other workers count too. In a paused queue, only RUNNING jobs count, because no worker may claim the others.
        """
        for queue in await self.queues():
            if queue.counts[Status.RUNNING] or (queue.counts[Status.READY] and not queue.is_paused):
                return False
            if not queue.is_paused and await self._has_something_due(queue):
                return False
        return True

    async def queues(self) -> list[QueueRecord]:
        """Return the worker's queues."""
        return [queue for queue in await self._broker.console.queues() if not self._names or queue.name in self._names]

    async def parked(self, queue: QueueRecord) -> Counter[str]:
        """Return, for each job name, how many of the queue's newest scheduled jobs this worker cannot run."""
        if not queue.counts[Status.SCHEDULED]:
            return Counter()
        return Counter(record.job for record in await self._scheduled(queue) if not self._can_run(record))

    async def _has_something_due(self, queue: QueueRecord) -> bool:
        """Return True if a job that the worker can run is due within the horizon.
        If the queue has too many scheduled jobs to search, parked ones count too."""
        if queue.next_due_in is None or queue.next_due_in > self._horizon:
            return False
        if queue.counts[Status.SCHEDULED] > LOOKED_AT or await self._waits_still(queue):
            return True
        scheduled = await self._scheduled(queue)
        if len(scheduled) != queue.counts[Status.SCHEDULED]:  # a job has become ready in the meantime, or is new
            return True
        # The first record gives the store's time, which decides when jobs are due.
        until = min(record.due_at for record in scheduled).timestamp() + self._horizon - queue.next_due_in
        due = (record for record in scheduled if record.due_at.timestamp() <= until and self._can_run(record))
        self._awaited = min(due, key=lambda record: record.due_at, default=None)
        return self._awaited is not None

    async def _waits_still(self, queue: QueueRecord) -> bool:
        """Return True if the job found by an earlier search is still scheduled. This is cheaper than a new search."""
        awaited = self._awaited
        if awaited is None or awaited.queue != queue.name:
            return False
        [record] = await self._broker.read([awaited.id])
        return record is not None and (record.status, record.due_at) == (awaited.status, awaited.due_at)

    async def _scheduled(self, queue: QueueRecord) -> list[Record]:
        """Return the first of the queue's scheduled jobs."""
        return await first(self._broker.console, View(queue=queue.name, statuses=(Status.SCHEDULED,)), LOOKED_AT)

    def _can_run(self, record: Record) -> bool:
        """Return True if this worker can run the job, even if another worker has parked it."""
        if record.waiting_for is None:
            return True
        job = self._registry.get(record.job)
        if job is None:
            return False
        try:
            job.codec.decode_arguments(record.payload or b"")
        except PARKED_ON:
            return False
        except CodecError:  # the job will fail, so it ends too
            pass
        return True
