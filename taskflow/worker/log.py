"""The one subscriber that logs: job name, id, attempt and queue; arguments and results never."""

from __future__ import annotations

import logging
from typing import Any, Final

from taskflow.model.envelope import Lease
from taskflow.model.ids import id_text
from taskflow.model.verdict import Cancelled, Discarded, Failed, HandedBack, Parked, Retried, RunError, Snoozed, Succeeded, Verdict
from taskflow.worker.events import (
    Broken,
    BrokerBack,
    BrokerTrouble,
    Ended,
    Event,
    LeaseLost,
    NotCounted,
    NotLeft,
    Printed,
    SessionEnded,
    SessionOpened,
    Started,
    StillRunning,
    Unwritable,
    VerdictsLost,
    WindingDown,
)

log: Final = logging.getLogger("taskflow.worker")


def log_event(event: Event) -> None:
    """Subscribe this to a worker's events."""
    match event:
        case Started(lease):
            if log.isEnabledFor(logging.DEBUG):
                _say(logging.DEBUG, lease, "started")
        case Ended(lease, verdict, ran_for):
            _log_verdict(lease, verdict, ran_for)
        case Printed(Lease() as lease, _, stream, line):
            if log.isEnabledFor(logging.INFO):
                _say(logging.INFO, lease, f"{stream}: {line}")
        case LeaseLost(lease):
            _say(logging.WARNING, lease, "lost: another worker has it now, or it was ended; this run will not count")
        case VerdictsLost(leases, why):
            for lease in leases:
                _say(logging.ERROR, lease, f"cannot be settled, since the settler has failed ({why}): it runs again elsewhere")
        case NotCounted(lease, verdict):
            _, words = _words(verdict)
            _say(logging.WARNING, lease, f"was another worker's by then, or had been ended: that its run here {words} does not count")
        case Unwritable(lease, _, instead):
            _say(logging.ERROR, lease, f"failed for good: {_of(instead.error)}")
        case StillRunning(lease, asked_for, why):
            _say(logging.WARNING, lease, f"was asked to stop {asked_for:.0f} s ago ({why}) and runs still: its slot stays taken")
        case _:
            _log_own(event)


def _log_own(event: Event) -> None:
    match event:
        case SessionOpened(name):
            log.info("working as %s", name)
        case SessionEnded(name, why):
            log.error("the session of %s has ended: %s; a new one follows", name, why)
        case BrokerTrouble(doing, why, times) if times == 1:
            log.warning("%s did not reach the broker, and is tried again: %s", doing, why)
        case BrokerBack(doing):
            log.info("%s reaches the broker again", doing)
        case NotLeft(name, why, ttl):
            log.warning("%s could not tell the broker that it leaves, what it holds still runs again after %g s: %s", name, ttl, why)
        case Broken(why):
            log.critical("a job has closed file descriptors that were not its own: %s", why)
        case Printed(_, pid, stream, line):
            log.info("child process %d, between two jobs, %s: %s", pid, stream, line)
        case WindingDown(running, grace):
            log.info("winding down: %d running, for at most %g s", running, grace)
        case _:
            log.debug("%r", event)


def _log_verdict(lease: Lease, verdict: Verdict, ran_for: float) -> None:
    level, words = _words(verdict)
    if log.isEnabledFor(level):
        _say(level, lease, f"{words} after {ran_for:.3f} s")


def _words(verdict: Verdict) -> tuple[int, str]:
    match verdict:
        case Succeeded():
            return logging.INFO, "succeeded"
        case Failed(error):
            return logging.ERROR, f"failed for good: {_of(error)}"
        case Retried(error, after):
            return logging.WARNING, f"failed, again in {after:.1f} s: {_of(error)}"
        case Discarded(reason):
            return logging.ERROR, f"discarded: {reason}"
        case Cancelled(reason):
            return logging.INFO, f"cancelled: {reason}"
        case Snoozed(after):
            return logging.INFO, f"snoozed for {after:.1f} s"
        case Parked(waiting_for, after):
            return logging.WARNING, f"parked for {after:.1f} s: it waits for {waiting_for}"
        case HandedBack():
            return logging.INFO, "handed back"
    return logging.INFO, type(verdict).__name__


def _of(error: RunError) -> str:
    return f"{error.type}: {error.message}"


def _say(level: int, lease: Lease, words: str) -> None:
    envelope = lease.envelope
    fields: dict[str, Any] = {"job": envelope.job, "job_id": id_text(envelope.id), "attempt": lease.attempt, "queue": envelope.queue}
    log.log(level, "%s %s (attempt %d, queue %s) %s", envelope.job, fields["job_id"], lease.attempt, envelope.queue, words, extra=fields)
