"""Several clients of the same records at once, and replies that are lost."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import pytest

from taskflow.broker.engine.records import HELD, READY, RUNNING, SUCCEEDED, Kind
from taskflow.broker.engine.seam import ABSENT, Add, Addition, Applied, Claimed, Full, Put, Query, Ref, Run, Scan, Stale, Step, Succeed
from tests.seam.harness import SeamStore, a_job

T = TypeVar("T")


def _made(ref: Ref, number: int) -> Put:
    """Return the put of this client."""
    if ref.kind == Kind.JOB:
        return a_job(ref, {"priority": number})
    headers: dict[int, dict[str, Any]] = {Kind.KEY: {"holder": bytes([number])}, Kind.SCHEDULE: {"offer_at": number}}
    return Put(ref, headers.get(ref.kind, {}))


async def _warm_up(client: SeamStore) -> None:
    """Let a server open a connection and plan what it will do there. Otherwise one call would be over before the others begin."""
    refs = [client.ref(kind) for kind in (Kind.JOB, Kind.KEY, Kind.SCHEDULE)]
    for _ in range(2):
        expect = {ref: await client.rev(ref) for ref in refs}
        assert await client.apply(Step(expect, tuple(_made(ref, 0) for ref in refs))) == [Applied()]
    for ref in refs:
        await client.drop(ref)


async def at_once(store: SeamStore, *calls: Callable[[SeamStore], Awaitable[T]]) -> list[T]:
    """Make calls at once, by two clients in turn."""
    async with store.client() as other:
        clients = (store, other)
        await asyncio.gather(*(_warm_up(client) for client in clients for _ in range(8)))
        return await asyncio.gather(*(call(clients[number % 2]) for number, call in enumerate(calls)))


def applying(*steps: Step) -> Callable[[SeamStore], Awaitable[list[Any]]]:
    return lambda client: client.apply(*steps)


@pytest.mark.parametrize("are_there", [True, False])
@pytest.mark.parametrize("kinds", [(Kind.JOB,), (Kind.KEY,), (Kind.SCHEDULE,), (Kind.JOB, Kind.KEY, Kind.SCHEDULE, Kind.MARK)])
async def test_expect__racing(store: SeamStore, kinds: Sequence[int], are_there: bool) -> None:
    """Of many clients that change the same records at once, the first one does, and the others are Stale. They don't block each other."""
    refs = [store.ref(kind) for kind in kinds for _ in range(5)]
    for ref in refs if are_there else ():
        await store.put(ref, _made(ref, 50).header)
    revs, dice = {ref: await store.rev(ref) for ref in refs}, random.Random(1)
    in_order = 0 if are_there else kinds.count(Kind.JOB) * 5  # the `seq` of new jobs depends on it

    def step(number: int) -> Step:
        order = refs[:in_order] + dice.sample(refs[in_order:], len(refs) - in_order)
        return Step(revs, tuple(_made(ref, number) for ref in order), totals={("default", "claim"): 1})

    answers = await at_once(store, *(applying(step(number)) for number in range(40)))

    assert Counter(type(answer) for [answer] in answers) == {Applied: 1, Stale: 39}
    winner = answers.index([Applied()])
    for ref in refs:
        assert (await store.header(ref)).items() >= {name: _made(ref, winner).header[name] for name in _CHANGED.get(ref.kind, ())}.items()
    assert (await store.perform(Query(with_totals=True))).totals == {("default", "claim"): 1}


_CHANGED: Final = {Kind.JOB: ("priority",), Kind.KEY: ("holder",), Kind.SCHEDULE: ("offer_at",)}


@pytest.mark.parametrize("of_kind", [Kind.JOB, Kind.KEY, Kind.SCHEDULE])
async def test_expect__racing_step_by_step(store: SeamStore, of_kind: int) -> None:
    """Many clients change the same records at once, each in a separate step: each record is changed by one of them."""
    refs = [store.ref(of_kind) for _ in range(8)]
    for ref in refs:
        await store.put(ref, _made(ref, 50).header)
    revs, dice = {ref: await store.rev(ref) for ref in refs}, random.Random(1)
    orders = [dice.sample(refs, len(refs)) for _ in range(40)]
    answers = await at_once(
        store, *(applying(*(Step({ref: revs[ref]}, (_made(ref, number),)) for ref in order)) for number, order in enumerate(orders))
    )
    [field] = _CHANGED[of_kind]
    for ref in refs:
        winners = [number for number, order in enumerate(orders) if answers[number][order.index(ref)] == Applied()]
        assert [(await store.header(ref))[field]] == [_made(ref, number).header[field] for number in winners]


async def test_expect__racing_with_claims(store: SeamStore) -> None:
    """A job that is claimed while others change it is claimed or changed first, and each lease counts once."""
    refs = [await store.job() for _ in range(20)]
    revs, sessions = {ref: await store.rev(ref) for ref in refs}, [await store.session() for _ in range(6)]

    def steps(number: int) -> list[Step]:
        return [Step({ref: revs[ref]}, (Put(ref, {"priority": number}),)) for ref in refs]

    def claiming(session: bytes) -> Callable[[SeamStore], Awaitable[Any]]:
        return lambda client: client.claim(session, 1, limit=4)

    changes, claims = [applying(*steps(number)) for number in (1, 2, 3)], [claiming(session) for session in sessions]
    found = await at_once(store, *[call for calls in itertools.zip_longest(claims, changes) for call in calls if call is not None])

    leased = Counter(record.ref for claimed in found if isinstance(claimed, Claimed) for record in claimed.records)
    answers = [each for each in found if isinstance(each, list)]
    applied = Counter(ref for each in answers for ref, answer in zip(refs, each, strict=True) if answer == Applied())
    seen = await store.perform(Query(tuple(refs), with_totals=True))
    assert set(leased.values()) | set(applied.values()) <= {1}
    for ref in refs:
        header = seen.records[ref].header
        assert (header["status"], header["epoch"]) == ((RUNNING, 1) if leased[ref] else (READY, 0))
        assert (header["priority"] > 0) == (applied[ref] > 0)
    assert seen.totals.get(("default", "claim"), 0) == leased.total()


async def test_added__racing(store: SeamStore) -> None:
    """Additions of several clients at once all count, also if others put the record meanwhile."""
    refs = [await store.job({"status": HELD, "awaits": 100}) for _ in range(3)]
    rev, marks = await store.rev(refs[0]), [store.ref(Kind.MARK) for _ in range(40)]

    def step(number: int) -> Step:
        adds = [Addition(ref, "awaits", -1) for ref in refs]
        turned = (*adds[number % 3 :], *adds[: number % 3])
        ref, expected, header = (refs[0], rev, {"priority": 1, "awaits": 50}) if number % 4 == 0 else (marks[number], ABSENT, {})
        return Step({ref: expected}, (Put(ref, header),), adds=turned)

    answers = await at_once(store, *(applying(step(number)) for number in range(40)))

    applied = [answer for [answer] in answers].count(Applied())
    assert applied == 30 + 1
    assert [(await store.header(ref))["awaits"] for ref in refs] == [100 - applied] * 3


async def test_full__racing(store: SeamStore) -> None:
    """Of additions that several clients make at once, as many take effect as the bound allows."""
    ref = await store.job({"status": HELD})
    marks = [store.ref(Kind.MARK) for _ in range(40)]
    adds = (Addition(ref, "awaits", 2, most=21),)
    answers = await at_once(store, *(applying(Step({mark: ABSENT}, (Put(mark, {}),), adds=adds)) for mark in marks))
    assert Counter(type(answer) for [answer] in answers) == {Applied: 10, Full: 30}
    assert (await store.header(ref))["awaits"] == 20
    assert [await store.load(mark) is not None for mark in marks] == [answer == Applied() for [answer] in answers]


async def test_resent__step(store: SeamStore) -> None:
    """A step whose reply was lost is Stale when it is sent again, and changes nothing then."""
    changed, dropped, held = await store.job(), await store.job(), await store.job({"status": HELD, "awaits": 5})
    made, schedule = store.ref(), store.ref(Kind.SCHEDULE)
    refs, counted = (changed, dropped, held, made, schedule), {("default", "drop"): 1}
    steps = [
        Step({changed: await store.rev(changed)}, (Put(changed, {"priority": 4}, entries={"tags": ("a",)}),), totals=counted),
        Step({dropped: await store.rev(dropped)}, drops=(dropped,), adds=(Addition(held, "awaits", -1, most=5),)),
        Step({made: ABSENT, schedule: ABSENT}, (a_job(made), Put(schedule, {})), adds=(Addition(held, "awaits", 1),) * 2),
    ]
    async with store.losing_replies() as are_lost:
        if not are_lost:
            pytest.skip("this store loses no replies")
        answers = await store.apply(*steps)

    assert [type(answer) for answer in answers] == [Stale] * 3
    seen = await store.perform(Query(refs, (Scan("tags", 9), Scan("ready", 9)), (("status", ()),), with_totals=True))
    assert [seen.records[ref] and seen.records[ref].header.get("priority") for ref in refs] == [4, None, 0, 0, None]
    assert seen.records[held].header["awaits"] == 6
    assert seen.totals == counted
    assert [[entry.ref for entry in found] for found in seen.scans] == [[changed], [changed, made]]
    assert [(group.prefix, group.size) for group in seen.groups[0]] == [(("default", HELD), 1), (("default", READY), 2)]


async def test_resent__verbs(store: SeamStore) -> None:
    """A hot operation whose reply was lost answers the same when it is sent again, and changes nothing then."""
    session, refs = await store.session(), [store.ref() for _ in range(3)]
    async with store.losing_replies() as are_lost:
        if not are_lost:
            pytest.skip("this store loses no replies")
        added = await store.perform(Add([a_job(ref) for ref in refs]))
        claimed = await store.claim(session, 1)
        assert claimed is not None
        runs = [Run(ref.id, 1, session, each.header["claim"], b"", 0, 60) for ref, each in zip(refs, claimed.records, strict=True)]
        ended = await store.perform(Succeed(runs))

    seen = await store.perform(Query(tuple(refs), groups=(("status", ()),), with_totals=True))
    assert (added, [record.ref for record in claimed.records], ended) == ([True] * 3, refs, ([True] * 3, []))
    assert [record.header["epoch"] for record in seen.records.values()] == [1] * 3
    assert seen.totals == {("default", event): 3 for event in ("enqueue", "claim", "succeed")}
    assert [(group.prefix, group.size) for group in seen.groups[0]] == [(("default", SUCCEEDED), 3)]
