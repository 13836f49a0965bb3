"""What operations cost in statements, Python calls and bytes on disk, whatever the store's size, and values that are too large."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest

from taskflow.broker.engine.records import INDEXES, TABLES, Kind
from taskflow.broker.engine.seam import ABSENT, After, Apply, Put, Query, Ref, Run, Scan, Step
from taskflow.broker.sqlite import SqliteBroker, tables
from taskflow.broker.sqlite.statements import Statements
from taskflow.broker.sqlite.store import SqliteStore
from taskflow.broker.sqlite.transactions import QueuedOperation, Transactions
from taskflow.model.clock import ManualClock, Seams
from taskflow.model.errors import TooLarge
from taskflow.model.limits import Gate, gate_id
from taskflow.model.rules import Rules
from taskflow.model.verdict import Settled
from tests.stores.jobs import an_envelope, envelopes, registered
from tests.stores.sqlite.support import Open, connected
from tests.support.verdicts import succeeded

MANY = 100


@pytest.mark.parametrize("number", [1, MANY])
async def test_an_enqueue_a_claim_and_a_settlement_are_a_handful_of_statements(broker: SqliteBroker, said: list[str], number: int) -> None:
    """This holds for any number of jobs: beside a busy event loop each statement may cost a switch of threads."""
    session = await registered(broker)
    await broker.enqueue(envelopes(2 * number))
    await broker.settle([succeeded(lease) for lease in await broker.claim(session.id, 1, ["default"], number)])
    said.clear()
    await broker.enqueue(envelopes(10 * number))
    assert len(said) <= 16, said
    assert said.count("COMMIT") == 1
    said.clear()
    leases = await broker.claim(session.id, 2, ["default"], number)
    assert len(leases) == number
    assert len(said) <= 7, said  # what is flushed, begin, the request, a look, the leases, the counts, commit
    said.clear()
    assert await broker.settle([succeeded(lease) for lease in leases]) == [Settled.OK] * number
    assert len(said) <= 6, said  # what is flushed, begin, a look, the jobs, the counts, commit


@pytest.mark.parametrize("queues", [[], ["default"]], ids=["of every queue", "of one queue"])
async def test_a_claim_and_a_settlement_that_wait_together_share_a_transaction(
    broker: SqliteBroker, said: list[str], queues: list[str]
) -> None:
    """There is one commit, one flush, and each count is written once."""
    session = await registered(broker)
    await broker.enqueue(envelopes(2 * MANY))
    leases = await broker.claim(session.id, 1, queues, MANY)
    said.clear()
    settled, claimed = await asyncio.gather(
        broker.settle([succeeded(lease) for lease in leases]), broker.claim(session.id, 2, queues, MANY)
    )
    assert (settled, len(claimed)) == ([Settled.OK] * MANY, MANY)
    together = said[:]
    bounds = [step for step in together if step in ("BEGIN IMMEDIATE", "COMMIT")]
    assert bounds in [["BEGIN IMMEDIATE", "COMMIT"] * times for times in (1, 2)]  # two, if the writer's thread was quicker than the claim
    assert len(together) <= 16, together  # each is in a savepoint


async def test_slots_of_many_limits_are_handed_on_in_a_handful_of_statements(broker: SqliteBroker, said: list[str]) -> None:
    """This holds for any number of gates: the jobs that wait at them are found together."""
    session = await registered(broker)
    limits = [(Gate(gate_id("a", str(number)), "a", str(number), 1),) for number in range(MANY)]
    await broker.enqueue([an_envelope(limits=gates) for gates in limits * 2])
    leases = await broker.claim(session.id, 1, ["default"], 2 * MANY)
    said.clear()
    assert await broker.settle([succeeded(lease, limits=lease.envelope.limits) for lease in leases]) == [Settled.OK] * MANY
    assert len(said) <= 12, said  # also: the runs, the gates, the paused queues, the waiting jobs, and what becomes ready
    assert len(await broker.claim(session.id, 2, ["default"], 2 * MANY)) == MANY


async def test_jobs_without_tags_cost_no_statement_for_tags(broker: SqliteBroker, said: list[str]) -> None:
    """This holds from enqueue to drop, also beside a job that has some. A batch of tagged jobs takes a few more when it is added and
    dropped."""
    session = await registered(broker)
    await broker.enqueue([an_envelope(tags=("a", "b"), after=3_600.0)])

    async def whole_life(request: int, **fields: Any) -> list[str]:
        said.clear()
        await broker.enqueue([*envelopes(MANY, max_attempts=3, **fields), an_envelope(key=b"k" * 16, **fields)])
        leases = await broker.claim(session.id, request, ["default"], MANY + 1)
        await broker.settle([msgspec.structs.replace(succeeded(lease), keep_for=0.0) for lease in leases])
        assert (await broker.upkeep(1_000)).dropped == MANY + 1
        return [step for step in said if "taskflow_tags" in step]

    assert await whole_life(1) == []
    assert len(await whole_life(2, tags=("a", "b"))) <= 6  # the rows of a batch are cut into pieces


async def test_a_job_takes_few_calls_of_python(broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted in this thread and in transactions: rows are packed and unpacked many at a time."""
    number, run, before = 0, Transactions.run, sys.getprofile()

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal number
        number += event == "call"

    def run_counted(self: Transactions, group: Sequence[QueuedOperation]) -> None:
        sys.setprofile(count)
        run(self, group)
        sys.setprofile(None)

    monkeypatch.setattr(Transactions, "run", run_counted)
    session = await registered(broker)
    await broker.enqueue(envelopes(800))
    calls = dict[tuple[int, int], tuple[int, int]]()
    sys.setprofile(count)
    try:
        for request, jobs in enumerate((100, 300, 100, 300), 1):  # SQLite compiles a statement at its first use
            number = 0
            leases = await broker.claim(session.id, request, ["default"], jobs)
            claiming, settlements = number, [succeeded(lease) for lease in leases]
            number = 0
            assert await broker.settle(settlements) == [Settled.OK] * jobs
            calls[request, jobs] = claiming, number
    finally:
        sys.setprofile(before)
    claiming, settling = (more - fewer for more, fewer in zip(calls[4, 300], calls[3, 100], strict=True))
    assert claiming / 200 <= 5.1
    assert settling / 200 <= 3.1


async def test_a_claim_from_many_queues_reads_those_that_it_takes_from(broker: SqliteBroker, said: list[str]) -> None:
    """One query reads all queues that give everything they have; the other statements are those for one queue."""
    session = await registered(broker)
    await broker.enqueue([an_envelope(queue=f"queue-{number % 500}") for number in range(1_000)])
    said.clear()
    leases = await broker.claim(session.id, 499, [], 10)
    names = ("99", "99", "0", "0", "1", "1", "10", "10", "100", "100")
    assert [lease.envelope.queue for lease in leases] == [f"queue-{name}" for name in names]
    assert len(said) <= 8 + 4, said


async def test_every_queue_has_its_turn_behind_those_whose_jobs_have_expired(broker: SqliteBroker) -> None:
    session = await registered(broker)
    await broker.enqueue([an_envelope(queue=f"empty-{number}", expires=0.0) for number in range(100)])
    for request in range(1, 204, 101):
        await broker.enqueue([an_envelope(queue="a-full-one"), an_envelope(queue="one-more")])
        leases = await broker.claim(session.id, request, [], 2)
        assert {lease.envelope.queue for lease in leases} == {"a-full-one", "one-more"}


async def test_bytes_a_job(broker: SqliteBroker, path: Path) -> None:
    """The payload has 200 bytes, and indexes are included."""
    for _ in range(10):
        await broker.enqueue(envelopes(1_000, payload=bytes(200)))
    await broker.close()
    assert path.stat().st_size / 10_000 <= 400


@pytest.fixture(params=[False, True], ids=["empty", "analyzed"])
def connection(request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
    """A store without jobs; SQLite knows that it is empty, or assumes that it is large."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as opened:
        opened.executescript(Statements("taskflow").script(tables.ddl()))
        if request.param:
            opened.execute("ANALYZE")
        yield opened


def test_no_statement_reads_a_table_from_end_to_end(connection: sqlite3.Connection) -> None:
    """Each statement of every operation uses an index, or reads a list of its own."""
    said = set[str]()
    connection.set_trace_callback(said.add)
    store = SqliteStore(connection, Statements("taskflow"), ManualClock(), None)
    refs = [Ref(kind, bytes([kind] * 16)) for kind in TABLES]
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
    """Upkeep releases a few pages at a time. A file that other programs share keeps its size."""
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
    """It is alone in its answer; its neighbour is in the next one."""
    await broker.enqueue([an_envelope(payload=bytes(64 << 20)), an_envelope(payload=bytes(1_000_000))])
    session = await registered(broker)
    [first] = await broker.claim(session.id, 1, [], 10)
    [second] = await broker.claim(session.id, 2, [], 10)
    assert (len(first.envelope.payload), first.unreadable) == (64 << 20, ())
    assert len(second.envelope.payload) == 1_000_000


async def test_a_result_that_is_too_large_is_refused_by_itself(broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store does not count as unavailable, for which a worker would wait without end; the job can be settled otherwise."""
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
