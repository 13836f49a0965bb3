"""Fields: who writes them, what the store assigns to them, and the bodies beside them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskflow.broker.engine.records import CANCELLED, FAILED, HEADERS, HELD, READY, RUNNING, SCHEDULED, Kind, Owner
from taskflow.broker.engine.seam import ABSENT, KEEP, NOW, Add, Addition, After, Applied, Full, Promote, Put, Query, Ref, Scan, Step
from tests.seam.harness import RedisSeamStore, SeamStore, a_job, possible

ALL_AT_ONCE = 30_000_000


async def awaits(store: SeamStore, ref: Ref) -> int:
    number: int = (await store.header(ref))["awaits"]
    return number


async def is_due(store: SeamStore, ref: Ref) -> bool:
    [due] = (await store.perform(Query(scans=(Scan("due", 100, with_records=False),)))).scans
    return ref in [entry.ref for entry in due]


async def test_added__summed_across_steps(store: SeamStore) -> None:
    """Several steps of a call may add to one field, and one step several times."""
    held, marks = await store.job({"status": HELD, "awaits": 10}), [store.ref(Kind.MARK) for _ in range(3)]
    one = Addition(held, "awaits", -1)
    await store.apply(*(Step({mark: ABSENT}, (Put(mark, {}),), adds=(one,) * times) for times, mark in enumerate(marks, 1)))
    assert await awaits(store, held) == 4


async def test_added__beside_a_put(store: SeamStore) -> None:
    """An addition counts if the same step puts the record, which leaves the field alone; also if that makes the record.
    To a record that does not exist it does nothing, and does not spoil its step.
    """
    held, new = await store.job({"status": HELD, "awaits": 3}), store.ref()
    puts = (Put(held, {"priority": 5, "awaits": 99}), a_job(new, {"status": HELD, "awaits": 3}))
    adds = (Addition(held, "awaits", -1), Addition(new, "awaits", -1))
    assert await store.apply(Step({held: await store.rev(held), new: ABSENT}, puts, adds=adds)) == [Applied()]
    assert [await awaits(store, held), await awaits(store, new)] == [2, 2]
    missing = store.ref()
    assert await store.add(missing, -1) == Applied()
    assert await store.load(missing) is None
    assert (await store.header(held))["priority"] == 5


async def test_owned__puts_leave_them(store: SeamStore) -> None:
    """Puts write no field with an owner, unless the record is new."""
    for kind, fields in HEADERS.items():
        owned = {field.name for field in fields if field.owner is not None}
        ref = await store.new(kind, {"status": HELD} if kind == Kind.JOB else {})
        before = await store.header(ref)
        await store.put(ref, {**before, **dict.fromkeys(owned, 77)})
        assert await store.header(ref) == before


async def test_owned__new_records(store: SeamStore) -> None:
    """A put that makes a record writes its fields, but for those that belong to the store."""
    for kind, fields in HEADERS.items():
        owned = {field.name: 77 for field in fields if field.owner is not None}
        header = await store.header(await store.new(kind, owned))
        written = {field.name: 77 for field in fields if field.owner in (Owner.CLAIM, Owner.ADDITION)}
        assert {name: header[name] for name in written} == written
        assert all(header[field.name] != 77 for field in fields if field.owner is Owner.STORE)


async def test_owned__restarts(store: SeamStore) -> None:
    """A put that `restarts` writes the fields of additions and claims too. Values that the store assigned remain."""
    ref = await store.job({"status": HELD, "awaits": 4})
    before = await store.header(ref)
    await store.put(ref, {"awaits": 0, "seq": 77, "created_at": 77}, restarts=True)
    assert await store.header(ref) == before | {"awaits": 0}


async def test_owned__request(store: SeamStore) -> None:
    """A heartbeat that read its session before a claim does not set the request's number back."""
    session = Ref(Kind.SESSION, await store.session())
    read = await store.found(session)
    await store.claim(session.id, 7)
    await store.put(session, {**read.header, "beat_at": 5})
    header = await store.header(session)
    assert (header["request"], header["beat_at"]) == (7, 5)


@pytest.mark.parametrize("status", [HELD, SCHEDULED, READY, RUNNING, FAILED, CANCELLED])
async def test_released__in_every_status(store: SeamStore, status: int) -> None:
    """An addition to `awaits` counts in any status, and changes neither the status nor the revision."""
    ref = await store.job({"status": status, "awaits": 2})
    rev = await store.rev(ref)
    assert await store.add(ref, -1) == Applied()
    assert await store.add(ref, 5, most=2) == Full((ref,))
    assert (await awaits(store, ref), (await store.header(ref))["status"], await store.rev(ref)) == (1, status, rev)


async def test_released__beside_a_put_of_its_step(store: SeamStore) -> None:
    """A put that changes the status leaves what was added."""
    ref = await store.job({"status": HELD, "awaits": 2})
    await store.apply(Step({ref: await store.rev(ref)}, (Put(ref, {"status": READY}),), adds=(Addition(ref, "awaits", -1),)))
    assert await awaits(store, ref) == 1


async def test_released__due(store: SeamStore) -> None:
    """The last addition brings the job into the index `due`, still HELD and with its revision. `promote` makes it READY in time."""
    due_at = await store.now() + ALL_AT_ONCE
    ref = await store.job({"status": HELD, "awaits": 2, "due_at": due_at})
    rev = await store.rev(ref)

    await store.add(ref, -1)
    assert not await is_due(store, ref)
    assert await store.perform(Promote(9)) == (0, None)
    await store.add(ref, -1)
    assert await is_due(store, ref)
    assert (await store.header(ref))["status"] == HELD
    assert await store.rev(ref) == rev

    assert await store.perform(Promote(9)) == (0, due_at)
    assert (await store.header(ref))["status"] == HELD
    store.advance(30)
    assert await store.perform(Promote(9)) == (1, None)
    assert (await store.header(ref))["status"] == READY


async def test_stamped__seq(store: SeamStore) -> None:
    """Each new record has a higher `seq` than all before it of its kind: in the order of calls, of steps, and of the puts in a step."""
    for kind in (Kind.JOB, Kind.END, Kind.ACTION, Kind.INBOX):
        refs = [store.ref(kind) for _ in range(6)][::-1]
        header = possible() if kind == Kind.JOB else {}
        await store.apply(Step(dict.fromkeys(refs[:2], ABSENT), tuple(Put(ref, header) for ref in refs[:2])))
        await store.apply(*(Step({ref: ABSENT}, (Put(ref, header),)) for ref in refs[2:5]))
        await store.put(refs[5], header)
        await store.drop(refs[0])
        again = await store.put(refs[0], header)
        numbers = [(await store.header(ref))["seq"] for ref in (*refs[1:], again)]
        assert numbers == sorted(set(numbers))


async def test_stamped__at_the_apply(store: SeamStore) -> None:
    """`created_at`, NOW and After get the time at which the step is applied, not that of the query before it."""
    early, ref, action = await store.now(), store.ref(), store.ref(Kind.ACTION)
    header = possible({"due_at": NOW, "expires_at": After(5_000_000), "claimed_at": early})
    step = Step({ref: ABSENT, action: ABSENT}, (Put(ref, header), Put(action, {})))
    store.advance(60)
    before = await store.now()
    assert await store.apply(step) == [Applied()]
    after = await store.now()

    seen = await store.header(ref)
    for stamp in (seen["created_at"], seen["due_at"], seen["expires_at"] - 5_000_000, (await store.header(action))["created_at"]):
        assert before <= stamp <= after
    assert seen["claimed_at"] == early
    await store.put(ref, {"due_at": NOW})  # a later put takes NOW anew, and leaves what the store gave
    assert await store.header(ref) == seen | {"due_at": (await store.header(ref))["due_at"]}
    assert (await store.header(ref))["due_at"] >= seen["due_at"]
    assert {type(seen[name]) for name in ("due_at", "expires_at")} == {int}


async def test_full__bound(store: SeamStore) -> None:
    """An addition may reach its bound, but not pass it."""
    ref = await store.job({"status": HELD, "awaits": 1})
    assert await store.add(ref, 1, most=2) == Applied()
    answer = await store.add(ref, 1, most=2)
    assert isinstance(answer, Full)
    assert answer.refs in ((), (ref,))
    assert await awaits(store, ref) == 2


@pytest.mark.parametrize("sizes", [(3, 1, 2, 1, 0), (2, 1, 1), (3, 3)])
async def test_full__room_of_each_step(kind: type[SeamStore], sizes: tuple[int, ...]) -> None:
    """A step that has no room takes none from smaller ones behind it."""
    async with kind.open(capacity=4) as store:
        await store.job()
        steps, room, expected = list[Step](), 3, list[type]()
        for size in sizes:
            refs, mark = [store.ref() for _ in range(size)], store.ref(Kind.MARK)
            steps.append(Step(dict.fromkeys([mark, *refs], ABSENT), (Put(mark, {}), *map(a_job, refs))))
            expected.append(Applied if size <= room else Full)
            room -= size if size <= room else 0
        answers = await store.apply(*steps, grows=True)
        assert [type(answer) for answer in answers] == expected
        found = (await store.perform(Query(tuple(ref for step in steps for ref in step.expect)))).records
        assert [{found[ref] is not None for ref in step.expect} for step in steps] == [{answer is Applied} for answer in expected]


async def test_full__no_room(kind: type[SeamStore]) -> None:
    """If the store has no room, a step with new jobs is Full if the call `grows`, with an explanation for the caller."""
    async with kind.open(capacity=2) as store:
        await store.job()
        refs = [store.ref() for _ in range(4)]
        steps = [Step({ref: ABSENT}, (a_job(ref),)) for ref in refs]
        answers = await store.apply(*steps[:2], grows=True)
        said = await store.perform(Add([a_job(refs[2])]))
        assert [type(answer) for answer in answers] == [Applied, Full]
        [full] = [answer for answer in answers if isinstance(answer, Full)]
        assert full.refs == ()
        assert full.says == said != ""
        assert await store.apply(steps[2]) == [Applied()]
        assert [await store.load(ref) is not None for ref in refs] == [True, False, True, False]


@pytest.mark.parametrize("part", ["sent", "state", "content"])
async def test_content__kept_replaced_removed(store: SeamStore, part: str) -> None:
    """A put keeps, replaces or removes each part by itself."""
    ref = await store.job(sent=b"sent", state=b"state", content=b"content")
    for value in (KEEP, b"", b"\xff\x00 other", KEEP, None, KEEP):
        before = await store.found(ref, with_content=True)
        parts: dict[str, Any] = {part: value}
        await store.put(ref, **parts)
        record = await store.found(ref, with_content=True)
        expected = before if value is KEEP else before._replace(**parts)
        assert record[3:6] == expected[3:6]


async def test_content__only_if_asked_for(store: SeamStore) -> None:
    """A query returns the content of records and entries only if it asks for it, and the other parts always."""
    ref = await store.job(sent=b"sent", state=b"state", content=b"content")
    for with_content, content in ((False, None), (True, b"content")):
        seen = await store.perform(Query((ref,), (Scan("ready", 1),), with_content=with_content))
        assert seen.records[ref][3:6] == (b"sent", b"state", content)
        assert seen.scans[0][0].record[3:6] == (b"sent", b"state", content)


async def test_unread__any_bytes(store: SeamStore) -> None:
    """A record of any bytes, even a large one, is loaded, put and dropped like others."""
    junk = bytes(range(256)) * 4_096
    for part in ("sent", "state", "content"):
        parts: dict[str, Any] = {part: junk}
        ref = await store.job(**parts)
        assert junk in (await store.found(ref, with_content=True))[3:6]
        await store.put(ref, {"priority": 1})
        assert junk in (await store.found(ref, with_content=True))[3:6]
        await store.drop(ref)
        assert await store.load(ref) is None


async def test_unread__damage_alone(kind: type[SeamStore]) -> None:
    """A header that cannot be read is reported as damage. The records beside it are read as usual, and it can be dropped."""
    async with kind.open() as store:
        spoilt, sound = await store.job(), await store.job()
        before = await store.found(spoilt)
        if not await store.spoil(spoilt):
            pytest.skip("nobody but the store can write its records")

        seen = await store.perform(Query((spoilt, sound), (Scan("ready", 9),)))
        scanned = {entry.ref: entry.record for entry in seen.scans[0]}
        assert scanned == seen.records
        for record in (seen.records[spoilt], scanned[spoilt]):
            assert record.damage.startswith("queue\t")
            assert {**record.header, "queue": "default"} in (before.header, {"queue": "default"})
        assert seen.records[sound].damage is None
        await store.drop(spoilt)
        assert await store.load(spoilt) is None


async def test_unread__addition_keeps_bytes() -> None:
    """An addition to a record that no script can read changes nothing. SQL stores add to a column of its own."""
    async with RedisSeamStore.open() as store:
        assert isinstance(store, RedisSeamStore)
        held = await store.job({"status": HELD, "awaits": 1})
        rev, cut = await store.rev(held), (await store.bytes_of(held))[:12]
        await store.write(held, cut)
        await store.apply(Step({held: rev}, adds=(Addition(held, "awaits", -1),)))
        assert await store.bytes_of(held) == cut


async def test_locked(store: SeamStore) -> None:
    """Only the steps that name a locked record are Locked. The others take effect."""
    held, free = await store.job(), await store.job()
    steps = [Step({ref: await store.rev(ref)}, (Put(ref, {"priority": 1}),)) for ref in (held, free)]
    async with store.lock(held) as is_locked:
        if not is_locked:
            pytest.skip("no program has a transaction in this store")
        async with asyncio.timeout(5):
            answers = await store.apply(*steps)
    assert [type(answer).__name__ for answer in answers] == ["Locked", "Applied"]
