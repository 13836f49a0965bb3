"""The table of legal moves, move by move: each is made on every broker, and is counted as what it is."""

from __future__ import annotations

from collections import Counter

import pytest

from taskflow.model.record import Status
from taskflow.model.transitions import MOVES, Event
from tests.conformance.moves import CAUSES, LEGAL, Move, Stage, set_up
from tests.support.world import World


def _named(move: Move) -> str:
    was, event, to = move
    return f"{was}-{event}-{to}".replace(" ", "_")


async def _made(stage: Stage) -> Counter[str]:
    metrics = await stage.world.broker.admin.metrics()
    return Counter(metrics.totals.get("stage", {}))


@pytest.mark.parametrize("move", LEGAL, ids=_named)
async def test_every_legal_move_is_made(world: World, move: Move) -> None:
    """From where the table says, by that event, to where it says; the event is in the queue's totals."""
    was, event, to = move
    stage = await set_up(world, move)
    assert await stage.world.status(stage.envelope) is was
    before = await _made(stage)

    await CAUSES[event](stage, to)

    assert await stage.world.status(stage.envelope) is to
    assert (await _made(stage) - before)[event] >= 1


def test_every_event_has_its_cause_and_its_moves() -> None:
    """No event without a move, and none that no operation brings about."""
    assert {event for _, event in MOVES} == set(Event) == set(CAUSES)


def test_every_status_is_entered_and_left() -> None:
    """A job can come to each status, and from each it goes on: what has ended is dropped."""
    entered = {to for targets in MOVES.values() for to in targets}
    left = {was for was, _ in MOVES}

    assert entered == left == {*Status, None}
