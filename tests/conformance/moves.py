"""One scenario for each legal move: how a job is brought to make it, through operations alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from taskflow.broker.admin import View
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.record import Status
from taskflow.model.session import Session
from taskflow.model.transitions import MOVES, Event
from taskflow.model.verdict import Settlement
from tests.support.verdicts import cancelled, discarded, failed, handed_back, parked, retried, snoozed, succeeded
from tests.support.world import World

Move = tuple[Status | None, Event, Status | None]
LEGAL: Final[tuple[Move, ...]] = tuple(sorted(((was, event, to) for (was, event), targets in MOVES.items() for to in targets), key=str))


@dataclass
class Stage:
    """A job brought to where a move begins. `world` has rules under which one crash or hand-back too many is quickly come by."""

    world: World
    envelope: Envelope
    session: Session
    lease: Lease | None = None
    joiner: Envelope | None = None

    async def settle(self, settlement: Callable[..., Settlement], *arguments: Any) -> None:
        assert self.lease is not None
        await self.world.settle(settlement(self.lease, *arguments))

    async def claim(self) -> None:
        [self.lease] = await self.world.claim(self.session, [self.envelope.queue])


# --- where moves begin ----------------------------------------------------------------------------------------------------


async def _none(stage: Stage) -> None:
    """Not there yet: the envelope is made and not sent."""


async def _held(stage: Stage) -> None:
    if not stage.envelope.awaits:  # behind a run with its key
        await stage.world.enqueue(msgspec.structs.replace(stage.envelope, id=stage.world.an_id(), after=0.0))
        await stage.claim()
        await stage.world.enqueue(stage.envelope)
        return
    stage.joiner = stage.world.an_envelope(queue="joiners", joins=(stage.envelope.id,))
    await stage.world.enqueue(stage.envelope, stage.joiner)


async def _waiting(stage: Stage) -> None:
    await stage.world.enqueue(stage.envelope)


async def _running(stage: Stage) -> None:
    await _waiting(stage)
    await stage.claim()


def _ended_by(settlement: Callable[..., Settlement]) -> Callable[[Stage], Awaitable[None]]:
    async def end(stage: Stage) -> None:
        await _running(stage)
        await stage.settle(settlement)

    return end


BEGINNINGS: Final[dict[Status | None, Callable[[Stage], Awaitable[None]]]] = {
    None: _none,
    Status.HELD: _held,
    Status.SCHEDULED: _waiting,
    Status.READY: _waiting,
    Status.RUNNING: _running,
    Status.SUCCEEDED: _ended_by(succeeded),
    Status.FAILED: _ended_by(failed),
    Status.CANCELLED: _ended_by(cancelled),
}


def fields_for(move: Move) -> dict[str, Any]:
    """What the envelope must be like for the move to come about."""
    was, event, to = move
    fields: dict[str, Any] = {"key": "k", "expires": 1_000.0}
    if (was, event, to) == (Status.HELD, Event.RELEASE, Status.SCHEDULED):  # one that awaits others may be HELD until it is due
        fields["on_conflict"] = OnConflict.REPLACE
    elif Status.HELD in (was, to):
        fields["awaits"] = 1
    if was is Status.SCHEDULED or (to is Status.SCHEDULED and event in (Event.ENQUEUE, Event.RELEASE)):
        fields["after"] = 60.0
    return fields


# --- what makes them ------------------------------------------------------------------------------------------------------


async def _enqueue(stage: Stage, to: Status | None) -> None:
    await stage.world.enqueue(stage.envelope)


async def _release(stage: Stage, to: Status | None) -> None:
    if stage.joiner is None:
        await stage.settle(succeeded)
    else:
        await stage.world.cancel(stage.joiner)


async def _due(stage: Stage, to: Status | None) -> None:
    await stage.world.pass_time(60.0)


async def _claim(stage: Stage, to: Status | None) -> None:
    await stage.claim()


def _settled(settlement: Callable[..., Settlement]) -> Callable[[Stage, Status | None], Awaitable[None]]:
    async def settle(stage: Stage, to: Status | None) -> None:
        await stage.settle(settlement)

    return settle


def _waiting_again(settlement: Callable[..., Settlement]) -> Callable[[Stage, Status | None], Awaitable[None]]:
    async def settle(stage: Stage, to: Status | None) -> None:
        await _mark(stage, to)
        await stage.settle(settlement, 60.0 if to is Status.SCHEDULED else 0.0)

    return settle


async def _hand_back(stage: Stage, to: Status | None) -> None:
    await _mark(stage, to)
    if to is Status.SCHEDULED:
        await stage.settle(handed_back)
        await stage.claim()
    await stage.settle(handed_back)


async def _ghost(stage: Stage, to: Status | None) -> None:
    await _mark(stage, to)
    stage.world.clock.advance(stage.world.rules.ghost_after + 1.0)
    await stage.world.beat(stage.session)


async def _crash(stage: Stage, to: Status | None) -> None:
    await _mark(stage, to)
    for _ in range({Status.SCHEDULED: 1, Status.FAILED: 2}.get(to or Status.READY, 0)):
        await stage.world.reap(stage.session)
        await stage.world.pass_time(60.0)
        stage.session = await stage.world.a_session()
        await stage.claim()
    await stage.world.reap(stage.session)


async def _mark(stage: Stage, to: Status | None) -> None:
    if to is Status.CANCELLED:
        await stage.world.cancel(stage.envelope)


async def _cancel(stage: Stage, to: Status | None) -> None:
    if stage.lease is None:
        await stage.world.cancel(stage.envelope)
    else:
        await stage.settle(cancelled)


async def _expire(stage: Stage, to: Status | None) -> None:
    stage.world.clock.advance(1_000.0)
    # Due or not, it is past its expiry: whatever upkeep does with it in between, it ends.
    await stage.world.upkeep()


async def _replace(stage: Stage, to: Status | None) -> None:
    await stage.world.enqueue(stage.world.an_envelope(queue="stage", key="k", on_conflict=OnConflict.REPLACE))


async def _redo(stage: Stage, to: Status | None) -> None:
    await stage.world.broker.admin.retry([stage.envelope.id])


async def _drop(stage: Stage, to: Status | None) -> None:
    await stage.world.broker.admin.purge(View())


CAUSES: Final[dict[Event, Callable[[Stage, Status | None], Awaitable[None]]]] = {
    Event.ENQUEUE: _enqueue,
    Event.RELEASE: _release,
    Event.DUE: _due,
    Event.CLAIM: _claim,
    Event.SUCCEED: _settled(succeeded),
    Event.FAIL: _settled(failed),
    Event.DISCARD: _settled(discarded),
    Event.RETRY: _waiting_again(retried),
    Event.SNOOZE: _waiting_again(snoozed),
    Event.PARK: _waiting_again(parked),
    Event.HAND_BACK: _hand_back,
    Event.GHOST: _ghost,
    Event.CRASH: _crash,
    Event.CANCEL: _cancel,
    Event.EXPIRE: _expire,
    Event.REPLACE: _replace,
    Event.REDO: _redo,
    Event.DROP: _drop,
}


async def set_up(world: World, move: Move) -> Stage:
    """The job where the move begins."""
    world = world.under(hand_back_backoff=(0.0, 5.0), max_crashes=2, crash_backoff=(0.0, 5.0))
    stage = Stage(world, world.an_envelope(queue="stage", **fields_for(move)), await world.a_session())
    await BEGINNINGS[move[0]](stage)
    return stage
