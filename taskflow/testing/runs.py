"""Runs the jobs of a test with the real executor, in a session of a memory broker that records what is sent to it."""

from __future__ import annotations

import asyncio
import contextvars
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from functools import partial
from typing import Any, ClassVar, Final

import msgspec

from taskflow.app.context import DONE
from taskflow.app.job import SyncJob
from taskflow.app.job_type import AnyJob
from taskflow.broker import topics
from taskflow.broker.engine import maintenance
from taskflow.broker.engine.job import Job
from taskflow.broker.engine.jobs import read
from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import Entry, Ref, Scan
from taskflow.broker.memory import MemoryBroker
from taskflow.broker.memory.store import MemoryStore
from taskflow.broker.protocol import Added, Refused
from taskflow.broker.wakeups import Waiter
from taskflow.model.clock import Clock, microseconds_of
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.errors import JobFailed
from taskflow.model.record import Status
from taskflow.model.rules import Rules
from taskflow.model.schedule import SCHEDULE, Firing
from taskflow.model.session import Beat, Report, Session
from taskflow.model.verdict import Discarded, Failed, Retried, Settled, Settlement, Succeeded, Verdict
from taskflow.testing.assertions import SentJob
from taskflow.testing.callers import callers_thread, is_django_loaded, sync_to_async
from taskflow.worker.ended_hooks import EndedHooks
from taskflow.worker.executor import CANCELLED, LOST, WINDING_DOWN, Executor
from taskflow.worker.lease_table import HeldLease
from taskflow.worker.maintenance import Scheduler
from taskflow.worker.thread_pool import carried

CONCURRENCY: Final = 100
# The maximum number of runs in one call, not counting the jobs of schedules. More runs indicate an endless loop.
MAX_RUNS = 50_000
runs_inline: Final[ContextVar[bool]] = ContextVar("taskflow_runs_inline", default=False)
"""True in jobs that run as they are sent."""
# Seconds within which runs must end when a test gives up.
STOP_TIMEOUT: Final = 1.0


class _HeardStore(MemoryStore):
    """A memory store that answers as if a worker with `ended` hooks were always running."""

    def _scan(self, scan: Scan, with_content: bool) -> list[Entry]:
        if scan.of == "hearers":
            return [Entry((b"",), Ref(Kind.SESSION, b""), None)]
        return super()._scan(scan, with_content)


class RecordingBroker(MemoryBroker):
    """A memory broker that keeps the envelopes that were sent, because a job's record does not contain all of their fields."""

    def __init__(self, clock: Clock) -> None:
        self._heard = _HeardStore(clock)
        super().__init__(rules=Rules(), store=self._heard)
        self._clock = clock
        self._sent: dict[bytes, Envelope] = {}

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        answers = await super().enqueue(envelopes)
        self._note(envelopes)
        for envelope, answer in zip(envelopes, answers, strict=True):
            if envelope.on_conflict is OnConflict.DEBOUNCE and isinstance(answer, Refused):
                self._sent[answer.existing] = msgspec.structs.replace(envelope, id=answer.existing)
        return answers

    async def fire(self, firings: Sequence[Firing]) -> list[Added | Refused | None]:
        answers = await super().fire(firings)
        self._note([envelope for firing in firings for envelope in firing.envelopes])
        return answers

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        answers = await super().settle(settlements)
        self._note([envelope for settlement in settlements for envelope in settlement.follow_ups])
        return answers

    def _note(self, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            self._sent.setdefault(envelope.id, envelope)

    def awaiting(self, job_id: bytes, *, has_succeeded: bool) -> set[bytes]:
        """Return the ids of the jobs that this job's end may have made ready. After a failure, these are all jobs of its flow."""
        ended = self._sent.get(job_id)
        if ended is None or ended.member is None:
            return set()
        if has_succeeded:
            return set(ended.joins)
        return {each.id for each in self._sent.values() if each.member is not None and each.member.flow == ended.member.flow}

    def live(self) -> list[SentJob]:
        """Return the jobs that have not ended, oldest first."""
        records = self.perform(read(list(self._sent)))
        live = [record for record in records if record is not None and not record.status.is_ended]
        return [SentJob(self._sent[record.id], microseconds_of(record.created_at)) for record in live]

    async def claim_one(self, session: bytes, request: int, job_id: bytes) -> Lease | None:
        """Claim a specific job, even if its time hasn't come yet. Return None if it can't run, for example because its queue is paused."""
        record = self._heard.claim_job(session, request, job_id)
        return None if record is None else Job.of_record(record).to_lease(self._clock.wall())

    def take_ends(self) -> tuple[tuple[bytes, ...], int]:
        """Remove and return some ids of jobs that ended without a run, and the number of ids that were dropped for lack of space."""
        return self.perform(maintenance.take_ends(self.rules))


_Outcome = tuple[Any, BaseException | None]


class PassState(msgspec.Struct, eq=False):
    """The state of one call to `run_all` or `advance`, or of jobs that run as they are sent. `runs` counts runs by job name, and
    `unscheduled` counts those of jobs that no schedule added. `ended_badly` has the runs that failed since the last check, and
    `failures` has the JobFailed of each job that was then found to have failed for good."""

    executor: TestExecutor
    scheduler: Scheduler
    ended_hooks: EndedHooks | None
    runs: Counter[str] = msgspec.field(default_factory=Counter)
    unscheduled: int = 0
    ended_badly: list[tuple[bytes, BaseException | None]] = []
    failures: list[JobFailed] = []


class TestExecutor(Executor):
    """Treats `complete_in` on any connection as a success. Calls plain functions in their sender's thread, or in Django's thread."""

    __test__ = False
    is_in_djangos_thread = False
    gathers = False  # don't wait to fill a batch: virtual time stands still while jobs run, so the wait would never end

    def _invoke(
        self, holding: HeldLease, job: AnyJob, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Awaitable[Any]:
        start = self._start_at_sender() if isinstance(job, SyncJob) else None
        if start is None:
            return super()._invoke(holding, job, function, args, kwargs)
        scope = contextvars.copy_context()
        scope.run(callers_thread.set, None)  # the thread is busy with this function
        holding.in_thread = outcome = start(partial(_outcome_of, scope, partial(function, *args, **kwargs)))
        return _returned_or_raised(outcome)

    def _start_at_sender(self) -> Callable[[Callable[[], _Outcome]], asyncio.Future[_Outcome]] | None:
        """Return a function that starts a plain function in the thread of its job's sender, or None if any thread will do."""
        if not (self.is_in_djangos_thread or runs_inline.get()):
            return None
        if (thread := callers_thread.get()) is not None:
            return lambda function: asyncio.wrap_future(thread.submit(function))
        return sync_to_async if is_django_loaded() else None

    def _complete_with(self, holding: HeldLease, connection: object, result: bytes) -> Awaitable[None]:
        holding.completed = result
        return DONE

    def _returned(self, holding: HeldLease, job: AnyJob) -> Verdict:
        assert holding.completed is not None
        return Succeeded(holding.completed)

    def _completed(self, holding: HeldLease, verdict: Verdict) -> Verdict:
        return verdict


def _outcome_of(scope: contextvars.Context, function: Callable[[], Any]) -> _Outcome:
    """Call the function, and return its outcome. Raises only KeyboardInterrupt, with which the user ends the test."""
    try:
        return scope.run(function), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return None, error


async def _returned_or_raised(outcome: asyncio.Future[_Outcome]) -> Any:
    value, error = await outcome
    if error is not None:
        raise carried(error)
    return value


class Pass:
    """Runs jobs in a separate session, as a worker does, until none is ready."""

    hears: ClassVar[tuple[str, ...]] = (topics.ANY_QUEUE,)

    def __init__(self, broker: RecordingBroker, state: PassState) -> None:
        self._broker = broker
        self._state = state
        self._session = Session(id=secrets.token_bytes(16), name="run_all")
        self._request = 0
        self._running: dict[asyncio.Task[None], HeldLease] = {}

    async def run(self) -> None:
        await self._broker.register(self._session)
        try:
            with self._broker.listen([*self.hears, topics.session(self._session.id)]) as waiter:
                while await self._claim() or self._running:
                    await self._next_news(waiter)
                    await self._beat()
        finally:
            await self._leave()

    async def _claim(self) -> bool:
        leases = await self._leases()
        self._state.unscheduled += sum(SCHEDULE not in lease.envelope.headers for lease in leases)
        if self._state.unscheduled > MAX_RUNS:
            raise endless(f"{MAX_RUNS:,} runs", self._state.runs)
        for lease in leases:
            holding = HeldLease(lease)
            task = asyncio.get_running_loop().create_task(self._run(holding))
            self._running[task] = holding
            task.add_done_callback(self._running.pop)
            self._state.runs[lease.envelope.job] += 1
        return bool(leases)

    async def _leases(self) -> list[Lease]:
        self._request += 1
        return await self._broker.claim(self._session.id, self._request, (), CONCURRENCY)

    async def _next_news(self, waiter: Waiter) -> None:
        """Wait until a run has ended, a job has become ready, or a running job has been asked to stop."""
        nudged = asyncio.ensure_future(waiter.wait())
        try:
            await asyncio.wait({nudged, *self._running}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            nudged.cancel()
            await asyncio.gather(nudged, return_exceptions=True)

    async def _beat(self) -> None:
        held = {holding.lease.claim: holding for holding in self._running.values()}
        reports = tuple(Report(claim, 0.0, holding.progress) for claim, holding in held.items())
        answer = await self._broker.beat(Beat(session=self._session.id, claims=tuple(held), seen=self._request, reports=reports))
        for why, claims in ((CANCELLED, answer.stopping), (LOST, answer.lost)):
            for claim in claims:
                held[claim].ask_to_stop(why)

    async def _run(self, holding: HeldLease) -> None:
        settlement = await self._state.executor.run(holding)
        error = settlement.verdict.exception
        holding.forget_raised()
        # Virtual time does not pass while a job runs. With its real duration, the run would seem to start before the job was sent.
        batch = [msgspec.structs.replace(settlement, ran_for=0.0)]
        answers = await self._broker.settle(batch)
        if self._state.ended_hooks is not None:
            self._state.ended_hooks.settled([holding], batch, answers)
        if isinstance(settlement.verdict, Failed | Discarded):
            self._state.ended_badly.append((settlement.id, error))
        self._settled(settlement)

    def _settled(self, settlement: Settlement) -> None:
        """Called after each run, so that a subclass can choose what runs next."""

    async def _leave(self) -> None:
        """Leave the session. First stop any runs that are left because the test gave up; their jobs become ready again."""
        for holding in self._running.values():
            holding.ask_to_stop(WINDING_DOWN)
        if self._running:
            await asyncio.wait(self._running, timeout=STOP_TIMEOUT)
        await self._broker.beat(Beat(session=self._session.id, leaving=True))


def endless(after: str, runs: Counter[str]) -> AssertionError:
    [(job, count)] = runs.most_common(1)
    return AssertionError(
        f"jobs are still ready after {after}, and {job} ran {count:,} times: does it send itself, or snooze for (almost) no time?"
    )


MAX_DEPTH: Final = 50
"""The maximum nesting depth of jobs. If the innermost job sends another job, that job waits."""


class _Around(msgspec.Struct, frozen=True):
    """The run in which a job is sent: its nesting depth, its event loop and its state."""

    depth: int
    loop: asyncio.AbstractEventLoop
    state: PassState


_around: Final[ContextVar[_Around | None]] = ContextVar("taskflow_inline_run", default=None)


class Inline:
    """Runs jobs as they are sent. It may be called from several threads and event loops.

    `ran`       the jobs that have begun
    `failures`  the final failures, and other errors that the test should report
    """

    def __init__(
        self,
        broker: RecordingBroker,
        at_work: Callable[[], AbstractAsyncContextManager[PassState]],
        check: Callable[[PassState], Awaitable[None]],
    ) -> None:
        self._broker = broker
        self._at_work = at_work
        self._check = check
        self.ran: list[SentJob] = []
        self.failures: list[Exception] = []

    async def __call__(self, answers: Sequence[Added | Refused | BaseException]) -> None:
        """Run the added jobs that are ready, with their retries and follow-ups."""
        added = [answer.id for answer in answers if isinstance(answer, Added)]
        ready = [record for record in await self._broker.read(added) if record is not None and record.status is Status.READY]
        if not ready:
            return
        around, loop = _around.get(), asyncio.get_running_loop()
        depth = 1 if around is None else around.depth + 1
        if depth > MAX_DEPTH:
            job = ready[0].job
            self.failures.append(AssertionError(f"{MAX_DEPTH} jobs run inside one another, and then {job} was sent: does it send itself?"))
            return
        ids = [record.id for record in ready]
        if around is not None and around.loop is loop:
            await self._run(ids, _Around(depth, loop, around.state))
            return
        async with self._at_work() as state:
            await self._run(ids, _Around(depth, loop, state))
            await self._check(state)
        self.failures += state.failures

    async def _run(self, ids: list[bytes], around: _Around) -> None:
        token, inline = _around.set(around), runs_inline.set(True)
        try:
            await _InlinePass(self._broker, around.state, ids, self.ran).run()
        finally:
            runs_inline.reset(inline)
            _around.reset(token)


class _InlinePass(Pass):
    """Runs specific jobs in order, then their follow-ups and the jobs of their flows. Retries run immediately, without a wait."""

    hears: ClassVar[tuple[str, ...]] = ()

    def __init__(self, broker: RecordingBroker, state: PassState, ids: Sequence[bytes], ran: list[SentJob]) -> None:
        super().__init__(broker, state)
        self._ids = deque(ids)
        self._awaiting = set[bytes]()
        self._ran = ran

    async def _leases(self) -> list[Lease]:
        if self._awaiting and not self._ids and not self._running:
            records = await self._broker.read(sorted(self._awaiting))
            self._ids += [record.id for record in records if record is not None and record.status is Status.READY]
            self._awaiting.clear()
        while self._ids and not self._running:
            self._request += 1
            lease = await self._broker.claim_one(self._session.id, self._request, self._ids.popleft())
            if lease is not None:
                if not lease.failures:
                    self._ran.append(SentJob(lease.envelope, lease.created_at))
                return [lease]
        return []

    def _settled(self, settlement: Settlement) -> None:
        if isinstance(settlement.verdict, Retried):
            self._ids.appendleft(settlement.id)
        else:
            self._awaiting |= self._broker.awaiting(settlement.id, has_succeeded=isinstance(settlement.verdict, Succeeded))
        self._ids += [envelope.id for envelope in settlement.follow_ups]
