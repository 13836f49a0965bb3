"""The hot operations, including claims: what each takes, in which order, and what it leaves, writes and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from taskflow.broker.engine.records import BURIED, CANCELLED, FAILED, HELD, READY, RUNNING, SCHEDULED, SUCCEEDED, Flag, Kind
from taskflow.broker.engine.seam import NOW, Add, After, Fade, HandedOver, HandOver, Promote, Put, Query, Record, Ref, Run, Scan, Succeed
from taskflow.model import wording
from tests.seam.harness import SeamStore, a_job

SECOND = 1_000_000


async def totals(store: SeamStore) -> dict[tuple[str, str], int]:
    found = (await store.perform(Query(with_totals=True))).totals
    return {name: number for name, number in found.items() if number}


async def test_hot_add__known_ids(store: SeamStore) -> None:
    """A job whose id is known is left as it is, even if it has ended. The others are added, and each counts as `enqueue`."""
    known, ended, new = await store.job({"priority": 5}), await store.job({"status": BURIED}), store.ref()
    before = [await store.found(ref) for ref in (known, ended)]
    answer = await store.perform(Add([a_job(ref, {"queue": "q", "priority": 1}) for ref in (known, new, ended)]))
    assert answer == [False, True, False]
    assert [await store.found(ref) for ref in (known, ended)] == before
    assert await totals(store) == {("q", "enqueue"): 1}
    assert await store.perform(Add([a_job(new)])) == [False]


async def test_hot_add__fields(store: SeamStore) -> None:
    """An added job is as a put would have made it."""
    ref, twin = store.ref(), store.ref()
    put = Put(ref, {"queue": "q", "job": "j", "priority": -3, "due_at": NOW, "expires_at": After(SECOND)}, None, b"sent", b"content")
    assert await store.perform(Add([put])) == [True]
    await store.put(twin, put.header, sent=b"sent", state=None, content=b"content")
    added, applied = [await store.found(ref, with_content=True) for ref in (ref, twin)]
    times = ("created_at", "due_at", "expires_at")
    assert added[3:] == applied[3:]
    assert {n: v for n, v in added.header.items() if n not in (*times, "seq")} == {
        n: v for n, v in applied.header.items() if n not in (*times, "seq")
    }
    assert [added.header[name] - added.header["created_at"] for name in times] == [0, 0, SECOND]
    [ready] = (await store.perform(Query(scans=(Scan("ready", 9, ("q",)),)))).scans
    assert [entry.ref for entry in ready] == [ref, twin]


def run_of(record: Record, **fields: Any) -> Run:
    header = record.header
    return Run(record.ref.id, header["epoch"], header["session"], header["claim"], b"result", 3 * SECOND, 60 * SECOND)._replace(**fields)


async def test_hot_succeed__fields(store: SeamStore) -> None:
    """The job is SUCCEEDED, with its result in place of the payload, the fence, and its times by the store's clock."""
    record = await store.running({"priority": 4}, content=b"payload", sent=b"sent")
    store.advance(10)
    before = await store.now()
    assert (await store.perform(Succeed([run_of(record)]))).answers == [True]
    after = await store.now()

    ended = await store.found(record.ref, with_content=True)
    at = ended.header["ended_at"]
    assert before <= at <= after
    assert ended[3:6] == (b"sent", None, b"result")
    assert ended.header == record.header | {
        "status": SUCCEEDED,
        "session": None,
        "claim": None,
        "settled": (1).to_bytes(8, "big") + record.header["session"] + record.header["claim"] + b"\0",
        "ended_at": at,
        "started_at": at - 3 * SECOND,
        "fade_at": at + 60 * SECOND,
    }
    queue = record.header["queue"]
    assert await totals(store) == {(queue, "claim"): 1, (queue, "succeed"): 1}


async def test_hot_succeed__repeated(store: SeamStore) -> None:
    """A repeated call answers True and changes nothing, also after the job was buried."""
    record = await store.running()
    assert (await store.perform(Succeed([run_of(record)]))).answers == [True]
    for _ in range(2):
        before = await store.found(record.ref, with_content=True)
        assert (await store.perform(Succeed([run_of(record, result=b"other"), run_of(record)]))).answers == [True, True]
        assert await store.found(record.ref, with_content=True) == before
        store.advance(61)
        await store.perform(Fade(9, 100, 1_000 * SECOND))
    assert (await store.header(record.ref))["status"] == BURIED


async def test_hot_succeed__twice_in_one_call(store: SeamStore) -> None:
    """The end is counted once, whether the store remembers the claim's queue or not."""
    record, other = await store.running(), await store.running()
    assert (await store.perform(Succeed([run_of(record), run_of(record), run_of(other)]))).answers == [True] * 3
    queues = [each.header["queue"] for each in (record, other)]
    assert await totals(store) == {(queue, event): 1 for queue in queues for event in ("claim", "succeed")}


@pytest.mark.parametrize("field", ["epoch", "session", "claim", "id"])
async def test_hot_succeed__another_fence(store: SeamStore, field: str) -> None:
    """A run with another epoch, session or claim, or of an unknown job, is False. The runs beside it are ended."""
    record, other = await store.running(), await store.running()
    changed = {"epoch": 2, "session": bytes(16), "claim": bytes(12), "id": bytes(16)}[field]
    before = await store.found(record.ref)
    assert (await store.perform(Succeed([run_of(record, **{field: changed}), run_of(other)]))).answers == [False, True]
    assert await store.found(record.ref) == before


@pytest.mark.parametrize("flag", [1 << bit for bit in range(9) if Flag.TIES & 1 << bit])
async def test_hot_succeed__ties(store: SeamStore, flag: int) -> None:
    """A job with a tie is None, and is left as it is. With another fence it is False."""
    record = await store.running({"flags": flag})
    assert (await store.perform(Succeed([run_of(record), run_of(record, epoch=9)]))).answers == [None, False]
    assert await store.found(record.ref) == record._replace(content=None)


@pytest.mark.parametrize(
    ("named", "next_up", "flags", "ends"),
    [(True, None, 0, True), (True, bytes(16), 0, None), (False, None, 0, None), (True, None, Flag.STATED, None)],
)
async def test_hot_key(store: SeamStore, *, named: bool, next_up: bytes | None, flags: int, ends: bool | None) -> None:
    """The record of its key is dropped if it names this job and no other. Otherwise the job is None, and both stay."""
    record, other = await store.running({"flags": Flag.KEYED | flags}), await store.running({"flags": Flag.KEYED})
    keys = [Ref(Kind.KEY, bytes([number] * 16)) for number in (1, 2)]
    await store.put(keys[0], {"holder": record.ref.id if named else bytes(16), "next": next_up})
    await store.put(keys[1], {"holder": other.ref.id, "next": None})
    runs = [run_of(each, key=key.id) for each, key in zip((record, other), keys, strict=True)]
    assert (await store.perform(Succeed([runs[1]._replace(epoch=9), runs[0]]))).answers == [False, ends]
    assert await store.load(keys[1])
    assert (await store.perform(Succeed(runs))).answers == [ends, True]
    assert await store.load(keys[1]) is None
    assert (await store.load(keys[0]) is None) is bool(ends)
    assert (await store.header(record.ref))["status"] == (SUCCEEDED if ends else RUNNING)
    assert (await store.perform(Succeed(runs))).answers == [ends, True]


@pytest.mark.parametrize(
    ("flags", "names", "is_noted", "ends"),
    [
        (Flag.AWAITED, True, False, True),
        (Flag.AWAITED, False, False, None),
        (Flag.AWAITED | Flag.STATED, True, False, None),
        (Flag.AWAITED, True, True, None),
        (0, False, False, True),
    ],
)
async def test_hot_tie(store: SeamStore, *, flags: int, names: bool, is_noted: bool, ends: bool | None) -> None:
    """Its successor awaits one job less, and gets the result as a note. Otherwise the job is None, and nothing changes."""
    record, other = await store.running({"flags": flags}), await store.running({"flags": Flag.AWAITED})
    awaiting, notes = await store.job({"status": HELD, "awaits": 5}), [Ref(Kind.NOTE, bytes([number] * 20)) for number in (1, 2)]
    if is_noted:
        await store.put(notes[0], {"size": 1}, state=b"x")
    before = await store.rev(awaiting)
    named = {"awaited_by": awaiting.id, "note": notes[0].id} if names else {}
    runs = [run_of(record, **named), run_of(other, awaited_by=awaiting.id, note=notes[1].id)]
    assert (await store.perform(Succeed([runs[0], runs[1]._replace(epoch=9)]))).answers == [ends, False]
    for _ in range(2):
        assert (await store.perform(Succeed(runs))).answers == [ends, True]
    assert await store.rev(awaiting) == before
    assert (await store.header(awaiting))["awaits"] == 4 - (names and bool(ends))
    found = [await store.load(ref) for ref in notes]
    assert found[1] is not None
    assert (found[1].header["size"], found[1].state) == (1 + len(runs[1].result), b"\0" + runs[1].result)
    assert (found[0] is not None) == (is_noted or (names and bool(ends)))


async def test_hot_tie__released(store: SeamStore) -> None:
    """It returns the jobs that await nothing any more, again if the call is repeated, and those that are gone or buried."""
    last, not_last = await store.job({"status": HELD, "awaits": 2, "flags": Flag.LIMITED}), await store.job({"status": HELD, "awaits": 2})
    gone, buried, cancelled = store.ref(), await store.job({"status": BURIED}), await store.job({"status": CANCELLED, "awaits": 1})
    awaiting = [last, last, not_last, gone, buried, cancelled]
    records = [await store.running({"flags": Flag.AWAITED}) for _ in awaiting]
    runs = [run_of(record, awaited_by=ref.id) for record, ref in zip(records, awaiting, strict=True)]
    for _ in range(2):
        answers, released = await store.perform(Succeed(runs))
        assert (answers, sorted(released)) == ([True] * 6, sorted(ref.id for ref in (last, gone, buried)))
    assert [(await store.header(ref))["awaits"] for ref in (last, not_last, cancelled)] == [0, 1, 0]


async def test_hot_tie__readied(store: SeamStore) -> None:
    """A job that awaits nothing any more is returned, or is READY as `promote` would make it. One whose time has not come is returned."""
    now = await store.now()
    last = await store.job({"status": HELD, "awaits": 1, "due_at": now, "queue": "other"}, state=b"state", content=b"content")
    later, behind = [await store.job({"status": HELD, "awaits": 1, **each}) for each in ({"due_at": After(SECOND)}, {"flags": Flag.BEHIND})]
    before, records = await store.found(last, with_content=True), [await store.running({"flags": Flag.AWAITED}) for _ in range(3)]
    runs = [run_of(record, awaited_by=ref.id) for record, ref in zip(records, (last, later, behind), strict=True)]
    _, released = await store.perform(Succeed(runs))
    is_returned = last.id in released
    assert is_returned is ((await store.header(last))["status"] == HELD)
    assert sorted(released) == sorted([later.id, behind.id, *[last.id] * is_returned])
    await store.perform(Promote(9))
    after = await store.found(last, with_content=True)
    assert after.header == before.header | {"status": READY, "awaits": 0, "due_at": after.header["due_at"]}
    assert (after.rev != before.rev, after[3:6]) == (True, before[3:6])
    assert now <= after.header["due_at"] <= await store.now()
    assert {name: number for name, number in (await totals(store)).items() if name[1] == "release"} == {("other", "release"): 1}
    [due, ready] = (await store.perform(Query(scans=(Scan("due", 9), Scan("ready", 9, ("other",)))))).scans
    assert ([entry.ref for entry in due], [entry.ref for entry in ready]) == ([later], [last])
    assert await statuses(store, later, behind) == [HELD, HELD]


@pytest.mark.parametrize("flags", [0, Flag.TAGGED, Flag.NOTED, Flag.STATED])
async def test_hot_tie__of_a_member(store: SeamStore, *, flags: int) -> None:
    """Whatever else a member is, it keeps its place through a claim and a success, and leaves the index of live members."""
    member, awaiting, note = bytes(16) + b"\0\0\1\0", await store.job({"status": HELD, "awaits": 2}), bytes(20)
    record = await store.running({"flags": Flag.MEMBER | Flag.AWAITED | flags, "member": member}, sent=b"sent", content=b"content")
    scans = (Scan("flow", 9), Scan("flow_live", 9))
    seen = await store.perform(Query(scans=scans))
    assert [[entry.position for entry in entries] for entries in seen.scans] == [[(member, record.ref.id)]] * 2
    ends = not flags & Flag.TIES
    answers, _ = await store.perform(Succeed([run_of(record, awaited_by=awaiting.id, note=note)]))
    assert answers == [True if ends else None]

    seen = await store.perform(Query((record.ref,), scans=scans, with_content=True))
    found = seen.records[record.ref]
    assert found is not None
    assert (found.header["member"], found.sent, found.content) == (member, b"sent", b"result" if ends else b"content")
    assert [len(entries) for entries in seen.scans] == [1, 0 if ends else 1]
    if ends:
        store.advance(61)
        await store.perform(Fade(9, 100, 1_000 * SECOND))
        seen = await store.perform(Query((record.ref,), scans=scans))
        assert [len(entries) for entries in seen.scans] == [1 if flags & Flag.KEPT_APART else 0, 0]


async def at_a_gate(store: SeamStore, running: int = 2, **gate: Any) -> tuple[Ref, list[Record], list[Ref]]:
    """Return a gate, jobs that run with a slot of it, and jobs that wait at it."""
    ref = store.ref(Kind.GATE)
    await store.put(ref, {"taken": running, "most": running, "has_waiting": 1, **gate}, state=b"state")
    runs = [await store.running({"flags": Flag.LIMITED}, sent=b"sent", content=b"payload") for _ in range(running)]
    waiting = [
        await store.job(
            {"status": SCHEDULED, "flags": Flag.LIMITED, "gate": ref.id, "queue": "other", "priority": n}, sent=b"s", content=b"c"
        )
        for n in range(2)
    ]
    return ref, runs, waiting


async def hand_over(store: SeamStore, runs: Sequence[Run], gate: Ref) -> HandedOver:
    answer: HandedOver = await store.perform(HandOver(runs, [gate.id] * len(runs)))
    return answer


async def test_hot_limits(store: SeamStore) -> None:
    """The runs end as `succeed` ends them, and the jobs that waited are READY since then, at their places."""
    gate, running, waiting = await at_a_gate(store)
    positions = [await store.header(ref) for ref in waiting]
    before = await store.load(gate)
    twin = await store.running(content=b"payload", sent=b"sent")
    assert await hand_over(store, [run_of(record) for record in running], gate) == ([0, 1], [])
    await store.perform(Succeed([run_of(twin)]))
    ended = [await store.found(record.ref, with_content=True) for record in (*running, twin)]
    at = [record.header["ended_at"] for record in ended]
    assert at[0] == at[1] <= at[2]
    fields = {"status": SUCCEEDED, "session": None, "claim": None}
    for record, run in zip(ended, (*running, twin), strict=True):
        assert record.header == run.header | fields | {
            "settled": (1).to_bytes(8, "big") + run.header["session"] + run.header["claim"] + b"\0",
            "ended_at": record.header["ended_at"],
            "started_at": record.header["ended_at"] - 3 * SECOND,
            "fade_at": record.header["ended_at"] + 60 * SECOND,
        }
        assert (record.sent, record.state, record.content) == (b"sent", None, b"result")
    readied = [await store.found(ref, with_content=True) for ref in waiting]
    assert [record.header for record in readied] == [header | {"status": READY, "gate": None, "since": at[0]} for header in positions]
    assert [(record.sent, record.content) for record in readied] == [(b"s", b"c")] * 2
    seen = await store.perform(Query(scans=(Scan("ready", 9), Scan("holding", 9), Scan("gated", 9), Scan("scheduled", 9))))
    assert [[entry.ref for entry in entries] for entries in seen.scans] == [waiting[::-1], waiting, [], []]
    assert await store.load(gate) == before  # each slot has passed from one job to another
    queues = [record.header["queue"] for record in (*running, twin)]
    expected = {(queue, event): queues.count(queue) for queue in queues for event in ("claim", "succeed")}
    assert await totals(store) == {**expected, ("other", "due"): 2}
    claimed = await store.claim(await store.session(), 1, ["other"])
    assert claimed is not None
    assert [record.ref for record in claimed.records] == waiting[::-1]
    assert not (await store.perform(Query(scans=(Scan("holding", 9),)))).scans[0]


async def test_hot_limits__dropped(store: SeamStore) -> None:
    """The last run takes the gate with it, if no job waits there and no operator has set its number."""
    gate, running, _ = await at_a_gate(store, 1, has_waiting=0)
    kept, more, _ = await at_a_gate(store, 1, has_waiting=0, is_set=1)
    runs = [run_of(running[0]), run_of(more[0])]
    assert await store.perform(HandOver(runs, [gate.id, kept.id])) == ([0, 1], [])
    assert await store.load(gate) is None
    assert (await store.header(kept))["taken"] == 0


@pytest.mark.parametrize(("most", "passing"), [(0, []), (1, [1]), (2, [1, 0]), (5, [1, 0])])
async def test_hot_limits__another_number(store: SeamStore, most: int, passing: list[int]) -> None:
    """As many jobs pass as the gate now has room for, but no more than runs end. If it has more room, it is named."""
    gate, running, waiting = await at_a_gate(store, most=most)
    assert await hand_over(store, [run_of(record) for record in running], gate) == ([0, 1], [gate.id] if most == 5 else [])
    header = await store.header(gate)
    assert (header["taken"], header["is_open"]) == (len(passing), int(most == 5))
    seen = await store.perform(Query(scans=(Scan("ready", 9),)))
    assert [entry.ref for entry in seen.scans[0]] == [waiting[number] for number in passing]


@pytest.mark.parametrize("change", ["epoch", "claim", "session", "id", "flag", "resent"])
async def test_hot_limits__odd(store: SeamStore, change: str) -> None:
    """A run with another fence, or whose job has another tie, is refused, and gives back no slot."""
    gate, running, waiting = await at_a_gate(store)
    run = run_of(running[1])
    if change == "flag":
        run = run_of(await store.running({"flags": Flag.LIMITED | Flag.KEYED}))
    elif change == "resent":
        other, ended, _ = await at_a_gate(store, 1, has_waiting=0)
        run = run_of(ended[0])
        assert await hand_over(store, [run], other) == ([0], [])
    else:
        others: dict[str, Any] = {"epoch": 9, "session": bytes(16), "claim": bytes(12), "id": bytes(16)}
        run = run._replace(**{change: others[change]})
    before = [await store.load(ref) for ref in (gate, waiting[0], running[1].ref)]
    assert await hand_over(store, [run_of(running[0]), run], gate) == ([0], [])
    assert [await store.load(ref) for ref in (gate, waiting[0], running[1].ref)] == before
    assert (await store.header(waiting[1]))["status"] == READY


@pytest.mark.parametrize("needs", ["no gate", "no slot taken", "state", "a turn", "another gate", "its queue"])
async def test_hot_limits__general(store: SeamStore, needs: str) -> None:
    """Nothing changes at a gate that isn't as expected, or where the next job needs more than a slot."""
    gate, running, waiting = await at_a_gate(store, **({"taken": 1} if needs == "no slot taken" else {}))
    flags = {"a turn": Flag.FAIR, "another gate": Flag.MANY_GATES}
    if needs == "no gate":
        gate = store.ref(Kind.GATE)
    elif needs == "state":
        await store.put(waiting[0], {}, state=b"state")
    elif needs == "its queue":
        await store.put(Ref(Kind.QUEUE, b"other"), {"is_paused": 1})
    elif needs in flags:
        await store.put(waiting[0], {"flags": Flag.LIMITED | flags[needs]})
    other, more, _ = await at_a_gate(store, 1, has_waiting=0)
    before = [await store.load(ref) for ref in (gate, *waiting, *(record.ref for record in running))]
    runs = [*map(run_of, running), run_of(more[0])]
    assert await store.perform(HandOver(runs, [gate.id, gate.id, other.id])) == ([2], [])
    assert [await store.load(ref) for ref in (gate, *waiting, *(record.ref for record in running))] == before


async def test_hot_limits__with_other_fields(store: SeamStore) -> None:
    """A run and a waiting job with an expiry and a tag are handed over too."""
    gate, running, waiting = await at_a_gate(store, 1)
    expires_at = await store.now() + 60 * SECOND
    for ref in (running[0].ref, *waiting):
        await store.put(ref, {"expires_at": expires_at})
    assert await hand_over(store, [run_of(running[0])], gate) == ([0], [])
    found = [await store.found(ref, with_content=True) for ref in (running[0].ref, waiting[1])]
    assert [(record.header["status"], record.content) for record in found] == [(SUCCEEDED, b"result"), (READY, b"c")]
    assert found[1].header["since"] == found[0].header["ended_at"]


async def test_hot_promote__fields(store: SeamStore) -> None:
    """A SCHEDULED job keeps its due time and counts as `due`. A released one is due from now on, and counts as `release`."""
    now = await store.now()
    scheduled = await store.job({"status": SCHEDULED, "due_at": now}, state=b"state", content=b"content")
    released = await store.job({"status": HELD, "due_at": now, "queue": "other"}, state=b"state", content=b"content")
    before = [await store.found(ref, with_content=True) for ref in (scheduled, released)]
    store.advance(5)
    early = await store.now()
    assert await store.perform(Promote(9)) == (2, None)
    after = [await store.found(ref, with_content=True) for ref in (scheduled, released)]
    assert early <= after[1].header["due_at"] <= await store.now()
    assert after[0].header == before[0].header | {"status": READY}
    assert after[1].header == before[1].header | {"status": READY, "due_at": after[1].header["due_at"]}
    assert [record[3:6] for record in after] == [record[3:6] for record in before]
    assert await totals(store) == {("default", "due"): 1, ("other", "release"): 1}


async def ended(store: SeamStore, status: int, at: int, fields: Mapping[str, Any] = {}, **parts: Any) -> Ref:
    return await store.job({"status": status, "ended_at": at, "fade_at": at + 1_000 * SECOND, "cause": b"a cause!", **fields}, **parts)


async def statuses(store: SeamStore, *refs: Ref) -> list[int | None]:
    records = [await store.load(ref) for ref in refs]
    return [None if record is None else record.header["status"] for record in records]


async def test_hot_fade__buries_and_forgets(store: SeamStore) -> None:
    """A job is buried once its `fade_at` has come, and forgotten `repeat_for` after its end. Its fence is kept until then."""
    now = await store.now()
    parts = {"sent": b"sent", "state": b"state", "content": b"content"}
    ref = await ended(store, SUCCEEDED, now, {"fade_at": now + 10 * SECOND, "settled": b"fence"}, **parts)
    before = await store.header(ref)

    assert await store.perform(Fade(9, 100, 60 * SECOND)) == (0, False, {})
    store.advance(10)
    assert await store.perform(Fade(9, 100, 60 * SECOND)) == (1, False, {})
    buried = await store.found(ref, with_content=True)
    assert buried.header == before | {"status": BURIED, "cause": None, "fade_at": now + 60 * SECOND}
    assert buried[3:6] == (None, None, None)
    assert await totals(store) == {("default", "drop"): 1}
    store.advance(49)
    await store.perform(Fade(9, 100, 60 * SECOND))
    assert await statuses(store, ref) == [BURIED]
    store.advance(1)
    await store.perform(Fade(9, 100, 60 * SECOND))
    assert await statuses(store, ref) == [None]


async def test_hot_fade__too_many(store: SeamStore) -> None:
    """Each queue keeps `max_kept` FAILED jobs, and as many SUCCEEDED and CANCELLED ones together. The oldest are buried, and counted."""
    now = await store.now()
    failed = [await ended(store, FAILED, now + n) for n in range(3)]
    others = [await ended(store, (SUCCEEDED, CANCELLED)[n % 2], now + n) for n in range(5)]
    elsewhere = [await ended(store, FAILED, now + n, {"queue": "other"}) for n in range(2)]
    live = [await store.job({"status": status}) for status in (HELD, SCHEDULED, READY)]
    assert await store.perform(Fade(99, 2, 60 * SECOND)) == (4, False, {})
    assert await statuses(store, *failed) == [BURIED, FAILED, FAILED]
    assert await statuses(store, *others) == [BURIED] * 3 + [CANCELLED, SUCCEEDED]
    assert await statuses(store, *elsewhere, *live) == [FAILED, FAILED, HELD, SCHEDULED, READY]
    assert await totals(store) == {("default", wording.DROPPED_OVER_CAP): 4, ("default", "drop"): 4}


@pytest.mark.parametrize("flag", [Flag.TAGGED])
async def test_hot_fade__ties(store: SeamStore, flag: int) -> None:
    """A job with a tie is left to the engine: True if its queue has too many, False if it has been kept long enough."""
    now = await store.now()
    surplus = await ended(store, FAILED, now - 5, {"flags": flag})
    kept = await ended(store, FAILED, now - 4)
    old = await ended(store, FAILED, now - 6, {"flags": flag, "fade_at": now, "queue": "other"})
    before = [await store.found(ref) for ref in (surplus, old)]
    assert await store.perform(Fade(9, 1, 60 * SECOND)) == (0, False, {surplus: True, old: False})
    assert [await store.found(ref) for ref in (surplus, old)] == before
    assert await statuses(store, kept) == [FAILED]
    assert await totals(store) == {}


LEASE = {"flags", "priority", "queue", "job", "created_at", "due_at", "expires_at", "epoch", "session", "claim"}
"""The fields that each answer to a claim has."""


async def claim(store: SeamStore, session: bytes, request: int, *queues: str, limit: int = 10) -> list[Record]:
    claimed = await store.claim(session, request, queues, limit)
    assert claimed is not None
    return claimed.records


async def claimed(store: SeamStore, session: bytes, request: int, *queues: str, limit: int = 10) -> list[Ref]:
    return [record.ref for record in await claim(store, session, request, *queues, limit=limit)]


async def test_claim_order__in_a_queue(store: SeamStore) -> None:
    """The highest priority first, then the earliest due time, then the lowest `seq`."""
    wanted = [(9, 5), (9, 5), (9, 7), (0, 1), (0, 2), (-3, 0)]
    jobs = {number: await store.job({"priority": wanted[number][0], "due_at": wanted[number][1]}) for number in (3, 5, 0, 2, 1, 4)}
    assert await claimed(store, await store.session(), 1, "default") == [jobs[number] for number in range(6)]


async def test_claim_turns__each_queue_in_turn(store: SeamStore) -> None:
    """Without queues, every queue with READY jobs is taken, and each is first equally often as the requests rise."""
    queues = ("a", "b", "c")
    for queue in queues:
        for _ in range(4):
            await store.job({"queue": queue})
    session = await store.session()
    firsts = [(await store.header(ref))["queue"] for request in range(1, 7) for ref in await claimed(store, session, request, limit=1)]
    rest = await claimed(store, session, 7)
    assert {queue: firsts.count(queue) for queue in queues} == {"a": 2, "b": 2, "c": 2}
    assert len(rest) == 6


@pytest.mark.parametrize("queues", [(), ("paused", "default")])
async def test_claim_skips__paused_queues(store: SeamStore, queues: tuple[str, ...]) -> None:
    await store.job({"queue": "paused"})
    ref, pause = await store.job(), Ref(Kind.QUEUE, b"paused")
    await store.put(pause, {"is_paused": 1})
    session = await store.session()
    assert await claimed(store, session, 1, *queues) == [ref]
    await store.drop(pause)
    assert len(await claimed(store, session, 2, *queues)) == 1


async def test_claim_repeat__same_answer(store: SeamStore) -> None:
    """The same request gets the same leases in the same order, with their payloads, though other jobs are READY now.
    An older one finds nothing. Each lease counts once as the event `claim` of its queue.
    """
    for number in range(3):
        await store.job({"priority": number}, sent=b"s", content=bytes([number]))
    session = await store.session()
    first = await claim(store, session, 4, "default", limit=3)
    await store.job({"priority": 9})
    assert [record.content for record in first] == [b"\2", b"\1", b"\0"]
    assert await claim(store, session, 4, "default", limit=3) == first
    assert await claimed(store, session, 3, "default") == []
    assert (await store.perform(Query(with_totals=True))).totals == {("default", "claim"): 3}


@pytest.mark.parametrize("request_number", [1, 2])
async def test_claim_dead(store: SeamStore, request_number: int) -> None:
    """An unknown session gets None, and so does a dead one, also for the request that it made when it lived. No job is leased."""
    session, job = await store.session(), await store.job()
    await claim(store, session, 1, "nothing")
    await store.put(Ref(Kind.SESSION, session), {"dead_at": 5})
    assert await store.claim(session, request_number, ["default"]) is None
    assert await store.claim(b"unknown", request_number, ["default"]) is None
    assert (await store.header(job))["status"] == READY


async def test_claim_writes__fields(store: SeamStore) -> None:
    """A claim makes the job RUNNING with the next epoch, names session, claim, times and worker, and clears `started_at`."""
    session = await store.session({"name": "host:77"})
    refs = [await store.job({"priority": priority, "epoch": 6, "started_at": 5, "settled": b"f"}, state=b"s") for priority in (3, 2)]
    before = [await store.found(ref) for ref in refs]
    store.advance(5)
    early = await store.perform(Query())
    claimed = await store.claim(session, 2**40, ["default"], 10)
    late = await store.perform(Query())

    assert claimed is not None
    assert early.now <= claimed.now <= late.now
    for number, (record, was) in enumerate(zip(claimed.records, before, strict=True)):
        stored = await store.found(record.ref)
        header = stored.header
        assert header == was.header | {
            "status": RUNNING,
            "epoch": 7,
            "session": session,
            "claim": (2**40).to_bytes(8, "big") + number.to_bytes(4, "big"),
            "worker": "host:77",
            "started_at": None,
            "claimed_at": header["claimed_at"],
            "claimed_steady": header["claimed_steady"],
        }
        assert early.now <= header["claimed_at"] <= late.now
        assert early.steady <= header["claimed_steady"] <= late.steady
        assert {name: header[name] for name in record.header} == record.header
        assert record.header.keys() >= LEASE
        assert record._replace(header=header) == stored
        assert (record.ref, record.state) == (was.ref, b"s")
