"""Runs a lease's job and returns its settlement. No broker is needed, so workers, child processes and tests run the same code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

from taskflow.app.app import App
from taskflow.app.around import surrounded
from taskflow.app.context import DONE, Cancel, Discard, JobContext, RateLimited, Retry, Snooze, running
from taskflow.app.declared_limits import unadmitted
from taskflow.app.job import Job, SyncJob
from taskflow.app.job_type import AnyJob
from taskflow.app.middleware import Middleware, OneAtATime, RunNext, Telemetry, run_chain, run_layers
from taskflow.model import errors
from taskflow.model.clock import Seams
from taskflow.model.codec.function import CallArguments
from taskflow.model.envelope import Lease, notes_of
from taskflow.model.ids import id_text
from taskflow.model.printable import log_safely
from taskflow.model.rules import DAY, Backoff, RetryFunction, seconds_of
from taskflow.model.verdict import (
    Cancelled,
    Completed,
    Discarded,
    Failed,
    HandedBack,
    Parked,
    Retried,
    RunEnding,
    RunError,
    Settled,
    Settlement,
    Snoozed,
    Succeeded,
    Verdict,
    decodable,
    detach_exception,
)
from taskflow.model.wording import OTHER_CODE, UNKNOWN_JOB
from taskflow.worker.children.messages import ChildFailed
from taskflow.worker.children.pool import ChildPool
from taskflow.worker.lease_table import Deadlines, HeldLease
from taskflow.worker.results import ReadNotes, ResultsMissing, with_results
from taskflow.worker.run_errors import RolledBack, failure_of, follow_ups_of, stored_cause, unencodable
from taskflow.worker.thread_pool import CancelledBeforeStart, RaisedInThread, StoppableCall, ThreadPool

if TYPE_CHECKING:  # loaded only by workers that run batch jobs
    from taskflow.worker.batches import Batches

log: Final = logging.getLogger("taskflow.worker")

CANCELLED: Final = "cancelled"
TIMED_OUT: Final = str(RunEnding.TIMED_OUT)
WINDING_DOWN: Final = "winding down"
LOST: Final = "lost"

# Errors that show that a job was sent by another version of the application or of taskflow, because every sender checks the arguments.
PARKED_ON: Final = (errors.NewerFormat, errors.UnknownArgument, errors.MissingArgument, errors.UnknownType)

MAX_PARK_TIME: Final = 7 * DAY
MIN_PARK_PAUSE: Final = 5.0
MAX_PARK_PAUSE: Final = 300.0


@dataclass(eq=False)
class Executor:
    """Runs jobs. For each run, it finds the job, decodes the arguments, calls the function, encodes the result, and decides the verdict.

    Without `children`, jobs for child processes run in this process, as in tests and in a child. Without `threads`, a subclass must call
    plain functions in `_invoke`. `state` is the value of `ctx.state`, and `deploy` is stored with the causes of failures. `is_cut_short()`
    returns True while the worker's `async with` block is being cancelled: runs that are cancelled along with the block, for example when
    `asyncio.run` ends, are handed back.
    `read_notes` reads the results that a job in a flow takes as an argument; in a child process, the leases already contain them."""

    app: App
    middleware: Sequence[Middleware]
    threads: ThreadPool | None
    seams: Seams
    state: Any = None
    children: ChildPool | None = None
    is_cut_short: Callable[[], bool] = lambda: False
    deploy: str = ""
    read_notes: ReadNotes | None = None

    gathers = True  # while False, a batch job's function is called as soon as the available runs have begun

    def __post_init__(self) -> None:
        self.registry = self.app.registry
        self._layers = run_layers(self.middleware)
        self._surroundings: dict[AnyJob, Callable[..., Any] | None] = {}
        self._raising = set[AnyJob]()
        self._keeping: dict[str, bool] = {}
        self._is_watched = bool(self._layers or self.app.settings.subscribers)
        self._pid = os.getpid()
        self._completes = self._complete  # bound once, not for each run
        self._deadlines = Deadlines(self._end_at_timeout)
        self.batches: Batches | None = None  # created for the first batch job

    async def run(self, holding: HeldLease) -> Settlement:
        """Run the job and return the settlement. If awaiting this raises GeneratorExit, call `close` for the settlement."""
        begun = holding.started = time.monotonic()
        try:
            verdict = self._verdict(holding)
            if not isinstance(verdict, Verdict):
                verdict = await verdict
        except BaseException as error:
            verdict = self._judge(holding, self.registry.get(holding.lease.envelope.job), error)
        if os.getpid() != self._pid and asyncio._get_running_loop() is None:
            end_forked_process()
        return self._settlement(holding, verdict, begun)

    def foresee(self, lease: Lease) -> Verdict | None:
        """Return the verdict that the lease would get without calling the job's function, or None if the function would be called."""
        found = self._verdict(HeldLease(lease))
        return found if isinstance(found, Verdict) else found.close()

    def close(self, holding: HeldLease, error: GeneratorExit) -> Settlement:
        """Return the settlement for a run whose coroutine was closed because it awaited a future that raised GeneratorExit."""
        verdict = self._judge(holding, self.registry.get(holding.lease.envelope.job), error)
        return self._settlement(holding, verdict, holding.started or time.monotonic())

    def _settlement(self, holding: HeldLease, verdict: Verdict, begun: float) -> Settlement:
        lease = holding.lease
        if holding.completed is not None:
            verdict = self._completed(holding, verdict)
        is_success, name = type(verdict) is Succeeded, lease.envelope.job
        keeps = is_success and (self._keeping[name] if name in self._keeping else self._keeps_arguments(name))
        joins = lease.envelope.joins
        return Settlement(
            id=lease.envelope.id,
            epoch=lease.epoch,
            claim=lease.claim,
            verdict=verdict,
            ran_for=time.monotonic() - (holding.started or begun),
            keep_for=lease.envelope.keep_result,
            follow_ups=() if lease.envelope.on_failure is None else follow_ups_of(lease, verdict),
            progress=holding.progress,
            cause=None if is_success else stored_cause(verdict, self.deploy),
            key=lease.envelope.key,
            limits=lease.envelope.limits,
            awaited_by=joins[0] if len(joins) == 1 else None,
            notes=() if lease.envelope.member is None else notes_of(lease.envelope),
            arguments=lease.envelope.payload if keeps else None,
        )

    def _keeps_arguments(self, name: str) -> bool:
        job = self.registry.get(name)
        self._keeping[name] = keeps = job is not None and job.policy.keep_arguments
        return keeps

    def _verdict(self, holding: HeldLease) -> Verdict | Coroutine[Any, Any, Verdict]:
        """Return the verdict if it's known without running the job, or else a coroutine that runs the job and returns the verdict."""
        lease = holding.lease
        if lease.poison is not None:
            return Cancelled(CANCELLED) if holding.why_stopped == CANCELLED else Discarded(lease.poison)
        if lease.unreadable:
            fields = f"stored fields cannot be read ({'; '.join(map(str, lease.unreadable))}); the store keeps their bytes"
            return Failed(RunError("taskflow.UnreadableJob", fields, "", lease.attempt))
        job = self.registry.get(lease.envelope.job)
        if job is None:
            return self._park(holding, UNKNOWN_JOB % lease.envelope.job)
        try:
            if (lease.envelope.limits or job.limits is not None) and (verdict := unadmitted(lease, job)) is not None:
                return verdict
        except errors.DecodeError as error:
            return self._undecodable(holding, error)
        member = lease.envelope.member
        if member is not None and member.takes is not None and self.read_notes is not None:
            return self._verdict_with_results(holding, self.read_notes)
        if job.runs_in == "process" and self.children is not None:
            return self._verdict_of_child(holding, job, self.children)
        try:
            if member is not None and member.takes is not None:  # `foresee` has no results
                given = job.codec.decode_around(member.takes, lease.envelope.payload)
            else:
                given = job.codec.decode_arguments(lease.envelope.payload, results=0 if member is None else member.inputs)
        except BaseException as error:  # decoding calls the application's own checks
            return self._undecodable(holding, error)
        return self._run(holding, job, partial(self._call, holding, job, *given), given)

    async def _verdict_with_results(self, holding: HeldLease, read_notes: ReadNotes) -> Verdict:
        """Add the results of the awaited jobs to the job's arguments, and run the job. If the store does not answer, hand the job back."""
        try:
            holding.lease = await with_results(holding.lease, read_notes)
        except errors.BrokerError:  # the store does not answer claims either, so this cannot become a tight loop
            return HandedBack()
        except (ResultsMissing, errors.DecodeError) as error:
            return self._undecodable(holding, error)
        verdict = self._verdict(holding)
        return verdict if isinstance(verdict, Verdict) else await verdict

    async def _verdict_of_child(self, holding: HeldLease, job: AnyJob, children: ChildPool) -> Verdict:
        """Run the job in a child process. Middleware and the timeout start once a child is available."""
        try:
            child = await children.reserve(holding, job)
        except BaseException as error:
            verdict = self._judge(holding, job, error)
            return _not_begun(holding) if isinstance(verdict, HandedBack) else verdict

        holding.child_headers = {}

        async def call(context: JobContext) -> Verdict:
            policy = job.policy
            try:
                with child.soft_stop(context, policy) if policy.stop_grace or policy.timeout_raises else contextlib.nullcontext():
                    verdict = await child.run()
                return decodable(verdict, job.codec.decode_result) if self._is_watched and isinstance(verdict, Succeeded) else verdict
            except BaseException as error:
                return self._completed(holding, self._judge(holding, job, error))

        try:
            return await self._run(holding, job, call)
        finally:
            child.release()

    def _undecodable(self, holding: HeldLease, error: BaseException) -> Verdict:
        if isinstance(error, PARKED_ON):
            return self._park(holding, OTHER_CODE % error)
        return self._failed(holding, failure_of(error, holding.lease.attempt), error)

    def _stop(self, holding: HeldLease, context: JobContext, task: asyncio.Task[Any] | None) -> None:
        """Stop the run: withdraw a plain function's queued call, or cancel the task. A function in a thread can only be asked to stop."""
        context.cancelled.set()
        if holding.in_thread is None:
            if task is not None:
                task.cancel()
        elif self.threads is not None:
            self.threads.take_back(holding.in_thread)

    def _end_at_timeout(self, holding: HeldLease) -> None:
        holding.ask_to_stop(TIMED_OUT)

    def _park(self, holding: HeldLease, waiting_for: str) -> Verdict:
        lease = holding.lease
        if lease.parked_for >= MAX_PARK_TIME:
            return Failed(RunError("taskflow.NeverKnown", f"waited 7 days for {waiting_for}", "", lease.attempt))
        # Park it for as long as it has already waited: exponential back-off without a counter.
        return Parked(waiting_for, min(MAX_PARK_PAUSE, max(MIN_PARK_PAUSE, lease.parked_for)))

    async def _run(self, holding: HeldLease, job: AnyJob, call: RunNext, given: CallArguments | None = None) -> Verdict:
        """Run the job inside its middleware. If it has expired or was asked to stop, it doesn't start; the store cancels expired jobs."""
        if holding.why_stopped is not None or (holding.begins_by is not None and time.monotonic() >= holding.begins_by):
            return _not_begun(holding)
        holding.complete_on = self._completes
        context = JobContext(holding.lease, state=self.state, run=holding, job=job, given=given)
        alone = OneAtATime(call) if self._layers else None
        chain = run_chain(self._layers, alone) if alone is not None else call
        timeout = holding.lease.envelope.timeout
        token = running.set(context)
        holding.stop = partial(self._stop, holding, context, asyncio.current_task())
        if timeout is not None and job.batch is None:
            self._deadlines.add(holding, timeout)
        try:
            return await chain(context)
        except BaseException as error:  # middleware raised it
            if given is None and isinstance(error, errors.DecodeError):  # middleware read the arguments, which only then are decoded
                return self._undecodable(holding, error)
            return self._judge(holding, job, error)
        finally:
            if alone is not None and (left := alone.end()) is not None:
                await asyncio.wait([left])
            holding.stop = None
            if timeout is not None:
                self._deadlines.remove(holding)
            running.reset(token)

    def limit(self, holding: HeldLease) -> None:
        """Start the time limit of a run in a batch, if its job has one. Called when the batch's call begins."""
        if (timeout := holding.lease.envelope.timeout) is not None:
            self._deadlines.add(holding, timeout)

    def _batches(self) -> Batches:
        if self.batches is None:
            from taskflow.worker.batches import Batches

            self.batches = Batches(self.threads, self._invoke, self.limit, waits=self.gathers)
        return self.batches

    async def _call(self, holding: HeldLease, job: AnyJob, args: tuple[Any, ...], kwargs: dict[str, Any], context: JobContext) -> Verdict:
        try:
            surroundings = self._surroundings[job] if job in self._surroundings else self._surroundings_of(job)
            function = job.function if surroundings is None else partial(surroundings, context)
            if job.batch is None:
                value = await self._invoke(holding, job, function, (context, *args) if job.takes_context else args, kwargs)
            else:
                value = await self._batches().outcome(holding, job, function, args[0])
            if holding.why_stopped == TIMED_OUT and isinstance(job, SyncJob) and not job.policy.timeout_raises:
                raise _timeout_of(holding)  # an async function that swallowed our cancellation and returned has succeeded
        except BaseException as error:
            if holding.in_thread is not None and self.threads is not None:
                self.threads.give_up(holding.in_thread)
            return self._completed(holding, self._judge(holding, job, error.error if isinstance(error, RaisedInThread) else error))
        finally:
            holding.in_thread = None
        if holding.completed is not None:
            return self._returned(holding, job)
        try:
            success = Succeeded(job.codec.encode_result(value))
        except BaseException as error:
            # The run's effects have already happened: another attempt would repeat them and fail in the same way.
            return self._failed(holding, unencodable(error, context.attempt), error)
        return decodable(success, job.codec.decode_result) if self._is_watched else success

    def _failed(self, holding: HeldLease, why: RunError, error: BaseException) -> Verdict:
        verdict = Failed(why)
        holding.record_raised(verdict, error)
        return verdict

    def _surroundings_of(self, job: AnyJob) -> Callable[..., Any] | None:
        """Return a function that calls the job's function with its dependencies and inside its context managers, including those of
        middleware. Return None if the job has neither."""
        # read here, not in `__post_init__`: a child process imports the application after it has created its executor
        of_middleware = [layer.around for layer in self.app.settings.middleware if type(layer).around is not Middleware.around]
        if self.app.is_in_child:
            of_middleware += [each.in_child for each in self.app.settings.telemetry if type(each).in_child is not Telemetry.in_child]
        found = surrounded(job.function, (*of_middleware, *job.around), job.dependencies, self.app.overrides, is_async=isinstance(job, Job))
        self._surroundings[job] = found
        if job.policy.timeout_raises:
            self._raising.add(job)
        return found

    def renew_surroundings(self) -> None:
        """Clear what is cached about jobs, because newly imported code may have declared them or configured context managers."""
        self._surroundings.clear()
        self._keeping.clear()

    def _invoke(
        self, holding: HeldLease, job: AnyJob, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Awaitable[Any]:
        if isinstance(job, Job):
            called: Awaitable[Any] = function(*args, **kwargs)
            return called
        assert self.threads is not None
        call: Callable[[], Any] = partial(function, *args, **kwargs)
        if job in self._raising:
            call = stoppable = StoppableCall(call)
            holding.stop = partial(_stop_raising, holding, stoppable, holding.stop)
        holding.in_thread = outcome = self.threads.run(call)
        return outcome

    def _complete(self, holding: HeldLease, connection: object, result: object) -> Awaitable[None]:
        job = self.registry.get(holding.lease.envelope.job)
        assert job is not None
        try:
            encoded = job.codec.encode_result(result)
        except errors.EncodeError as error:
            error.add_note("complete_in() takes the job's result as result=, not what the function returns.")
            raise
        return self._complete_with(holding, connection, encoded)

    def _complete_with(self, holding: HeldLease, connection: object, result: bytes) -> Awaitable[None]:
        """Settle the run on this connection: at once if the connection is synchronous, otherwise in the returned coroutine."""
        from taskflow.app.connections.adapters import adapter_class
        from taskflow.app.connections.run_in_transaction import run_in_transaction, run_in_transaction_sync

        if holding.is_offered:
            raise errors.TaskflowError("complete_in() was called after the run had ended")
        settlement = self._settlement(holding, Succeeded(result), time.monotonic())
        if not adapter_class(connection).is_awaited:
            with _completing(holding, result):
                _check_completed(run_in_transaction_sync(self.app, connection, "settle", lambda store: store.settle(settlement)))
            return DONE
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise TypeError(
                f"a {type(connection).__name__} is used with `await`, but a plain function runs without an event loop: make the job "
                "an async function, or use a synchronous connection"
            ) from None

        async def settle() -> None:
            with _completing(holding, result):
                _check_completed(await run_in_transaction(self.app, connection, "settle", lambda store: store.settle(settlement)))

        return settle()

    def _returned(self, holding: HeldLease, job: AnyJob) -> Verdict:
        otherwise = self._judge(holding, job, RolledBack())
        detach_exception(otherwise)  # nothing has been raised
        return Completed(otherwise)

    def _completed(self, holding: HeldLease, verdict: Verdict) -> Verdict:
        """Return the verdict to settle with, wrapped in Completed if the run was completed in a transaction but did not return normally."""
        if holding.completed is None or isinstance(verdict, Completed | Succeeded):
            return verdict
        completed = Completed(verdict)
        if verdict.exception is not None:
            holding.record_raised(completed, verdict.exception)
        return completed

    def _judge(self, holding: HeldLease, job: AnyJob | None, error: BaseException) -> Verdict:
        """Turn a raised error into a verdict. Never raises, although it runs code from the error's class and the job's policy."""
        try:
            if holding.why_stopped == TIMED_OUT and isinstance(error, errors.JobStopping | asyncio.CancelledError):
                timeout = _timeout_of(holding)
                error = timeout.with_traceback(error.__traceback__) if isinstance(error, errors.JobStopping) else timeout
            verdict = self._decide(holding, job, error)
        except BaseException as broken:  # `error` is the context of the new error, so the traceback shows it too
            error, verdict = broken, Failed(failure_of(broken, holding.lease.attempt))
        if isinstance(verdict, Failed | Retried | Discarded | Cancelled):
            holding.record_raised(verdict, error)
        return verdict

    def _decide(self, holding: HeldLease, job: AnyJob | None, error: BaseException) -> Verdict:
        """Return the verdict for an error. Snooze, Discard and Cancel come first, then the reason to stop, Retry, and the policy."""
        match error:
            case CancelledBeforeStart():
                return _not_begun(holding)
            case Snooze(after=after):
                return Snoozed(after, closes=isinstance(error, RateLimited))
            case Discard(reason=reason):
                return Discarded(reason)
            case Cancel(reason=reason):
                return Cancelled(reason)
        why, task = holding.why_stopped, asyncio.current_task()
        if why in (WINDING_DOWN, LOST) or (why is None and task is not None and task.cancelling() and self.is_cut_short()):
            return HandedBack()  # whatever the error is: our cancellation may have cut a connection, which is not a failure of the job
        if why == CANCELLED:
            return Cancelled(CANCELLED)  # whatever the error is: a cancelled job must not be retried
        if job is None:
            return Failed(failure_of(error, holding.lease.attempt))
        return self._retry_or_fail(holding, job, error)

    def _retry_or_fail(self, holding: HeldLease, job: AnyJob, error: BaseException) -> Verdict:
        lease, policy = holding.lease, job.policy
        ending = RunEnding.TIMED_OUT if holding.why_stopped == TIMED_OUT else RunEnding.FAILED
        noted = failure_of(error, lease.attempt, job.function, ending)
        # SystemExit, KeyboardInterrupt and cancellations by other code are failures too, and retried whatever `retry_on` says
        is_retried = isinstance(error, (ChildFailed, RolledBack, *policy.retry_on)) or not isinstance(error, Exception)
        is_final = lease.is_last_attempt or isinstance(error, errors.WrongBatchResult)
        if is_final or not (isinstance(error, Retry) or (is_retried and not isinstance(error, policy.discard_on))):
            return Failed(noted)
        wait = error.after if isinstance(error, Retry) else None
        if wait is None:
            wait = self._wait(lease, lease.envelope.retry or policy.retry, error)
        return Failed(noted) if wait is None else Retried(noted, wait)

    def _wait(self, lease: Lease, retry: Backoff | RetryFunction, error: BaseException) -> float | None:
        """Return the seconds to wait before the next attempt, or None if the job's retry function allows no more attempts."""
        if not isinstance(retry, Backoff):
            is_asked = isinstance(error, Exception) and not isinstance(error, RolledBack)  # a run with RolledBack may still have succeeded
            try:
                wait = retry(lease.attempt, error) if is_asked else None  # type: ignore[arg-type]
                if wait is not None:
                    return seconds_of("retry", wait)
                if is_asked and not isinstance(error, Retry):
                    return None
            except BaseException:  # an error in that function must neither lose the job nor end the worker
                said = "job %s (%s): its retry= function failed after attempt %d; the default back-off applies"
                log_safely(partial(log.error, exc_info=True), said, id_text(lease.envelope.id), lease.envelope.job, lease.attempt)
            retry = Backoff()
        return retry.wait(lease.failures, self.seams.chance)


def end_forked_process() -> NoReturn:
    """End this process: a job forked it, and then returned or raised in it. Otherwise, the process would continue as a second worker."""
    log_safely(log.error, "a job has returned in a process that it forked; ending the process. End forked processes with os._exit()")
    os._exit(1)


def _not_begun(holding: HeldLease) -> Verdict:
    """Return the verdict for a run that was stopped before its function was called. Such a run does not use up an attempt."""
    return Cancelled(CANCELLED) if holding.why_stopped == CANCELLED else HandedBack(counts=False)


def _stop_raising(holding: HeldLease, call: StoppableCall, stop: Callable[[], object] | None) -> None:
    """Stop a run in a thread. Only a timeout interrupts its function."""
    if stop is not None:
        stop()
    if holding.why_stopped == TIMED_OUT:
        call.stop()


def _timeout_of(holding: HeldLease) -> TimeoutError:
    envelope = holding.lease.envelope
    return TimeoutError(f"{envelope.job} ran longer than its timeout of {envelope.timeout:g} s")


@contextlib.contextmanager
def _completing(holding: HeldLease, result: bytes) -> Iterator[None]:
    """Record the result before the statement is sent, because even a cancelled call may have taken effect."""
    before, holding.completed = holding.completed, result
    try:
        yield
    except errors.TaskflowError:  # nothing has been settled
        holding.completed = before
        raise


def _check_completed(answer: Settled) -> None:
    if answer is Settled.HELD_UP:
        raise errors.BrokerUnavailable(
            "complete_in(): another open transaction has locked the job or its key: find it in pg_stat_activity (state 'idle in "
            "transaction'), and end it"
        )
    if answer is Settled.COMMITTED:
        raise errors.TaskflowError(
            "complete_in() was called in a second transaction, but the first one has committed, and the job has ended: call it once, "
            "in the last transaction of the job"
        )
    if answer is not Settled.OK:
        raise errors.LeaseLost(
            "complete_in(): the run no longer holds its job, which runs elsewhere or has ended; roll the transaction back"
        )
