"""Settlements of a lease, in one word each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from taskflow.model import wording
from taskflow.model.envelope import Lease, notes_of
from taskflow.model.fingerprint import cause_of
from taskflow.model.verdict import (
    Cancelled,
    Discarded,
    Failed,
    HandedBack,
    Parked,
    Retried,
    RunError,
    Settlement,
    Snoozed,
    Succeeded,
    Verdict,
)

SettlementOf = Callable[..., Settlement]

A_RESULT: Final = b"\x01result"
AN_ERROR: Final = RunError("builtins.ValueError", "no such user", "Traceback: line 1")


def settlement(lease: Lease, verdict: Verdict, **more: Any) -> Settlement:
    more.setdefault("cause", cause_of(verdict, ""))
    return Settlement(id=lease.envelope.id, epoch=lease.epoch, claim=lease.claim, verdict=verdict, **more)


def succeeded(lease: Lease, result: bytes = A_RESULT, **more: Any) -> Settlement:
    """Return the settlement of a success as a worker sends it, including what the lease says about other jobs."""
    joins = lease.envelope.joins
    in_flow = {"notes": notes_of(lease.envelope), "awaited_by": joins[0] if len(joins) == 1 else None}
    return settlement(lease, Succeeded(result), **{**in_flow, **more})


def failed(lease: Lease, error: RunError = AN_ERROR, **more: Any) -> Settlement:
    return settlement(lease, Failed(error), **more)


def discarded(lease: Lease, reason: str = "not wanted", **more: Any) -> Settlement:
    return settlement(lease, Discarded(reason), **more)


def cancelled(lease: Lease, reason: str = "asked to", **more: Any) -> Settlement:
    return settlement(lease, Cancelled(reason), **more)


def retried(lease: Lease, after: float = 0.0, error: RunError = AN_ERROR, **more: Any) -> Settlement:
    return settlement(lease, Retried(error, after), **more)


def snoozed(lease: Lease, after: float = 0.0, **more: Any) -> Settlement:
    return settlement(lease, Snoozed(after), **more)


def parked(lease: Lease, after: float = 0.0, waiting_for: str = wording.UNKNOWN_JOB % "work", **more: Any) -> Settlement:
    return settlement(lease, Parked(waiting_for, after), **more)


def handed_back(lease: Lease, *, counts: bool = True, **more: Any) -> Settlement:
    return settlement(lease, HandedBack(counts), **more)
