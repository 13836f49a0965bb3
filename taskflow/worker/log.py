"""Logs the worker's events with the job's name, id, attempt and queue, but never with arguments or results."""

from __future__ import annotations

import logging
import os
import time
from typing import Any, Final

from taskflow.app.events import Event
from taskflow.model import verdict as verdicts
from taskflow.model.envelope import Lease
from taskflow.model.ids import id_text
from taskflow.model.printable import one_line
from taskflow.worker import events
from taskflow.worker.run_errors import ROLLED_BACK

log: Final = logging.getLogger("taskflow.worker")
PARK_INTERVAL: Final = 60.0  # minimum seconds between two lines about parked jobs of one name
_parked_at: Final = dict[str, float]()
BLOCKING: Final = "Make it a plain function, which runs in a thread, or use async libraries"
IN_PROCESS: Final = 'With runs_in="process" it gets a separate interpreter'

INTERRUPTED_HINT: Final = (
    "each time its worker was stopped, or lost the store, before it ended. Give workers a longer --grace, or split the job"
)


def log_event(event: Event) -> None:
    """Log an event. Subscribe this function to a worker's events."""
    if type(event) is events.RunEnded:  # by far the most frequent event
        if type(event.verdict) is not verdicts.Succeeded or log.isEnabledFor(logging.INFO):
            _log_verdict(event.lease, event.verdict, event.ran_for)
        return
    match event:
        case events.ChildPrinted(Lease() as lease, _, stream, line):
            if log.isEnabledFor(logging.INFO):
                _say(logging.INFO, lease, f"{stream}: {line}")
        case events.LeaseRevoked(lease):
            _say(logging.WARNING, lease, "lost its lease: another worker has the job, or it has ended; this run's result will be ignored")
        case events.VerdictsLost(leases, why):
            for lease in leases:
                _say(logging.ERROR, lease, f"has ended, but could not be settled ({why}): it will most likely run again")
        case events.VerdictIgnored(lease, verdict):
            _, outcome, details = _words(verdict)
            words = f"{outcome}{details} here, but that was ignored: another worker had taken the job, or it had ended"
            _say(logging.WARNING, lease, words)
        case events.CompletionRolledBack(lease, _, instead):
            level, outcome, details = _words(instead)
            words = f"was completed in a transaction that was rolled back: {outcome}{details}"
            _say(max(level, logging.WARNING), lease, words)
        case events.QuarantineStarted(lease, seconds):
            times = "once" if lease.crashes == 1 else f"{lease.crashes} times in a row"
            words = f"was lost with its worker {times}: nothing else starts here for {seconds:g} s, or until it ends"
            _say(logging.INFO if lease.crashes > 1 else logging.DEBUG, lease, words)
        case events.HandedBackOften(lease):
            _say(logging.WARNING, lease, f"was handed back {lease.hand_backs} times without an outcome: {INTERRUPTED_HINT}")
        case events.SettlementBlocked(lease):
            _say(logging.WARNING, lease, "has ended, but another program's open transaction blocks the write to the store; trying again")
        case events.VerdictRejected(lease, _, instead):
            _say(logging.ERROR, lease, f"failed for good: {_of(instead.error)}")
        case events.ReportDropped(lease, why):
            _say(logging.ERROR, lease, f"reported progress that cannot be written ({why}): this report is dropped")
        case events.StillRunning(lease, asked_for, why):
            _say(logging.WARNING, lease, f"was asked to stop {asked_for:.0f} s ago ({why}) and still runs; it keeps its slot")
        case _:
            _log_own(event)


def _log_own(event: Event) -> None:
    match event:
        case events.SessionOpened(name):
            log.info("working as %s", name)
        case events.SessionEnded(name, why, is_followed):
            log.error("the session of %s has ended: %s%s", name, why, "; starting a new one" if is_followed else "")
        case events.ServiceFailed(service, error, pause):
            log.error("%s failed and will restart in %.1f s; this is a bug in taskflow or its broker", service, pause, exc_info=error)
        case events.WaitingForBroker(why, seconds):
            log.warning("the broker does not answer yet; trying for at most %g s: %s", seconds, why)
        case events.ScheduleFired(name, job_id, is_added, late_by):
            words = f"added job {id_text(job_id)}" if is_added else f"added no job, because job {id_text(job_id)} exists"
            log.info("schedule %s %s, %.3f s after its time", one_line(name), words, late_by)
        case events.ScheduleMissed(name, count):
            log.warning("schedule %s missed %d firings: they were later than its catch_up or max_delay allows", one_line(name), count)
        case events.ScheduleFailed(name, why):
            log.error("schedule %s cannot be used: %s", one_line(name), one_line(why))
        case events.BrokerCallFailed(operation, why, times) if times == 1:
            log.warning("%s failed, trying again: %s", operation, why)
        case events.BrokerRecovered(operation):
            log.info("%s works again", operation)
        case events.LeaveFailed(name, why, ttl):
            log.warning("%s could not notify the broker that it is stopping; its remaining jobs run again after %g s: %s", name, ttl, why)
        case events.DescriptorsClosed(why):
            log.critical("a job has closed file descriptors of the worker: %s", why)
        case events.ChildPrinted(_, pid, stream, line):
            log.info("child process %d, between two jobs, %s: %s", pid, stream, one_line(line))
        case events.WindingDown(running, grace):
            log.info("winding down: %d running, for at most %g s", running, grace)
        case _:
            _log_standstill(event)


def _log_standstill(event: Event) -> None:
    match event:
        case events.LoopStalled(lease, seconds, stack):
            words = f"blocks the event loop for {seconds:.1f} s: nothing else can run"
            words = f"{words}. {BLOCKING}" if lease else f"{words}. Or the machine is overloaded (load average {os.getloadavg()[0]:.1f})"
            _say_where(logging.WARNING, lease, words, stack)
        case events.LoopResumed(seconds):
            log.warning("the event loop is responding again after %.1f s", seconds)
        case events.InterpreterBlocked(lease, seconds, ttl, is_computed, stack):
            lapsed = _lapsed(seconds, ttl)
            if is_computed:
                words = f"kept the interpreter lock (GIL) for {seconds:.1f} s in C code: no thread could run, no heartbeat was sent{lapsed}"
                _say_where(logging.ERROR if lapsed else logging.WARNING, lease, f"{words}. {IN_PROCESS}", stack)
            else:
                why = "it was stopped, the machine is overloaded, or C code held the interpreter lock"
                then = f"; the event loop was running {_name(lease)}" if lease else ""
                log.warning("the process was suspended for %.1f s: %s%s%s", seconds, why, lapsed, then)
        case events.StalledForGood(lease, seconds, stacks):
            words = f"has blocked the event loop for {seconds:.0f} s: this worker stops its heartbeat, so that others take its jobs"
            _say_where(logging.CRITICAL, lease, f"{words}. All threads:", stacks)
        case _:
            log.debug("%r", event)


def _lapsed(seconds: float, ttl: float) -> str:
    """Return a warning to append if the ttl may have passed, or "". The last heartbeat may be a quarter of the ttl older than the stall."""
    may_lapse = seconds > 0.7 * ttl
    return f"; after the ttl of {ttl:g} s others may take its jobs, which counts as a crash" if may_lapse else ""


def _log_verdict(lease: Lease, verdict: verdicts.Verdict, ran_for: float) -> None:
    level, outcome, details = _words(verdict)
    if not log.isEnabledFor(level):
        return
    if type(verdict) is verdicts.Parked:
        name, now = lease.envelope.job, time.monotonic()
        if now - _parked_at.get(name, -PARK_INTERVAL) < PARK_INTERVAL:
            return
        _parked_at[name] = now
    else:
        outcome += f" after {ran_for:.3f} s"
    _say(level, lease, outcome + details, _traceback(verdict))


def _words(verdict: verdicts.Verdict) -> tuple[int, str, str]:
    """Return the log level for a verdict, its outcome in words, and the details that follow."""
    match verdict:
        case verdicts.Succeeded():
            return logging.INFO, "succeeded", ""
        case verdicts.Failed(error):
            return logging.ERROR, "failed for good", f": {_of(error)}"
        case verdicts.Retried(error, after):
            return logging.WARNING, "failed", f", again in {after:.1f} s: {_of(error)}"
        case verdicts.Discarded(reason):
            return logging.WARNING, "discarded itself", f": {reason}"
        case verdicts.Cancelled(reason):
            return logging.INFO, "cancelled", f": {reason}"
        case verdicts.Snoozed(after):
            return logging.INFO, f"snoozed for {after:.1f} s", ""
        case verdicts.Parked(waiting_for, after):
            return logging.WARNING, f"parked for {after:.1f} s", f": it waits for {waiting_for}"
        case verdicts.HandedBack():
            return logging.INFO, "handed back", ""
        case verdicts.Completed(verdicts.Failed(error) | verdicts.Retried(error)) if error.type != ROLLED_BACK:
            return logging.WARNING, "called complete_in()", f", and raised {_of(error)}; it has succeeded if the transaction has committed"
        case verdicts.Completed():
            return logging.INFO, "completed in its transaction", ""
    return logging.INFO, type(verdict).__name__, ""


def _traceback(verdict: verdicts.Verdict) -> str:
    if isinstance(verdict, verdicts.Completed):
        return _traceback(verdict.otherwise) if _words(verdict)[2] else ""
    if not isinstance(verdict, verdicts.Failed | verdicts.Retried):
        return ""
    return f"{verdict.error.traceback.rstrip()}\n".removeprefix(f"{_of(verdict.error)}\n").rstrip()


def _of(error: verdicts.RunError) -> str:
    return f"{error.type}: {error.message}"


def _say(level: int, lease: Lease, words: str, traceback: str = "") -> None:
    words = one_line(words)  # an application's own formatter may not escape a job's text
    if not traceback:
        log.log(level, "%s %s", _name(lease), words, extra=_fields(lease))
        return
    # The error is already text, perhaps from a child process: formatters print `exc_text` instead of formatting `exc_info`.
    record = log.makeRecord(log.name, level, __file__, 0, "%s %s", (_name(lease), words), None, extra=_fields(lease))
    record.exc_text = traceback
    log.handle(record)


def _say_where(level: int, lease: Lease | None, words: str, stack: str) -> None:
    """Log the message with the stack below it, like logging's `stack_info`."""
    if log.isEnabledFor(level):
        name, fields = (_name(lease), _fields(lease)) if lease else ("code outside of jobs", None)
        log.handle(log.makeRecord(log.name, level, __file__, 0, "%s %s", (name, words), None, extra=fields, sinfo=stack or None))


def _name(lease: Lease) -> str:
    envelope = lease.envelope
    return one_line(f"{envelope.job} {id_text(envelope.id)} (attempt {lease.attempt}, queue {envelope.queue})")


def _fields(lease: Lease) -> dict[str, Any]:
    envelope = lease.envelope
    return {"job": envelope.job, "job_id": id_text(envelope.id), "attempt": lease.attempt, "queue": envelope.queue}
