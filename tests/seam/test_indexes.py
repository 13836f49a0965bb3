"""Indexes: each declared one is compared with a model that knows only the declaration."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from taskflow.broker.engine.records import FAILED, HEADERS, HELD, INDEXES, READY, RUNNING, Field, Index, Kind, Type
from taskflow.broker.engine.seam import ABSENT, Addition, Applied, Put, Query, Ref, Scan, Step
from taskflow.model.stored_values import LATEST
from tests.seam import model
from tests.seam.harness import SeamStore, a_job

KINDS: Final = sorted({index.kind for index in INDEXES})
NAMES: Final = ("", "Z", "a", "a b", "é", "\uffee", "\U0001f600", "a" * 100)
"""In the order of their code points, which is that of their UTF-8."""

_VALUES: Final[dict[str, st.SearchStrategy[Any]]] = {
    "status": st.integers(0, 7),
    "flags": st.sampled_from([0, 1, 16, 64, 256, 16 | 64, 1 | 256, 511]),
    "awaits": st.sampled_from([-1, 0, 0, 1, 2**40]),
    "is_released": st.sampled_from([0, 1]),
    "wants_ends": st.sampled_from([0, 1]),
    "is_paused": st.sampled_from([0, 1]),
}
"""Fields with special values: most indexes depend on them."""

_TYPES: Final[dict[Type, st.SearchStrategy[Any]]] = {
    Type.SMALL: st.sampled_from([-(2**15), -100, -1, 0, 1, 100, 2**15 - 1]),
    Type.NUMBER: st.sampled_from([-(2**62), -1, 0, 1, 5, 2**62]),
    Type.NAME: st.sampled_from(NAMES),
    Type.BYTES: st.sampled_from([b"", b"\0", b"a", b"a\0", b"a\xff", b"\xff" * 16]),
}

_OF_JOBS: Final[dict[str, st.SearchStrategy[Any]]] = {
    "priority": st.sampled_from([-100, -1, 0, 1, 100]),
    "cause": st.sampled_from([bytes(8), bytes(7) + b"a", b"a" * 8, b"a" * 8 + b"\0", b"\xff" * 16]),
    **{
        field.name: st.sampled_from([0, 1, 5, LATEST])
        for field in HEADERS[Kind.JOB]
        if field.type is Type.NUMBER and field.name != "awaits"
    },
    **{field.name: st.sampled_from(NAMES[1:]) for field in HEADERS[Kind.JOB] if field.type is Type.NAME},
}
"""The fields of jobs, of which not every value is possible: see the seam's docstring."""


def _field(kind: int, field: Field) -> st.SearchStrategy[Any]:
    chosen = {**_VALUES, **_OF_JOBS} if kind == Kind.JOB else _VALUES
    values = chosen.get(field.name, _TYPES[field.type])
    return values if field.default is not None else st.none() | values


class Change(NamedTuple):
    """What happens to the record with this number: None drops it, and a number is added to what it awaits."""

    number: int
    header: dict[str, Any] | int | None
    values: tuple[str | bytes, ...] | None


def _changes(kind: int) -> st.SearchStrategy[list[Change]]:
    headers = st.fixed_dictionaries({field.name: _field(kind, field) for field in HEADERS[kind]})
    header: st.SearchStrategy[Any] = st.one_of(headers, headers, headers, st.none())
    if kind == Kind.JOB:
        header |= st.sampled_from([-1, 1])
    is_of_bytes = any(index.kind == kind and index.entries is Type.BYTES for index in INDEXES)
    entry: st.SearchStrategy[Any] = _TYPES[Type.BYTES] if is_of_bytes else st.sampled_from(NAMES[1:])
    values = st.none() | st.lists(entry, unique=True, max_size=3).map(tuple)
    return st.lists(st.builds(Change, st.integers(0, 7), header, values), min_size=1, max_size=16)


def complete(kind: int, header: dict[str, Any], serial: int) -> dict[str, Any]:
    """Return the header as an engine would write it: it is possible, no field of a position is None, and no two leases have one claim."""
    header = dict(header)
    if kind == Kind.JOB:
        is_running, has_ended = header["status"] == RUNNING, header["status"] > RUNNING
        header["session"] = (header["session"] or b"").ljust(16, b"\0") if is_running else None
        header["claim"] = serial.to_bytes(12, "big") if is_running else None
        header["claimed_steady"] = header["claimed_steady"] or 0
        header["ended_at"], header["fade_at"] = [(header[name] or 0) if has_ended else None for name in ("ended_at", "fade_at")]
        header["cause"] = header["cause"] or (b"a cause!" if header["status"] == FAILED else None)
    fields = {field.name: field for field in HEADERS[kind]}
    of_kind = [index for index in INDEXES if index.kind == kind]
    while gaps := [name for index in of_kind if model.meets(index, header) for name in index.at if header.get(name, "") is None]:
        header[gaps[0]] = serial.to_bytes(12, "big") if fields[gaps[0]].type is Type.BYTES else serial
    return header


class Records:
    """The records of one kind, as they should be, beside the store."""

    def __init__(self, store: SeamStore, kind: int) -> None:
        self.store, self.kind, self.serial = store, kind, 0
        self.refs = [store.ref(kind) for _ in range(8)][::-1]
        self.index_with_entries = next((index.name for index in INDEXES if index.kind == kind and index.entries), None)
        self.values = dict[Ref, dict[str, Sequence[str | bytes]]]()

    async def change(self, change: Change) -> None:
        ref, mark = self.refs[change.number], self.store.ref(Kind.MARK)
        self.serial += 1
        rev = await self.store.rev(ref)
        if change.header is None:
            step = Step({ref: rev}, drops=(ref,) if rev != ABSENT else ())
            self.values.pop(ref, None)
        elif isinstance(change.header, int):
            step = Step({mark: ABSENT}, (Put(mark, {}),), adds=(Addition(ref, "awaits", change.header),))
        else:
            entries = None if self.index_with_entries is None or change.values is None else {self.index_with_entries: change.values}
            header = complete(self.kind, change.header, self.serial)
            step = Step({ref: rev}, (Put(ref, header, restarts=True, entries=entries),))
            self.values[ref] = {**self.values.get(ref, {}), **(entries or {})}
        assert await self.store.apply(step) == [Applied()]

    async def stored(self) -> model.Records:
        seen = await self.store.perform(Query(tuple(self.refs)))
        return {ref: (record.header, self.values.get(ref, {})) for ref, record in seen.records.items() if record is not None}


def _scans(index: Index, entries: Sequence[tuple[Any, Ref]], data: st.DataObject) -> list[Scan]:
    """Return the whole index, both ways, and a few parts of it: with bounds at entries, at shorter positions, and for many prefixes."""
    scans = [Scan(index.name, 100), Scan(index.name, 100, backwards=True)]
    scans += [Scan(index.name, 2, place[:width]) for place, _ in entries for width in (1, 2) if width <= len(place)]
    if entries:
        places = st.sampled_from([place for place, _ in entries])
        bounds = st.none() | places.flatmap(lambda place: st.integers(1, len(place)).map(lambda n: place[:n]))
        prefixes = places.flatmap(lambda place: st.integers(0, len(place)).map(lambda n: place[:n]))
        part = st.builds(Scan, st.just(index.name), st.integers(0, 5), prefixes | st.just(()), bounds, bounds, st.booleans(), st.booleans())
        scans += [data.draw(part) for _ in range(3)]
    return scans


async def compare(records: Records, data: st.DataObject) -> None:
    """Compare every index of the kind with the model."""
    expected = await records.stored()
    for index in INDEXES:
        if index.kind != records.kind:
            continue
        if index.listed:
            scans = _scans(index, model.entries(index, expected), data)
            seen = await records.store.perform(Query(scans=tuple(scans)))
            for scan, found in zip(scans, seen.scans, strict=True):
                assert [(entry.position, entry.ref) for entry in found] == model.answer(scan, expected), scan
                for entry in found:
                    assert (None if entry.record is None else entry.record.ref) == (entry.ref if scan.with_records else None)
        if index.groups:
            places = [model.position(index, ref, header) for ref, (header, _) in expected.items()]
            prefixes = [(), *(place[:n] for place in places for n in range(1, index.groups + 1))][:12]
            seen = await records.store.perform(Query(groups=tuple((index.name, prefix) for prefix in prefixes)))
            for prefix, groups in zip(prefixes, seen.groups, strict=True):
                assert [tuple(group) for group in groups] == model.groups(index, prefix, expected), (index.name, prefix)


_ANY_SIZE: Final = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture)


@pytest.mark.parametrize("kind_of_record", KINDS)
@pytest.mark.sampled(5)
def test_indexed__as_declared(kind: type[SeamStore], kind_of_record: int) -> None:
    """After any puts, drops and additions, scans and groups of each index are those of the declaration."""

    async def run(store: SeamStore, data: st.DataObject) -> None:
        records = Records(store, kind_of_record)
        try:
            for number, change in enumerate(data.draw(_changes(kind_of_record)), 1):
                await records.change(change)
                if number % 6 == 0:
                    await compare(records, data)
            await compare(records, data)
        finally:
            for ref in await records.stored():
                await store.drop(ref)

    with asyncio.Runner() as runner:
        opened = kind.open()
        store = runner.run(opened.__aenter__())
        try:

            @settings(max_examples=kind.examples, deadline=None, derandomize=True, database=None, suppress_health_check=_ANY_SIZE)
            @given(data=st.data())
            def check(data: st.DataObject) -> None:
                runner.run(run(store, data))

            check()
        finally:
            runner.run(opened.__aexit__(None, None, None))


async def test_indexed__by_every_verb(store: SeamStore) -> None:
    """A claim moves its jobs in the indexes at the instant of the change."""
    refs = [await store.job({"priority": number}) for number in range(3)]
    session = await store.session()
    assert await store.claim(session, 1, limit=2)
    seen = await store.perform(Query(scans=(Scan("ready", 9), Scan("leases", 9, (session,))), groups=(("status", ()), ("leases", ()))))
    assert [[entry.ref for entry in found] for found in seen.scans] == [[refs[0]], [refs[2], refs[1]]]
    assert [[(group.prefix, group.size) for group in found] for found in seen.groups] == [
        [(("default", 2), 1), (("default", 3), 2)],
        [((session,), 2)],
    ]


async def test_counted__many(store: SeamStore) -> None:
    """Groups are exact when many records are added, moved and dropped, in calls of many steps."""
    refs = [store.ref() for _ in range(60)]
    await store.apply(*(Step({ref: ABSENT}, (a_job(ref, {"queue": f"q{n % 3}"}),)) for n, ref in enumerate(refs)))
    revs = (await store.perform(Query(tuple(refs)))).records
    moves = [Step({ref: revs[ref].rev}, (Put(ref, {"status": HELD}),)) for ref in refs[:30]]
    await store.apply(*moves, *(Step({ref: revs[ref].rev}, drops=(ref,)) for ref in refs[30:50]))
    groups = (await store.perform(Query(groups=(("status", ()), ("ready", ()))))).groups
    assert [(group.prefix, group.size) for group in groups[0]] == sorted(
        [((f"q{n}", HELD), 10) for n in range(3)] + [((f"q{n}", READY), len([r for r in range(50, 60) if r % 3 == n])) for n in range(3)]
    )
    firsts = {n: next(ref for ref in refs[50:] if revs[ref].header["queue"] == f"q{n}") for n in range(3)}
    assert [(group.prefix, group.first[-1], group.size) for group in groups[1]] == [
        ((f"q{n}", 0), revs[ref].header["seq"], 0) for n, ref in firsts.items()
    ]


async def test_counted__in_portions(store: SeamStore) -> None:
    """All groups are returned, however many there are. A store may count them in several portions."""
    causes = [number.to_bytes(8, "big") for number in range(190)]
    for first in range(0, len(causes), 50):
        refs = [(store.ref(), cause) for cause in causes[first : first + 50]]
        await store.apply(*(Step({ref: ABSENT}, (a_job(ref, {"status": FAILED, "cause": cause}),)) for ref, cause in refs))
    whole, ready, one = (await store.perform(Query(groups=(("causes", ()), ("ready", ()), ("causes", (causes[150],)))))).groups
    assert [(group.prefix[0], group.size) for group in whole] == [(cause, 1) for cause in causes]
    assert (ready, [group.prefix[0] for group in one]) == ([], [causes[150]])
