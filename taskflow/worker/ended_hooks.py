"""Calls the `ended` hooks of middleware in the background."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

import msgspec

from taskflow.app.app import App
from taskflow.app.handle import info_of
from taskflow.app.job_info import JobInfo
from taskflow.app.middleware import Middleware
from taskflow.broker.protocol import Broker
from taskflow.model.clock import SystemClock, instant_of, to_microseconds
from taskflow.model.envelope import Lease
from taskflow.model.errors import BrokerError
from taskflow.model.job_schema import Counters, SentAndShown
from taskflow.model.printable import log_safely
from taskflow.model.record import Record
from taskflow.model.rules import Rules
from taskflow.model.transitions import apply_verdict
from taskflow.model.verdict import Completed, Settled, Settlement, Succeeded, Verdict
from taskflow.worker.lease_table import HeldLease

log: Final = logging.getLogger("taskflow.worker")

AT_ONCE: Final = 100  # the number of records fetched per read. No further read begins while this many calls of `ended` are running.
MAX_WAITING: Final = 10_000  # the maximum number of ended jobs that wait for a call. Further jobs are dropped, and an error is logged.
STUCK_TIMEOUT: Final = 1.0  # if no call ends for this many seconds, the worker stops waiting for the hooks
TIMEOUT: Final = 30.0  # seconds after which a call of `ended` is cancelled, so that hooks that hang don't fill the memory


class _Settlement(NamedTuple):
    """A settlement that took effect. `at` is the time of the answer on the worker's clock, in microseconds."""

    lease: Lease
    settlement: Settlement
    verdict: Verdict
    at: int


class EndedHooks:
    """Calls `Middleware.ended` for each job that ends, without delaying settlements. Errors are logged with the job's id. If the store
    can't return the ended job, its `JobInfo` is built from the lease and the verdict, or the call is left out if there was no run."""

    def __init__(self, app: App, broker: Broker, middleware: Sequence[Middleware], worker: str) -> None:
        self._app = app
        self._broker = broker
        self._layers = [layer for layer in middleware if type(layer).ended is not Middleware.ended]
        self._worker = worker
        self._clock = SystemClock()
        self._waiting: deque[bytes | _Settlement] = deque()
        self._calling: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._dropped = 0
        self._called_at = 0.0
        self._is_closed = False

    @property
    def is_behind(self) -> bool:
        """True if the worker should claim no more jobs yet, because too many ended jobs wait for hooks. False if the hooks hang."""
        return len(self._waiting) >= MAX_WAITING // 2 and time.monotonic() - self._called_at < STUCK_TIMEOUT

    def tell_ended(self, ids: Sequence[bytes], dropped: int = 0) -> None:
        """Queue calls for jobs that ended without a run. `dropped`, the number of ended jobs whose ids the store dropped, is logged."""
        if dropped:
            log_safely(log.error, "%s.ended() was not called for %d job(s): too many have ended without a run", self._names(), dropped)
        for job_id in ids:
            self._add(job_id)

    def settled(self, holdings: Sequence[HeldLease | None], batch: Sequence[Settlement], answers: Sequence[Settled]) -> None:
        """Queue calls for the jobs that these settlements ended. Maintenance reports jobs that end in other ways."""
        at = self._clock.wall()
        for holding, settlement, answer in zip(holdings, batch, answers, strict=True):
            if holding is None or answer not in (Settled.OK, Settled.COMMITTED):
                continue
            verdict = settlement.verdict if answer is Settled.OK else Succeeded(holding.completed or b"")
            if isinstance(verdict, Completed):
                verdict = verdict.otherwise
            if not verdict.is_final:
                continue
            envelope = msgspec.structs.replace(holding.lease.envelope, payload=b"")  # thousands may wait, and arguments may be large
            self._add(_Settlement(msgspec.structs.replace(holding.lease, envelope=envelope), settlement, verdict, at))

    def _add(self, end: bytes | _Settlement) -> None:
        if self._is_closed:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            if self._dropped == 1:
                log_safely(log.error, "%s.ended() is too slow: it is not called for some jobs", self._names())
            return
        self._waiting.append(end)
        if self._reading is None:
            self._start()

    def _start(self) -> None:
        self._called_at = time.monotonic()
        self._reading = asyncio.get_running_loop().create_task(self._read(), name="taskflow-ended")
        self._reading.add_done_callback(self._record_end)

    def _record_end(self, reading: asyncio.Task[None]) -> None:
        """Log the reading task's error and the dropped jobs. If ended jobs are left, restart the task: a job may have cancelled it."""
        self._reading = None
        if not reading.cancelled() and (error := reading.exception()) is not None:
            log_safely(log.error, "%s.ended() was not called for some jobs: %s: %s", self._names(), type(error).__name__, error)
        if self._waiting and not self._is_closed:
            self._start()
        elif self._dropped:
            log_safely(log.error, "%s.ended() was not called for %d job(s): %d were waiting", self._names(), self._dropped, MAX_WAITING)
            self._dropped = 0

    async def _read(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
            try:
                infos = await self._infos(batch)
            except asyncio.CancelledError:
                self._waiting.extendleft(reversed(batch))
                raise
            for info in infos:
                self._begin_call(info)
            while len(self._calling) >= AT_ONCE:
                await asyncio.wait(self._calling, return_when=asyncio.FIRST_COMPLETED)

    def _begin_call(self, info: JobInfo) -> None:
        call = asyncio.get_running_loop().create_task(self._call(info), name="taskflow-ended")
        self._calling.add(call)
        call.add_done_callback(partial(self._record_called, info))

    def _record_called(self, info: JobInfo, call: asyncio.Task[None]) -> None:
        self._calling.discard(call)
        if call.cancelled() and not self._is_closed:  # a job has cancelled it before its first step
            self._begin_call(info)
        self._called_at = time.monotonic()

    async def _call(self, info: JobInfo) -> None:
        for layer in self._layers:
            try:
                async with asyncio.timeout(TIMEOUT):
                    await layer.ended(info)
            except (Exception, asyncio.CancelledError, SystemExit, GeneratorExit) as error:
                if self._is_closed and isinstance(error, asyncio.CancelledError):
                    raise
                log_safely(log.exception, "%s.ended() failed for job %s (%s)", type(layer).__name__, info.id, info.job)

    async def close(self, within: float) -> None:
        """Wait up to `within` seconds for the remaining calls, then cancel the unfinished ones and log their number."""
        until = time.monotonic() + within
        try:
            while (tasks := self._tasks()) and (left := until - time.monotonic()) > 0:
                await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._is_closed = True
            untold = len(self._waiting) + len(self._calling)
            self._waiting.clear()
            for task in self._tasks():
                task.cancel()
            if untold:
                log_safely(log.warning, "%s.ended() had not handled %d ended job(s) when the worker ended", self._names(), untold)

    def _tasks(self) -> set[asyncio.Task[None]]:
        return self._calling if self._reading is None else {self._reading, *self._calling}

    def _names(self) -> str:
        return ", ".join(type(layer).__name__ for layer in self._layers)

    async def _infos(self, batch: Sequence[bytes | _Settlement]) -> list[JobInfo]:
        ids = [end.settlement.id if isinstance(end, _Settlement) else end for end in batch]
        found = dict[bytes, Record | None]()
        try:
            found = dict(zip(ids, await self._broker.read(ids), strict=True))
        except BrokerError as error:
            log_safely(log.warning, "the records of ended jobs cannot be read: %s", error)
        ended = [self._record(end, found.get(job_id)) for end, job_id in zip(batch, ids, strict=True)]
        return [info_of(self._app, record) for record in ended if record is not None]

    def _record(self, end: bytes | _Settlement, found: Record | None) -> Record | None:
        if not isinstance(end, _Settlement):
            return found if found is not None and found.status.is_ended else None
        if found is not None and found.epoch == end.lease.epoch and found.status.is_ended:
            return found
        # Built from what the worker knows, with times from its clock, because an operator may have retried the job in the meantime.
        lease, envelope = end.lease, end.lease.envelope
        plan = apply_verdict(Counters(lease.failures, lease.crashes, lease.snoozes, lease.hand_backs), end.verdict, Rules(), end.at)
        assert plan.ends_as is not None
        created_at, started = instant_of(lease.created_at), end.at - to_microseconds(end.settlement.ran_for)
        return Record(
            **{name: getattr(envelope, name) for name in SentAndShown.__struct_fields__},
            status=plan.ends_as,
            created_at=created_at,
            due_at=created_at,
            started_at=instant_of(started),
            ended_at=instant_of(end.at),
            failures=plan.counters.failures,
            crashes=plan.counters.crashes,
            snoozes=plan.counters.snoozes,
            hand_backs=plan.counters.hand_backs,
            epoch=lease.epoch,
            worker=self._worker,
            progress=end.settlement.progress,
            result=end.verdict.result or None if isinstance(end.verdict, Succeeded) else None,
            payload=end.settlement.arguments,
            reason=plan.reason,
            errors=() if plan.error is None else (plan.error.of_run(self._worker, started, end.at),),
        )
