"""What a job takes of the disk, values too large for it, and statements that go by their indexes however much there is."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from taskflow.broker.engine.records import INDEXES, Kind
from taskflow.broker.engine.seam import ABSENT, After, Apply, Put, Query, Ref, Run, Scan, Step
from taskflow.broker.sqlite import SqliteBroker, tables
from taskflow.broker.sqlite.statements import Statements
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.model.clock import ManualClock, Seams
from taskflow.model.errors import TooLarge
from taskflow.model.rules import Rules
from taskflow.model.verdict import Settled
from tests.stores.jobs import an_envelope, envelopes, registered
from tests.stores.sqlite.support import Open, connected
from tests.support.verdicts import succeeded


async def test_bytes_a_job(broker: SqliteBroker, path: Path) -> None:
    """With a payload of 200 bytes, indexes counted in."""
    for _ in range(10):
        await broker.enqueue(envelopes(1_000, payload=bytes(200)))
    await broker.close()
    assert path.stat().st_size / 10_000 <= 400


@pytest.fixture(params=[False, True], ids=["empty", "analyzed"])
def connection(request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
    """A store without jobs; SQLite knows that it has none, or takes it for large."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as opened:
        opened.executescript(Statements("taskflow").script(tables.ddl()))
        if request.param:
            opened.execute("ANALYZE")
        yield opened


def test_no_statement_reads_a_table_from_end_to_end(connection: sqlite3.Connection) -> None:
    """Each statement of every operation goes by an index, or reads a list of its own."""
    said = set[str]()
    connection.set_trace_callback(said.add)
    store = SqliteStore(connection, Statements("taskflow"), ManualClock(), None)
    refs = [Ref(kind, bytes([kind] * 16)) for kind in tables.TABLES]
    job, session = refs[Kind.JOB], refs[Kind.SESSION]
    new = Put(job, {"queue": "default", "job": "work", "due_at": After(0), "flags": 4}, entries={"tags": ("a",)})
    store.apply(Apply([Step({ref: ABSENT}, (new if ref == job else Put(ref, {}),)) for ref in refs]))
    store.add([Put(Ref(Kind.JOB, bytes(16)), {"queue": "default", "job": "work"})])
    for request, queues in ((1, []), (1, []), (2, ["default", "other"])):
        assert store.claim(session.id, request, queues, 1) is not None
    store.succeed([Run(job.id, 1, session.id, bytes(12), b"", 0, 0)])
    store.promote(10)
    store.fade(10, 0, 0)
    prefixes = {index.name: ((0,) * index.groups or (0,)) for index in INDEXES}
    scans = [
        Scan(index.name, 5, backwards=backwards) for index in INDEXES if index.listed and not index.entries for backwards in (False, True)
    ]
    scans += [Scan(index.name, 5, prefixes[index.name], prefixes[index.name]) for index in INDEXES if index.listed]
    store.query(Query(tuple(refs), tuple(scans), tuple((index.name, ()) for index in INDEXES if index.groups)))
    seen = store.query(Query(tuple(refs)))
    store.apply(Apply([Step({ref: record.rev}, drops=(ref,)) for ref, record in seen.records.items() if record is not None]))
    connection.set_trace_callback(None)

    roots = dict(connection.execute(_ROOTS).fetchall())
    scanned = set[str]()
    for statement in said:
        opened = dict[int, str]()
        for _, operation, cursor, root, *_ in connection.execute(f"EXPLAIN {statement}"):
            if operation in ("OpenRead", "OpenWrite"):
                opened.pop(cursor, None)
                if root in roots:
                    opened[cursor] = roots[root]
            elif operation in ("Rewind", "Last") and cursor in opened:
                scanned.add(f"{opened[cursor]}: {statement}")
    assert scanned == set()


_ROOTS = """\
SELECT rootpage, name FROM sqlite_master
WHERE type = 'table' AND name IN ('taskflow_jobs', 'taskflow_keys', 'taskflow_tags', 'taskflow_declared')"""
"""The tables that may be large."""


@pytest.mark.parametrize("shared", [False, True])
async def test_a_file_shrinks_after_its_jobs_are_dropped(open_broker: Open, path: Path, shared: bool) -> None:
    """Upkeep gives back a few pages at a time. A file that other programs share keeps its size."""
    clock, gone_after = ManualClock(), Rules().keep_cancelled + Rules().repeat_for
    broker = open_broker(seams=Seams(clock=clock), shared=shared)
    with connected(path) as reader:
        for _ in range(8):
            await broker.enqueue(envelopes(1_000, payload=bytes(200), expires=1.0))
        [(large,)] = reader.execute("PRAGMA page_count")
        for seconds in (60.0, gone_after):
            clock.advance(seconds)
            while not (await broker.upkeep(40_000)).next_in:
                pass
        for _ in range(100):
            await broker.upkeep(100)
        [(small,)] = reader.execute("PRAGMA page_count")
        assert small < large / 2 if not shared else small >= large
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_a_long_payload_comes_back(broker: SqliteBroker) -> None:
    """Alone in its answer; its neighbour is in the next one."""
    await broker.enqueue([an_envelope(payload=bytes(64 << 20)), an_envelope(payload=bytes(1_000_000))])
    session = await registered(broker)

    [first] = await broker.claim(session.id, 1, [], 10)
    [second] = await broker.claim(session.id, 2, [], 10)

    assert (len(first.envelope.payload), first.unreadable) == (64 << 20, ())
    assert len(second.envelope.payload) == 1_000_000


async def test_a_result_that_is_too_large_is_refused_by_itself(broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as a store that is away, which a worker would wait for without end; its job can be settled otherwise."""
    connect = sqlite3.connect

    def connect_with_limit(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened: sqlite3.Connection = connect(*arguments, **options)
        opened.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 50_000)  # SQLite's own limit is 1 GB
        return opened

    monkeypatch.setattr(sqlite3, "connect", connect_with_limit)
    await broker.enqueue([an_envelope()])
    session = await registered(broker)
    [lease] = await broker.claim(session.id, 1, [], 1)
    with pytest.raises(TooLarge, match="SQLite allows no value above 1,000,000,000 bytes"):
        await broker.settle([succeeded(lease, bytes(60_000))])
    assert await broker.settle([succeeded(lease)]) == [Settled.OK]
