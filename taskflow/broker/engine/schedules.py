"""Schedules: definitions, offers and firings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from taskflow.broker import topics
from taskflow.broker.engine import flows, moves
from taskflow.broker.engine.decisions import decide
from taskflow.broker.engine.draft import Draft, Plain
from taskflow.broker.engine.jobs import compare_known
from taskflow.broker.engine.moves import MOVE_SCANS
from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import Operation, Query, Ref, Scan, Snapshot
from taskflow.broker.protocol import Added, Refused
from taskflow.model import wording
from taskflow.model.clock import to_microseconds
from taskflow.model.errors import SessionLost
from taskflow.model.rules import Rules
from taskflow.model.schedule import MAX_OFFERED_BYTES, MAX_OFFERS, Amendment, Definition, Firing, Offer, ScheduleRecord, ScheduleState

OFFER_SCANS: Final = (*MOVE_SCANS, Scan("offers", 2, with_records=False))
MAX_DECLARED: Final = 10_000


class Declaration(msgspec.Struct, array_like=True):
    """A session's declaration of a schedule. `since` is the instant from which the session's age counts, in microseconds since 1970."""

    since: int
    session: bytes
    digest: bytes
    body: bytes


class ScheduleBody(msgspec.Struct):
    state: ScheduleState
    declared: list[Declaration] = []

    def by_age(self) -> list[Declaration]:
        """Return the declarations, youngest first."""
        return sorted(self.declared, key=lambda each: (each.since, each.session, each.digest), reverse=True)

    def elect(self, now: int, keep_asleep: float) -> None:
        """Let the youngest session's declaration take effect. If there is no declaration, put the schedule to sleep."""
        youngest = next(iter(self.by_age()), None)
        definition = None if youngest is None else Definition(self.state.name, youngest.digest, youngest.body)
        self.state.elect(definition, now, keep_asleep)


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(ScheduleBody).decode


def ref_of(name: str) -> Ref:
    return Ref(Kind.SCHEDULE, name.encode(errors="surrogatepass"))  # for look-ups only: names of definitions are valid UTF-8


def body_of(state: bytes | None) -> ScheduleBody | None:
    """Decode a schedule, or return None if it's missing or undecodable."""
    try:
        return None if state is None else _decode(state)
    except msgspec.MsgspecError:
        return None


def _load(draft: Draft, name: str) -> ScheduleBody | None:
    record = draft.plain(*ref_of(name))
    return None if record is None else body_of(record.state if isinstance(record.state, bytes) else None)


def _put(draft: Draft, body: ScheduleBody) -> None:
    state = body.state
    record = Plain(ref_of(state.name), {"offer_at": state.offer_at, "is_paused": int(state.is_paused)}, _encode(body))
    record.entries = {"declared": tuple(each.session for each in body.declared)}
    draft.put(record)
    others = [entry.position[0] for entry in draft.seen.scans[3] if entry.ref != record.ref]
    if state.offer_at is not None and (not others or state.offer_at < others[0]):
        draft.wake(topics.DUE)


# --- define ---------------------------------------------------------------------------------------------------


def define(definitions: Sequence[Definition], session: bytes | None, age: float, rules: Rules) -> Operation[list[bool]]:
    def one(draft: Draft, definition: Definition) -> bool:
        if session is not None:
            known = draft.plain(Kind.SESSION, session)
            if known is None or known.header["dead_at"] is not None:
                raise SessionLost(wording.SESSION_LOST)
        body = _load(draft, definition.name)
        if body is None:
            state = ScheduleState(*definition, is_declared=session is not None, offer_at=draft.now, since=draft.now)
            body = ScheduleBody(state)
        elif body.state.is_declared != (session is not None):
            return False
        if session is None:
            body.state.bring_into_force(definition, draft.now)
        else:
            others = [each for each in body.declared if each.session != session]
            body.declared = [*others, Declaration(draft.now - to_microseconds(age), session, definition.digest, definition.body)]
            body.elect(draft.now, rules.keep_asleep)
        _put(draft, body)
        return True

    refs = [ref_of(definition.name) for definition in definitions]
    if session is not None:
        refs.append(Ref(Kind.SESSION, session))
    return (yield from decide(definitions, one, rules, refs, scans=OFFER_SCANS))


def hand_over(session: bytes, rules: Rules) -> Operation[bool]:
    """Drop the declarations of a dead session, so that those of the next youngest session take effect. Return False if another program's
    open transaction has locked one of the schedules."""
    seen: Snapshot = yield Query(scans=(Scan("declared", MAX_DECLARED, (session,), with_records=False),))

    def one(draft: Draft, ref: Ref) -> bool:
        record = draft.plain(*ref)
        body = body_of(record.state) if record is not None and isinstance(record.state, bytes) else None
        if body is not None:
            body.declared = [each for each in body.declared if each.session != session]
            body.elect(draft.now, rules.keep_asleep)
            _put(draft, body)
        return True

    refs = [entry.ref for entry in seen.scans[0]]
    return all((yield from decide(refs, one, rules, refs, scans=OFFER_SCANS, locked=False)))


# --- offers and firings ---------------------------------------------------------------------------------------


def offers(rules: Rules) -> Operation[tuple[Offer, ...]]:
    """Offer the caller the schedules that are due, and remove those that have been asleep for too long."""
    seen: Snapshot = yield Query(scans=(Scan("offers", MAX_OFFERS, with_records=False),))
    due = [entry.ref for entry in seen.scans[0] if entry.position[0] <= seen.now]
    sizes = [0]

    def one(draft: Draft, ref: Ref) -> tuple[Offer, ...]:
        record = draft.plain(*ref)
        body = body_of(record.state) if record is not None and isinstance(record.state, bytes) else None
        if record is not None and body is None:  # an undecodable schedule is offered only once it's declared again
            draft.put(Plain(ref, {"offer_at": None}))
        if body is None or body.state.offer_at is None or body.state.offer_at > draft.now or sizes[0] > MAX_OFFERED_BYTES:
            return ()
        if body.state.asleep_since is not None:
            draft.drop(ref)
            return ()
        sizes[0] += len(body.state.body)
        offer = body.state.offer(draft.now)
        draft.put(Plain(ref, {"offer_at": body.state.offer_at}, _encode(body)))
        return (offer,)

    found = yield from decide(due, one, rules, due, scans=MOVE_SCANS, locked=())
    return tuple(offer for offers in found for offer in offers)


def fire(firings: Sequence[Firing], rules: Rules) -> Operation[list[Added | Refused | None]]:
    added = set[bytes]()

    def one(draft: Draft, firing: Firing) -> Added | Refused | None:
        body = _load(draft, firing.name)
        if body is None or not (firing.is_extra or body.state.expects(firing)):
            return None
        answer = _add(draft, body.state, firing, added) if firing.envelopes else None
        if answer is not None and not firing.is_extra:
            body.state.record_job(draft.now, answer.id, answer.because if isinstance(answer, Refused) else None)
        if not firing.is_extra:
            body.state.advance(firing)
        _put(draft, body)
        return answer

    refs = [ref_of(firing.name) for firing in firings]
    refs += [ref for firing in firings for envelope in firing.envelopes for ref in moves.refs_of(envelope)]
    answers = yield from decide(firings, one, rules, refs, scans=OFFER_SCANS, grows=any(firing.envelopes for firing in firings))
    sent = [(firing.envelopes[-1], answer) for firing, answer in zip(firings, answers, strict=True) if answer]
    compared = iter((yield from compare_known([envelope for envelope, _ in sent], [answer for _, answer in sent])))
    return [answer and next(compared) for answer in answers]


def _add(draft: Draft, state: ScheduleState, firing: Firing, added: set[bytes]) -> Added | Refused:
    """Add the firing's job or flow. Return the answer for the job, or for the flow's last job. If `is_alone`, refuse a flow while the flow
    before it has live jobs. `added` collects the flows that this operation adds, because no scan shows them yet."""
    last = firing.envelopes[-1]
    if last.member is None:
        return moves.add(draft, last)
    if firing.is_alone and state.last_flow is not None:
        draft.require((), heads=[alive := flows.alive(state.last_flow)])
        if (live := draft.head(alive)) is not None or state.last_flow in added:
            return Refused(last.id, state.last_id or last.id if live is None else live.ref.id, "key")
    answer = moves.add_flow(draft, firing.envelopes)[-1]
    if isinstance(answer, Added):
        state.last_flow = last.member.flow
        added.add(state.last_flow)
    return answer


# --- for operators --------------------------------------------------------------------------------------------


def amend(name: str, amendment: Amendment, rules: Rules) -> Operation[bool]:
    def one(draft: Draft, name: str) -> bool:
        body = _load(draft, name)
        if body is None or not body.state.amend(amendment, draft.now):
            return False
        if amendment is Amendment.REMOVE:
            draft.drop(ref_of(name))
        else:
            _put(draft, body)
        return True

    [is_amended] = yield from decide([name], one, rules, [ref_of(name)], scans=OFFER_SCANS)
    return is_amended


def records(names: Sequence[str] | None) -> Operation[list[ScheduleRecord]]:
    if names is None:
        listed: Snapshot = yield Query(scans=(Scan("schedules", 1 << 30),))
        stored = [entry.record for entry in listed.scans[0]]
    else:
        named: Snapshot = yield Query(tuple(map(ref_of, sorted(set(names)))))
        stored = list(named.records.values())
    bodies = [body for record in stored if record is not None and (body := body_of(record.state)) is not None]
    sessions = {Ref(Kind.SESSION, each.session) for body in bodies for each in body.declared}
    seen: Snapshot = yield Query(tuple(sessions))
    names_of = {ref.id: record.header["name"] for ref, record in seen.records.items() if record is not None}
    return [body.state.record(_names(body, names_of)) for body in bodies]


def _names(body: ScheduleBody, names_of: dict[bytes, str]) -> Iterable[str]:
    return (names_of[each.session] for each in body.by_age() if each.session in names_of)
