"""What each verdict makes of a run, as one table: verdict x mark -> the record expected."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final, NamedTuple

import msgspec

from taskflow.model.clock import instant_of, to_microseconds
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.fingerprint import cause_of
from taskflow.model.ids import id_text
from taskflow.model.record import Record, Status
from taskflow.model.verdict import (
    Cancelled,
    Completed,
    Discarded,
    Failed,
    HandedBack,
    Parked,
    Retried,
    Settled,
    Snoozed,
    Succeeded,
    Verdict,
)
from tests.support.verdicts import A_RESULT, AN_ERROR, settlement
from tests.support.world import World

PLAIN: Final = "plain"
MARKED: Final = "asked to stop"
REPLACED: Final = "a replacement waits behind it"

RAN_FOR: Final = 2.5
KEEP_FOR: Final = 77.0

Change = dict[str, Any]


class Outcome(NamedTuple):
    """A verdict, the status that it leads to, the wait that it requests, and what else it changes in the record."""

    verdict: Verdict
    status: Status
    after: float | None = None
    changes: Change = {}

    def __str__(self) -> str:
        wait = "" if self.after is None else f"-{self.after:g}s"
        return f"{type(self.verdict).__name__}{wait}{'' if getattr(self.verdict, 'counts', True) else '-uncounted'}"


_A_FAILURE: Final[Change] = {"failures": 1, "errors": 1}

ENDING: Final = (
    Outcome(Succeeded(A_RESULT), Status.SUCCEEDED, changes={"result": A_RESULT}),
    Outcome(Failed(AN_ERROR), Status.FAILED, changes={**_A_FAILURE, "reason": "builtins.ValueError: no such user"}),
    Outcome(Discarded("not wanted"), Status.FAILED, changes={"reason": "not wanted"}),
    Outcome(Cancelled("by itself"), Status.CANCELLED, changes={"reason": "by itself"}),
    Outcome(Completed(Discarded("rolled back")), Status.FAILED, changes={"reason": "rolled back"}),
)
WAITING_AGAIN: Final = (
    Outcome(Retried(AN_ERROR, 0.0), Status.READY, 0.0, _A_FAILURE),
    Outcome(Retried(AN_ERROR, 30.5), Status.SCHEDULED, 30.5, _A_FAILURE),
    Outcome(Snoozed(0.0), Status.READY, 0.0, {"snoozes": 1}),
    Outcome(Snoozed(3_600.0), Status.SCHEDULED, 3_600.0, {"snoozes": 1}),
    Outcome(Parked("job nobody.knows", 0.0), Status.READY, 0.0, {"waiting_for": "job nobody.knows"}),
    Outcome(Parked("job nobody.knows", 5.0), Status.SCHEDULED, 5.0, {"waiting_for": "job nobody.knows"}),
    Outcome(HandedBack(counts=True), Status.READY, None, {"hand_backs": 1}),
    Outcome(HandedBack(counts=False), Status.READY, None, {}),
    Outcome(Completed(Retried(AN_ERROR, 30.5)), Status.SCHEDULED, 30.5, _A_FAILURE),
)
OUTCOMES: Final = ENDING + WAITING_AGAIN


async def check_outcome(world: World, outcome: Outcome, mark: str) -> None:
    """Settle a marked run with the verdict, and compare the record field by field; another clause covers which payloads are dropped."""
    lease = await world.running(await world.a_session("w1"), queue="default", key="k", headers={"a": "b"})
    behind = await _put_mark(world, lease, mark)
    before = await world.record(lease)
    world.clock.advance(3.0)

    assert await world.settle(settlement(lease, outcome.verdict, ran_for=RAN_FOR, keep_for=KEEP_FOR)) == [Settled.OK]

    record = await world.record(lease)
    assert msgspec.structs.replace(record, payload=before.payload) == _expected(world, before, outcome, mark, behind)
    if behind is not None:
        assert await world.status(behind) is Status.READY


async def _put_mark(world: World, lease: Lease, mark: str) -> Envelope | None:
    if mark == MARKED:
        await world.cancel(lease)
    if mark == REPLACED:
        behind = world.an_envelope(key="k", on_conflict=OnConflict.REPLACE)
        await world.enqueue(behind)
        return behind
    return None


def _expected(world: World, before: Record, outcome: Outcome, mark: str, behind: Envelope | None) -> Record:
    now = instant_of(world.clock.wall())
    changes = {"status": outcome.status, "started_at": now - timedelta(seconds=RAN_FOR), "cause": cause_of(outcome.verdict, "")}
    changes |= outcome.changes
    if changes.pop("errors", 0):
        ended_at = world.clock.wall()
        changes["errors"] = (AN_ERROR.of_run("w1", ended_at - to_microseconds(RAN_FOR), ended_at),)
    if outcome.after is not None:
        changes["due_at"] = now + timedelta(seconds=outcome.after)
    if outcome.status.is_ended:
        changes["ended_at"] = now
    elif mark != PLAIN:
        changes |= {
            "status": Status.CANCELLED,
            "ended_at": now,
            "reason": _reason(mark, behind),
            "waiting_for": None,
            "due_at": before.due_at,
        }
    return msgspec.structs.replace(before, **changes)


def _reason(mark: str, behind: Envelope | None) -> str:
    return "cancelled" if behind is None else f"replaced by {id_text(behind.id)}"
