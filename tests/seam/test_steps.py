"""Steps: what they expect, and that each takes effect as a whole."""

from __future__ import annotations

import pytest

from taskflow.broker.engine.records import FAILED, HELD, READY, SCHEDULED, Kind
from taskflow.broker.engine.seam import (
    ABSENT,
    NOW,
    Addition,
    Applied,
    Fade,
    Full,
    Promote,
    Put,
    Query,
    Ref,
    Run,
    Scan,
    Stale,
    Step,
    Succeed,
)
from tests.seam.harness import SeamStore, a_job, possible


def key(ref: Ref, holder: bytes) -> Put:
    return Put(ref, {"holder": holder})


async def test_step__as_a_whole(store: SeamStore) -> None:
    """A step that is Stale changes nothing: no put, no drop, no addition, no count."""
    changed, dropped, held, new = await store.job(), await store.job(), await store.job({"status": HELD, "awaits": 2}), store.ref()
    expect = {changed: await store.rev(changed), dropped: b"none has", new: ABSENT}
    puts = (Put(changed, {"priority": 7}), a_job(new, {"queue": "new"}))
    before = await store.perform(Query((changed, dropped, held, new), (Scan("ready", 9),), with_totals=True))
    [answer] = await store.apply(Step(expect, puts, (dropped,), (Addition(held, "awaits", -1),), {("default", "claim"): 3}))
    after = await store.perform(Query((changed, dropped, held, new), (Scan("ready", 9),), with_totals=True))
    assert isinstance(answer, Stale)
    assert (after.records, after.scans, after.totals) == (before.records, before.scans, before.totals)


async def test_step__independent(store: SeamStore) -> None:
    """A Stale or Full step in the middle leaves the others of its call alone."""
    held = await store.job({"status": HELD, "awaits": 1})
    refs = [store.ref(Kind.KEY) for _ in range(4)]
    steps = [Step({ref: ABSENT}, (key(ref, b"a"),)) for ref in refs]
    steps[1] = steps[1]._replace(expect={refs[1]: b"none has"})
    steps[2] = steps[2]._replace(adds=(Addition(held, "awaits", 1, most=1),))
    answers = await store.apply(*steps)
    assert [type(answer) for answer in answers] == [Applied, Stale, Full, Applied]
    assert [await store.load(ref) is not None for ref in refs] == [True, False, False, True]
    assert (await store.header(held))["awaits"] == 1


async def test_step__none_sees_another(store: SeamStore) -> None:
    """Each step expects the records as they are before the call, whatever the steps before it in the call do."""
    ref, others = await store.put(store.ref(Kind.KEY), {"holder": b"a"}), [store.ref(Kind.KEY) for _ in range(3)]
    rev = await store.rev(ref)
    change = Step({ref: rev}, (key(ref, b"b"),))
    readers = [Step({other: ABSENT, ref: rev}, (key(other, b"c"),)) for other in others[:2]]
    waits_for_it = Step({others[2]: ABSENT, ref: ABSENT}, (key(others[2], b"c"),))
    answers = await store.apply(readers[0], change, readers[1], waits_for_it)
    assert [type(answer) for answer in answers] == [Applied, Applied, Applied, Stale]


async def test_snapshot__stays(store: SeamStore) -> None:
    """A record that was returned does not change with the stored one."""
    await store.session()
    ref = await store.job({"status": HELD, "awaits": 1})
    [entry] = (await store.perform(Query(scans=(Scan("held", 1),)))).scans[0]
    seen, running = await store.found(ref), await store.running()
    status, awaits, claim = seen.header["status"], seen.header["awaits"], running.header["claim"]
    await store.add(ref, -1)
    await store.put(ref, {"status": READY})
    await store.put(running.ref, {"status": READY, "session": None, "claim": None})
    assert (seen.header["status"], seen.header["awaits"], running.header["claim"]) == (status, awaits, claim)
    assert entry.record is not None
    assert (entry.record.header["status"], entry.record.header["awaits"]) == (status, awaits)


async def test_expect__absent_or_changed(store: SeamStore) -> None:
    """A step that expects no record is Stale if there is one, and vice versa. A revision that was read holds for one change."""
    ref, there = store.ref(), await store.job()
    [was_there, was_missing] = await store.apply(
        Step({there: ABSENT}, (Put(there, {"priority": 1}),)), Step({ref: b"12345678"}, (a_job(ref),))
    )
    assert isinstance(was_there, Stale)
    assert isinstance(was_missing, Stale)
    assert was_there.refs in ((), (there,))
    assert was_missing.refs in ((), (ref,))
    assert await store.apply(Step({ref: ABSENT}, (a_job(ref),))) == [Applied()]
    change = Step({ref: await store.rev(ref)}, (Put(ref, {"priority": 1}),))
    assert [await store.apply(change), [type(answer) for answer in await store.apply(change)]] == [[Applied()], [Stale]]


@pytest.mark.parametrize("is_there", [True, False])
async def test_expect__only_read(store: SeamStore, is_there: bool) -> None:
    """A record that a step does not write is expected like the others."""
    read = await store.job() if is_there else store.ref()
    rev = await store.rev(read)
    written = [store.ref(Kind.KEY) for _ in range(2)]
    assert await store.apply(Step({read: rev, written[0]: ABSENT}, (key(written[0], b"a"),))) == [Applied()]
    await store.put(read, possible({"priority": 3}))
    [answer] = await store.apply(Step({read: rev, written[1]: ABSENT}, (key(written[1], b"a"),)))
    assert isinstance(answer, Stale)
    assert await store.load(written[1]) is None


async def test_fresh_rev__of_a_record_made_again(store: SeamStore) -> None:
    """A record that is dropped and created again never repeats a revision, however often."""
    ref, revs = store.ref(Kind.KEY), set[bytes]()
    for number in range(20):
        await store.put(ref, {"holder": b"a"})
        revs.add(await store.rev(ref))
        if number % 2:
            await store.drop(ref)
    assert len(revs) == 20
    assert all(len(rev) == 8 for rev in revs)


async def test_fresh_rev__of_each_verb(store: SeamStore) -> None:
    """A claim, `succeed`, `promote` and `fade` change the revision of their jobs."""
    now = await store.now()
    scheduled, released = await store.job({"status": SCHEDULED, "due_at": now}), await store.job({"status": HELD})
    ended = await store.job({"status": FAILED, "ended_at": now, "fade_at": now, "queue": "other"})
    revs = {ref: {await store.rev(ref)} for ref in (scheduled, released, ended)}

    await store.perform(Promote(9))
    await store.perform(Fade(9, 100, 1_000))
    for seen in revs.values():
        assert len(seen) == 1
    for ref, seen in revs.items():
        seen.add(await store.rev(ref))
    claimed = await store.claim(await store.session(), 1, ["default"])
    assert claimed is not None
    for record in claimed.records:
        assert record.rev == await store.rev(record.ref)
        revs[record.ref].add(record.rev)
    header = claimed.records[0].header
    await store.perform(Succeed([Run(claimed.records[0].ref.id, 1, header["session"], header["claim"], b"", 0, 0)]))
    revs[claimed.records[0].ref].add(await store.rev(claimed.records[0].ref))

    assert sorted(map(len, revs.values())) == [2, 3, 4]


async def test_fresh_rev__not_of_additions(store: SeamStore) -> None:
    """An addition leaves the revision alone, and a claim that of its session."""
    held, session = await store.job({"status": HELD, "awaits": 2}), Ref(Kind.SESSION, await store.session())
    await store.job()
    revs = [await store.rev(held), await store.rev(session)]
    await store.add(held, -1)
    assert await store.claim(session.id, 5)
    assert [await store.rev(held), await store.rev(session)] == revs


@pytest.mark.parametrize("ways", ["put put", "put drop", "drop drop"])
@pytest.mark.parametrize("is_one_step", [True, False])
async def test_once(store: SeamStore, ways: str, is_one_step: bool) -> None:
    """Two puts or drops of one record in a call are refused, and nothing of the call takes effect."""
    ref, other = await store.job({"due_at": NOW}), store.ref(Kind.KEY)
    rev = await store.rev(ref)
    both = [
        Step({ref: rev}, (Put(ref, {"priority": number}),)) if way == "put" else Step({ref: rev}, drops=(ref,))
        for number, way in enumerate(ways.split(), 1)
    ]
    if is_one_step:
        both = [Step({ref: rev}, both[0].puts + both[1].puts, both[0].drops + both[1].drops)]
    with pytest.raises(ValueError, match="times in one apply"):
        await store.apply(Step({other: ABSENT}, (key(other, b"a"),)), *both)
    assert await store.rev(ref) == rev
    assert await store.load(other) is None
