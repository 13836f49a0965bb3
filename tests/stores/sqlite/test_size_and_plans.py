"""What a job takes of the disk, and that statements go by their indexes however much there is."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from taskflow.broker.engine.records import INDEXES, Kind
from taskflow.broker.engine.seam import ABSENT, After, Apply, Put, Query, Ref, Run, Scan, Step
from taskflow.broker.sqlite import SqliteBroker, tables
from taskflow.broker.sqlite.statements import Statements
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.model.clock import ManualClock, Seams
from taskflow.model.rules import Rules
from tests.stores.sqlite.support import Open, connected, envelopes


async def test_bytes_a_job(broker: SqliteBroker, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a payload of 200 bytes, indexes counted in."""
    for _ in range(40):
        await broker.enqueue(envelopes(1_000, payload=bytes(200)))
    await broker.close()
    size = path.stat().st_size / 40_000
    with capsys.disabled():
        print(f"\nsqlite: {size:.0f} bytes a queued job with a payload of 200")
    assert size <= 400


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


GONE_AFTER = Rules().keep_cancelled + Rules().repeat_for
"""The age in seconds at which an expired job has left no trace."""


def pages(path: Path) -> int:
    with connected(path) as reader:
        [(value,)] = reader.execute("PRAGMA page_count")
    return int(value)


@pytest.mark.parametrize("shared", [False, True])
async def test_a_file_shrinks_after_its_jobs_are_dropped(open_broker: Open, path: Path, shared: bool) -> None:
    """Upkeep gives back a few pages at a time. A file that other programs share keeps its size."""
    clock = ManualClock()
    broker = open_broker(seams=Seams(clock=clock), shared=shared)
    for _ in range(8):
        await broker.enqueue(envelopes(1_000, payload=bytes(200), expires=1.0))
    large = pages(path)
    for seconds in (60.0, GONE_AFTER):
        clock.advance(seconds)
        while not (await broker.upkeep(40_000)).next_in:
            pass

    for _ in range(100):
        await broker.upkeep(100)

    assert pages(path) < large / 2 if not shared else pages(path) >= large
    with connected(path) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
