"""What the end of a run makes of its job."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given, strategies as st

from taskflow.model.clock import to_microseconds
from taskflow.model.job_schema import Counters
from taskflow.model.record import Status
from taskflow.model.rules import Rules
from taskflow.model.transitions import MOVES, Transition, apply_verdict, crash, hand_back, requeue
from taskflow.model.verdict import (
    Cancelled,
    Completed,
    Discarded,
    Failed,
    HandedBack,
    Parked,
    Retried,
    RunError,
    Snoozed,
    Succeeded,
    Verdict,
)

RULES: Final = Rules()
NOW: Final = 1_000_000_000
ERROR: Final = RunError("ValueError", "no")
VERDICTS: Final = (
    Succeeded(b""),
    Failed(ERROR),
    Discarded("no use"),
    Cancelled("asked to"),
    Retried(ERROR, 5.0),
    Snoozed(5.0),
    Parked("a newer worker", 5.0),
    HandedBack(),
    HandedBack(counts=False),
    Completed(Failed(ERROR)),
)

counters = st.builds(Counters, *[st.integers(0, 20)] * 4, st.none() | st.integers(0, NOW))


@given(job=counters, verdict=st.sampled_from(VERDICTS), cancel=st.none() | st.just("asked to"), successor=st.none() | st.just(bytes(16)))
def test_every_plan_is_a_legal_move(job: Counters, verdict: Verdict, cancel: str | None, successor: bytes | None) -> None:
    transition = apply_verdict(job, verdict, RULES, NOW)
    if transition.ends_as is None:
        transition = requeue(transition, cancel, successor)

    assert status_after(transition) in MOVES[Status.RUNNING, transition.event]
    assert (transition.ends_as is None) == (not verdict.is_final and cancel is None and successor is None)


@given(job=counters, is_stopping=st.booleans())
def test_a_crash_is_poison_beyond_the_limit_only(job: Counters, is_stopping: bool) -> None:
    transition = crash(job, RULES, NOW, worker="w", died_of="", is_stopping=is_stopping)

    assert status_after(transition) in MOVES[Status.RUNNING, transition.event]
    assert transition.is_poison == (job.crashes + 1 > RULES.max_crashes and not is_stopping)
    assert transition.counters == job._replace(crashes=job.crashes + 1)


@given(job=counters)
def test_a_hand_back_never_ends_a_job(job: Counters) -> None:
    assert hand_back(job, RULES, NOW, counts=True).ends_as is None
    assert hand_back(job, RULES, NOW, counts=False) == Transition(hand_back(job, RULES, NOW, counts=False).event, job)


@pytest.mark.parametrize("verdict", VERDICTS, ids=lambda verdict: type(verdict).__name__)
def test_an_outcome_resets_the_counts_of_lost_leases(verdict: Verdict) -> None:
    after = apply_verdict(Counters(crashes=2, hand_backs=3, parked_at=7), verdict, RULES, NOW).counters

    if isinstance(verdict, HandedBack | Parked):
        assert after == Counters(crashes=2, hand_backs=3 + (verdict == HandedBack()), parked_at=7)
    else:
        assert (after.crashes, after.hand_backs, after.parked_at) == (0, 0, None)


@given(job=counters, otherwise=st.sampled_from([verdict for verdict in VERDICTS if not isinstance(verdict, Succeeded | Completed)]))
def test_a_completion_that_rolled_back_is_settled_as_the_other_verdict(job: Counters, otherwise: Verdict) -> None:
    assert apply_verdict(job, Completed(otherwise), RULES, NOW) == apply_verdict(job, otherwise, RULES, NOW)


@pytest.mark.parametrize("otherwise", [Succeeded(b""), Completed(Failed(ERROR)), None])
def test_a_completion_that_rolled_back_is_never_a_success(otherwise: Verdict) -> None:
    with pytest.raises(TypeError, match="otherwise="):
        Completed(otherwise)


def status_after(transition: Transition) -> Status:
    """The status of a job that awaits nothing."""
    return transition.ends_as or (Status.SCHEDULED if (transition.due_at or NOW) > NOW else Status.READY)


def test_a_retry_waits_for_its_time() -> None:
    assert apply_verdict(Counters(), Retried(ERROR, 5.0), RULES, NOW).due_at == NOW + to_microseconds(5.0)
