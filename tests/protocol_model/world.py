"""The world around the store: worker processes, messages under way, mishaps. `successors` gives everything that may happen next.

Every reduction here leaves out states, not behaviours:

- What was sent may arrive at any later time, any number of times, or never: delays, losses and resends need no machinery of their own.
- A request takes effect and its reply is received, or it does and the reply is lost: two successors. A reply that is late is one that was
  lost and asked for again.
- A worker sends its next claim as soon as it has done with the last one, and the settlement of a run as soon as it holds the lease: both
  may arrive much later, as if they had been sent then. Of a former life, the last claim may still be under way (the others may have been
  given up before).
- A process that is paused, cut off, or crashed and not restarted, is one whose turn does not come; its session may lapse meanwhile.
  A restart is a new process with the worker's name, another life, and no memory; messages of the former life are still under way.
- A settlement that arrives when its worker has let go of the lease should change nothing, so one such, the stray, is enough to find the
  first that does.
- A run's verdict is drawn when its settlement arrives, even a second time after the store lost the first.

Late beats would make the pool of messages endless: one at a time may be delayed, `Bounds.late_beats` in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.protocol_model import verbs
from tests.protocol_model.rules import Rules
from tests.protocol_model.states import (
    SESSION_LOST,
    BeatAnswer,
    Granted,
    Job,
    Lease,
    ListenerState,
    Session,
    SessionLost,
    Settled,
    Store,
    Verdict,
)


@dataclass(frozen=True)
class Bounds:
    """How much of everything there may be. `losses`: how often the store goes back to an earlier state of itself.

    `tail`: after so many writes the store has written the first of them safely, and will not go back behind it.
    `empty_answers`: a claim that finds nothing is answered; without them such a claim is one that has not arrived, which forbids less.
    `lapses_apart`: a session lapses in one step and is reaped in another. Where nothing looks between the two, one step will do.
    """

    workers: int = 2
    jobs: int = 1
    epochs: int = 3
    restarts: int = 2
    requests: int = 2
    limit: int = 1
    losses: int = 1
    late_beats: int = 1
    tail: int = 4
    lapses_apart: bool = True
    empty_answers: bool = True


class Process(NamedTuple):
    """A worker process; life 0 is not yet started. `seen`: the last claim request whose answer it has processed or given up."""

    worker: int
    life: int = 0
    seen: int = 0
    holds: tuple[Lease, ...] = ()

    @property
    def session(self) -> Session:
        return Session(self.worker, self.life)

    def without(self, leases: tuple[Lease, ...]) -> Process:
        return self._replace(holds=tuple(lease for lease in self.holds if lease not in leases))


class BeatMessage(NamedTuple):
    """A beat reports what was true when it was sent."""

    session: Session
    named: tuple[Lease, ...]
    seen: int


class World(NamedTuple):
    """`stray`: a lease that its worker once held, whose settlement may still arrive. `kept`: the state to which the store may go back."""

    store: Store
    processes: tuple[Process, ...]
    stray: Lease | None = None
    late_beat: BeatMessage | None = None
    late_beats_left: int = 0
    restarts_left: int = 0
    losses_left: int = 0
    kept: Store | None = None
    tail_left: int = 0

    def process_in(self, session: Session) -> Process | None:
        process = self.processes[session.worker]
        return process if process.life == session.life else None

    def dropping(self, process: Process, new: Process) -> Iterator[World]:
        """Yield the world after the process let go of leases; the settlement of one of them may become the stray one."""
        after = self.with_process(new)
        yield after
        if self.stray is None:
            for lease in process.holds:
                if lease not in new.holds:
                    yield after._replace(stray=lease)

    def with_process(self, new: Process) -> World:
        index = new.worker
        return self._replace(processes=(*self.processes[:index], new, *self.processes[index + 1 :]))


# --- what can happen -----------------------------------------------------------------------------------------------


class Started(NamedTuple):
    """A process starts, replaces the one before, and registers its session."""

    session: Session


class RegisterArrived(NamedTuple):
    """A copy of an earlier registration."""

    session: Session
    answer: SessionLost | None


class ClaimArrived(NamedTuple):
    session: Session
    request: int
    answer: Granted | SessionLost
    is_received: bool


class ClaimGivenUp(NamedTuple):
    """The worker no longer waits for the answer, and will not run a late answer's jobs."""

    session: Session
    request: int


class SettlementArrived(NamedTuple):
    lease: Lease
    verdict: Verdict
    answer: Settled
    is_received: bool


class BeatSent(NamedTuple):
    """A beat that will arrive later, or never."""

    beat: BeatMessage


class BeatArrived(NamedTuple):
    """The late beat arrives, or one is sent and arrives at once."""

    beat: BeatMessage
    answer: BeatAnswer | SessionLost
    is_received: bool


class Lapsed(NamedTuple):
    session: Session


class UpkeepResult(NamedTuple):
    """One bounded call of upkeep, used for that session."""

    session: Session


class LapsedAndUpkept(NamedTuple):
    """The session lapses and is reaped in one step."""

    session: Session


class TailBegan(NamedTuple):
    """From here on, what is written may be lost."""


class TailLost(NamedTuple):
    """Power cut or failover: the store is again as it was when the tail began."""


Action = (
    Started
    | RegisterArrived
    | ClaimArrived
    | ClaimGivenUp
    | SettlementArrived
    | BeatSent
    | BeatArrived
    | Lapsed
    | UpkeepResult
    | LapsedAndUpkept
    | TailBegan
    | TailLost
)
Successors = Iterator[tuple[Action, World]]


def first_world(bounds: Bounds) -> World:
    return World(
        Store((Job(),) * bounds.jobs),
        tuple(Process(worker) for worker in range(bounds.workers)),
        late_beats_left=bounds.late_beats,
        restarts_left=bounds.restarts,
        losses_left=bounds.losses,
    )


def successors(rules: Rules, bounds: Bounds, world: World) -> Successors:
    """Yield everything that may happen next. For a process whose session is dead for good, only its one stray settlement remains."""
    for action, after in _acts_and_tail(rules, bounds, world):
        buried = next((p for p in after.processes if p.holds and _is_gone(after, p.session)), None)
        if buried is None:
            yield action, after
        else:
            for told in after.dropping(buried, buried._replace(holds=())):
                yield action, told


def _is_gone(world: World, session: Session) -> bool:
    """Return True if the session is dead, its leases are released, and no state to which the store may go back has it alive."""
    for store in (world.store, world.kept):
        row = None if store is None else store.row(session)
        if store is not None and (row is None or row.standing is not ListenerState.GONE):
            return False
    return True


def _acts_and_tail(rules: Rules, bounds: Bounds, world: World) -> Successors:
    """A tail begins right before a write: anything else that happens then may as well have happened before."""
    if world.kept is None:
        yield from _acts(rules, bounds, world)
        if world.losses_left:
            yield TailBegan(), world._replace(kept=world.store, losses_left=world.losses_left - 1, tail_left=bounds.tail)
        return
    is_beginning = world.tail_left == bounds.tail
    for action, after in _acts(rules, bounds, world):
        if after.store is not world.store:
            yield action, _written(after)
        elif not is_beginning:
            yield action, after
    if world.kept != world.store:
        yield TailLost(), world._replace(store=world.kept, kept=None, tail_left=0)


def _written(world: World) -> World:
    """Return the world one write further from the beginning of the tail."""
    return world._replace(tail_left=world.tail_left - 1) if world.tail_left > 1 else world._replace(kept=None, tail_left=0)


def _acts(rules: Rules, bounds: Bounds, world: World) -> Successors:
    for process in world.processes:
        yield from _process_acts(rules, bounds, world, process)
    yield from _claims_arrive(rules, bounds, world)
    yield from _settlements_arrive(rules, world)
    yield from _late_beat_arrives(rules, world)
    yield from _time_passes(rules, bounds, world)
    yield from _registrations_arrive(world)


# --- processes -----------------------------------------------------------------------------------------------------


def _process_acts(rules: Rules, bounds: Bounds, world: World, process: Process) -> Successors:
    yield from _start(world, process)
    if process.life == 0:
        return
    if process.seen < bounds.requests:
        seen = process.seen + 1
        yield ClaimGivenUp(process.session, seen), world.with_process(process._replace(seen=seen))
    beat = BeatMessage(process.session, process.holds, process.seen)
    yield from _beat_arrives(rules, world, beat)
    if world.late_beats_left and world.late_beat is None:
        yield BeatSent(beat), world._replace(late_beat=beat, late_beats_left=world.late_beats_left - 1)


def _start(world: World, process: Process) -> Successors:
    """The first life is free, later ones count as restarts. Workers are alike, so they start in order."""
    if process.life == 0 and process.worker > 0 and world.processes[process.worker - 1].life == 0:
        return
    if process.life and not world.restarts_left:
        return
    fresh = Process(process.worker, process.life + 1)
    store, _ = verbs.register(world.store, fresh.session)
    left = world.restarts_left - (process.life > 0)
    for after in world._replace(store=store, restarts_left=left).dropping(process, fresh):
        yield Started(fresh.session), after


# --- messages ------------------------------------------------------------------------------------------------------


def _claims_arrive(rules: Rules, bounds: Bounds, world: World) -> Successors:
    for process in world.processes:
        for life in range(1, process.life + 1):
            is_former = life < process.life
            last = bounds.requests if is_former else min(process.seen + 1, bounds.requests)
            for request in range(last if is_former else 1, last + 1):
                yield from _claim_arrives(rules, bounds, world, Session(process.worker, life), request)


def _claim_arrives(rules: Rules, bounds: Bounds, world: World, session: Session, request: int) -> Successors:
    store, answer = verbs.claim(rules, world.store, session, request, bounds.limit)
    if any(job.epoch > bounds.epochs for job in store.jobs) or not (answer or bounds.empty_answers):
        return
    after = world if store is world.store else world._replace(store=store)
    process = world.process_in(session)
    if process is not None and process.seen < request and answer is not SESSION_LOST:
        yield ClaimArrived(session, request, answer, True), _taken_in(after, process, request, answer)
    yield ClaimArrived(session, request, answer, False), after


def _taken_in(world: World, process: Process, request: int, leases: Granted) -> World:
    holds = tuple(sorted({*process.holds, *leases}))
    return world.with_process(process._replace(seen=request, holds=holds))


def _settlements_arrive(rules: Rules, world: World) -> Successors:
    for lease in _settling(world):
        for verdict in Verdict:
            store, answer = verbs.settle(rules, world.store, lease, verdict)
            after = world if store is world.store else world._replace(store=store)
            yield SettlementArrived(lease, verdict, answer, False), after
            process = world.process_in(lease.session)
            if process is not None and lease in process.holds:
                for told in after.dropping(process, process.without((lease,))):
                    yield SettlementArrived(lease, verdict, answer, True), told
            if store is world.store:
                break  # another verdict would change as little


def _settling(world: World) -> list[Lease]:
    """Return the leases that are held, and the stray one."""
    held = [lease for process in world.processes for lease in process.holds]
    return held if world.stray is None or world.stray in held else [*held, world.stray]


def _beat_arrives(rules: Rules, world: World, beat: BeatMessage) -> Successors:
    """A process that learns of its session's death may start again, or never act again: no step of its own."""
    store, answer = verbs.beat(rules, world.store, beat.session, beat.named, beat.seen)
    after = world if store is world.store else world._replace(store=store)
    yield BeatArrived(beat, answer, False), after
    process = world.process_in(beat.session)
    if process is not None and answer is not SESSION_LOST and answer.lost:
        for told in after.dropping(process, process.without(answer.lost)):
            yield BeatArrived(beat, answer, True), told


def _late_beat_arrives(rules: Rules, world: World) -> Successors:
    if world.late_beat is not None:
        yield from _beat_arrives(rules, world._replace(late_beat=None), world.late_beat)


def _registrations_arrive(world: World) -> Successors:
    """An old registration can bring news only to a store that lost its latest changes."""
    for process in world.processes:
        for life in range(1, process.life + 1):
            session = Session(process.worker, life)
            store, answer = verbs.register(world.store, session)
            if store is not world.store:
                yield RegisterArrived(session, answer), world._replace(store=store)


# --- time and the tail ---------------------------------------------------------------------------------------------


def _time_passes(rules: Rules, bounds: Bounds, world: World) -> Successors:
    for row in world.store.rows:
        if not bounds.lapses_apart and row.standing is ListenerState.ALIVE:
            store = rules.reaping(world.store, row._replace(is_lapsed=True))
            if store is not None:
                yield LapsedAndUpkept(row.session), world._replace(store=store)
            continue
        if row.standing is ListenerState.ALIVE and not row.is_lapsed:
            yield Lapsed(row.session), world._replace(store=verbs.lapse(rules, world.store, row))
        store = rules.reaping(world.store, row)
        if store is not None:
            yield UpkeepResult(row.session), world._replace(store=store)
