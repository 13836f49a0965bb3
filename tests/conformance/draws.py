"""What the machine draws (envelopes, verdicts, filters) and what it knows of a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from taskflow.broker.admin import View
from taskflow.model.envelope import ClaimId, Lease, OnConflict
from taskflow.model.record import Status
from taskflow.model.session import Session
from tests.support.verdicts import SettlementOf, cancelled, discarded, failed, handed_back, parked, retried, snoozed, succeeded

QUEUES = ("a", "b")
PICK = st.integers(0, 30)
LIMITS = st.sampled_from((1, 2, 5))
CAUSES_OF_DEATH = st.sampled_from(("signal SIGSEGV", "exit code 77", "of «nothing» %s"))
ENDS_OF_WORKERS = st.sampled_from(("falls silent", "falls silent", "dies", "hands back"))


@dataclass
class WorkerModel:
    """A session as its worker sees it: its leases, its requests, and whose answers it has processed."""

    session: Session
    asked: int = 0
    seen: int = 0
    asked_for: tuple[Sequence[str], int] = ((), 1)
    holds: dict[ClaimId, Lease] = field(default_factory=dict)


# --- what is drawn --------------------------------------------------------------------------------------------------------


@st.composite
def envelope_fields(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the fields of an envelope. Most are plain, so that there is something to run."""
    queue = draw(st.sampled_from(QUEUES))
    fields: dict[str, Any] = {"queue": queue, "priority": draw(st.sampled_from((0, 0, 0, 1, -1))), "max_attempts": draw(st.integers(1, 2))}
    match draw(st.integers(0, 7)):
        case 0:
            fields["after"] = draw(st.sampled_from((0.5, 3.0, 30.0)))
        case 1:
            fields["ago"] = draw(st.sampled_from((-100.0, 0.0, 5.0)))
        case 2:
            fields["expires"] = draw(st.sampled_from((1.0, 7.0, 40.0)))
        case 3 | 4:
            fields["key"] = draw(st.sampled_from(("k1", "k2")))
            fields["on_conflict"] = draw(st.sampled_from(OnConflict))
        case 5:
            fields["awaits"] = draw(st.integers(1, 2))
        case 6:
            fields["join"] = draw(PICK)
        case _:
            pass
    if draw(st.integers(0, 2)) == 0:
        fields["tags"] = draw(st.sampled_from((("t1",), ("t2", "t1"))))
    return fields


@st.composite
def verdicts(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    name = draw(st.sampled_from(tuple(SETTLEMENTS)))
    after = draw(st.sampled_from((0.0, 2.0, 15.0)))
    arguments: dict[str, Any] = {"ran_for": draw(st.sampled_from((0.0, 1.5)))}
    if name in ("retried", "snoozed", "parked"):
        arguments["after"] = after
    if name == "succeeded":
        arguments["keep_for"] = draw(st.sampled_from((0.0, 25.0, 300.0)))
        arguments["arguments"] = draw(st.sampled_from((None, None, b"kept")))
    if name == "handed_back":
        arguments["counts"] = draw(st.booleans())
    return name, arguments


SETTLEMENTS: dict[str, SettlementOf] = {
    "succeeded": succeeded,
    "failed": failed,
    "discarded": discarded,
    "cancelled": cancelled,
    "retried": retried,
    "snoozed": snoozed,
    "parked": parked,
    "handed_back": handed_back,
}

FILTERS = st.builds(
    View,
    queue=st.sampled_from((None, *QUEUES)),
    statuses=st.sampled_from(((), (Status.READY,), (Status.FAILED, Status.CANCELLED), (Status.SUCCEEDED,))),
    ended_before=st.sampled_from((None, None, 5.0)),
    poison=st.sampled_from((False, False, False, True)),
    tag=st.sampled_from((None, None, "t1", "t2")),
)
