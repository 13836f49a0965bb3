"""The plans of the store's functions, as the server's module auto_explain reports them, and a store with many records of every kind."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import asyncpg

from taskflow import Status
from taskflow.broker import topics
from taskflow.broker.admin import View
from taskflow.broker.engine.records import TABLES, Kind
from taskflow.broker.engine.seam import ABSENT, Addition, Apply, Put, Query, Ref, Scan, Step
from taskflow.broker.postgres import PostgresBroker
from taskflow.broker.postgres.queries import HOT_SCANS
from taskflow.model.audit import Action
from taskflow.model.clock import ManualClock
from taskflow.model.envelope import Lease, OnConflict
from taskflow.model.limits import Gate
from taskflow.model.schedule import Amendment, Definition, Firing
from taskflow.model.session import Beat, Report, Session
from taskflow.model.verdict import Progress, Settled
from tests.stores.jobs import an_envelope, new_id
from tests.stores.postgres.counts import Clock
from tests.support.verdicts import cancelled, failed, retried, snoozed, succeeded

FEW: Final = 1_200
"""The maximum number of rows that a plan may read: upkeep forgets up to 1,000 ids at a time."""
SOME: Final = 200
MANY: Final = 3_000
"""The number of records that FILL creates of each kind, and of jobs in each status."""

_MODULE: Final = """
    LOAD 'auto_explain';
    SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on; SET auto_explain.log_analyze = on;
    SET auto_explain.log_timing = off; SET auto_explain.log_verbose = on; SET auto_explain.log_format = json; SET client_min_messages = log;
"""


class Read(NamedTuple):
    function: str
    table: str
    by: str | None
    rows: int
    is_bounded: bool
    """Whether it looks something up, or stops after a number of rows."""
    text: str

    def __str__(self) -> str:
        return f"{self.function} reads {self.rows} rows of {self.table} by {self.by}: {' '.join(self.text.split())}"


async def can_explain(connection: asyncpg.Connection) -> bool:
    """Load the module, and return True if the server has it."""
    try:
        await connection.execute(_MODULE)
    except asyncpg.UndefinedFileError:
        return False
    return True


@contextmanager
def explaining(connection: asyncpg.Connection) -> Iterator[list[Read]]:
    """Yield a list that afterwards has what the plans of all statements inside have read, including those in functions. See
    `can_explain`."""
    messages, found = list[Any](), list[Read]()

    def take(_: object, message: Any) -> None:
        messages.append(message)

    connection.add_log_listener(take)
    yield found
    connection.remove_log_listener(take)
    for message in messages:
        _, is_plan, plan = message.message.partition("  plan:\n")
        if is_plan:
            root = json.loads(plan)
            function = re.search(r"function (?:taskflow|\"taskflow\")\.(\w+)", message.context or "")
            found.extend(_reads(root["Plan"], function[1] if function else "", root["Query Text"], is_limited=False))


def _reads(node: dict[str, Any], function: str, text: str, *, is_limited: bool) -> Iterator[Read]:
    is_limited = node["Node Type"] == "Limit" or (is_limited and node["Node Type"] not in ("Sort", "Aggregate", "Hash", "ModifyTable"))
    if node["Node Type"].endswith("Scan") and node.get("Schema") == "taskflow" and "Relation Name" in node:
        rows = sum(node.get(part, 0) for part in ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck"))
        is_bounded = is_limited or not node.keys().isdisjoint(("Index Cond", "TID Cond", "Recheck Cond"))
        index = "ctid" if "TID Cond" in node else node["Plans"][0].get("Index Name") if "Recheck Cond" in node else node.get("Index Name")
        yield Read(function, node["Relation Name"], index, round(rows * node["Actual Loops"]), is_bounded, text)
    for child in node.get("Plans", ()):
        is_apart = child.get("Parent Relationship") in ("InitPlan", "SubPlan")
        yield from _reads(child, function, text, is_limited=is_limited and not is_apart)


async def empty_tables(connection: asyncpg.Connection) -> None:
    """Delete what FILL has created. The server then knows that the tables are empty, and large."""
    for table in _FILLED:
        await connection.execute(f"DELETE FROM taskflow.{table} WHERE NOT {'name = $$worker$$' if table == 'sessions' else 'false'}")
        await connection.execute(f"ANALYZE taskflow.{table}")


_FILLED: Final = re.findall(
    r"\w+", "jobs keys tags sessions schedules declared queues ends actions facts idle awaited requests marks lowered totals"
)

_ALL: Final = f"FROM generate_series(1, {MANY}) AS n"
_SOME: Final = f"FROM generate_series(1, {SOME}) AS n"
_ID: Final = "substr(sha256(int8send(n * 8 + {})), 1, 16)"
_OWN: Final = _ID.format(0)

FILL: Final = f"""
    INSERT INTO taskflow.jobs (id, rev, status, flags, priority, queue, job, created_at, due_at, expires_at, awaits, epoch, session, claim,
        claimed_at, claimed_steady, ended_at, fade_at, cause)
    SELECT {_ID.format("s")}, n, s, CASE s WHEN 3 THEN 16 ELSE 0 END, 0, 'other' || n % 3, 'work', 0,
        CASE WHEN s = 1 THEN later ELSE 0 END + n, CASE WHEN s < 3 THEN later END, CASE s WHEN 0 THEN 1 ELSE 0 END, 0,
        CASE s WHEN 3 THEN {_OWN} END, CASE s WHEN 3 THEN substr({_OWN}, 1, 12) END,
        CASE s WHEN 3 THEN 0 END, CASE s WHEN 3 THEN 0 END, CASE WHEN s > 3 THEN n END, CASE WHEN s > 3 THEN later END,
        CASE s WHEN 5 THEN int8send(n) END
    FROM generate_series(1, {MANY}) AS n, generate_series(0, 7) AS s, (SELECT 4000000000000000 AS later) AS t;
    INSERT INTO taskflow.keys (id, rev) SELECT {_OWN}, n {_ALL};
    INSERT INTO taskflow.tags (value, id) SELECT 'other', {_ID.format(2)} {_ALL};
    INSERT INTO taskflow.sessions (id, rev, name, ttl, beat_at, lapses_at, is_released, wants_ends, state)
    SELECT {_OWN}, n, 'other', ttl, beat_at, beat_at + 3000000000000000, 0, 0, state
    {_SOME}, taskflow.sessions WHERE name = 'worker';
    INSERT INTO taskflow.schedules (id, rev, offer_at, is_paused) SELECT {_OWN}, n, 3000000000000000 + n, 0 {_ALL};
    INSERT INTO taskflow.declared (value, id) SELECT {_ID.format(1)}, {_OWN} {_ALL};
    INSERT INTO taskflow.queues (id, rev, is_paused) SELECT convert_to('paused' || n, 'UTF8'), n, 1 {_SOME};
    INSERT INTO taskflow.ends (id, rev) SELECT {_OWN}, n {_SOME};
    INSERT INTO taskflow.actions (id, rev, created_at) SELECT {_OWN}, n, 0 {_SOME};
    INSERT INTO taskflow.facts (id, rev) SELECT {_OWN}, n {_ALL};
    INSERT INTO taskflow.idle (listener, topic, since) SELECT 'other' || n, 'queue:other', taskflow.wall(NULL) {_ALL};
    INSERT INTO taskflow.awaited (id, listener, until_when) SELECT {_OWN}, 'other', 3000000000000000 {_ALL};
    INSERT INTO taskflow.requests (session, request) SELECT {_OWN}, 1 {_ALL};
    INSERT INTO taskflow.marks (kind, queue, at, set_at) SELECT 'kept', 'other' || n, 0, 0 {_ALL};
    INSERT INTO taskflow.marks (kind, queue, at, set_at) SELECT 'ready', 'other' || n, 0, 0 FROM generate_series(0, 2) AS n;
    INSERT INTO taskflow.lowered (kind, queue, rank, xid, at) SELECT 'kept', 'other' || n, 0, '3', 0 {_ALL};
    INSERT INTO taskflow.totals (queue, what, n) SELECT 'other' || n % 3, '=' || n / 3, {MANY} FROM generate_series(0, 20) AS n;
"""
"""Creates many records that do not concern the calls: in other queues, of other sessions, or due in a hundred years."""


class Everything:
    """Makes every call of a worker, a sender and an operator, but no call of functions that only other functions use."""

    def __init__(self, broker: PostgresBroker, clock: Clock | ManualClock) -> None:
        self.clock = clock
        self.broker = broker
        self.session = Session(id=new_id(), name="worker", ttl=3600.0)
        self.requests = 0

    async def claim(self, limit: int, *queues: str) -> list[Lease]:
        self.requests += 1
        self.clock.advance(1.0)
        return list(await self.broker.claim(self.session.id, self.requests, queues, limit))

    async def run(self) -> None:
        for part in (self.work, self.keys_and_joins, self.limits, self.sessions, self.schedules, self.operate, self.wake, self.upkeep):
            await part()

    async def work(self) -> None:
        broker, jobs = self.broker, [an_envelope(priority=n % 3, queue=f"q{n % 2}") for n in range(20)]
        await broker.register(self.session)
        for _ in range(2):
            await broker.enqueue(jobs)
        await broker.enqueue([an_envelope(after=0.1, expires=1.0, tags=("mine",)) for _ in range(4)])
        await broker.enqueue([an_envelope(after=60.0)])
        leases = [*await self.claim(4), *await self.claim(4, "q0"), *await self.claim(4, "q0", "q1")]
        assert len(leases) == 12
        claims = tuple(lease.claim for lease in leases)
        reports = (Report(leases[0].claim, 1.0, Progress(0.5, "half")),)
        await broker.beat(Beat(session=self.session.id, claims=claims[1:], seen=self.requests, reports=reports, looks=True))
        await broker.cancel([leases[11].envelope.id])
        for settlement in (
            [succeeded(lease, keep_for=0.0) for lease in leases[:4]],
            [failed(leases[4]), retried(leases[5])],
            [snoozed(leases[6])],
        ):
            assert await broker.settle(settlement) == [Settled.OK] * len(settlement)
        await broker.settle([succeeded(leases[7], follow_ups=(an_envelope(),), progress=Progress(1.0, "done")), cancelled(leases[11])])
        assert all(await broker.read([lease.envelope.id for lease in leases[4:]]))

    async def keys_and_joins(self) -> None:
        broker, key = self.broker, os.urandom(16)
        held = an_envelope(awaits=2, queue="joined")
        ref, mark = Ref(Kind.JOB, held.id), Ref(Kind.MARK, b"mine")
        await broker.enqueue([held, *[an_envelope(joins=(held.id,), queue="joins") for _ in range(2)]])
        await broker.store.apply(Apply([Step({mark: ABSENT}, (Put(mark, {}),), adds=(Addition(ref, "awaits", 0, 5),))]))
        await broker.settle([succeeded(lease) for lease in await self.claim(2, "joins")])
        await broker.enqueue([an_envelope(key=key, queue="keyed")])
        [lease] = await self.claim(1, "keyed")
        await broker.enqueue([an_envelope(key=key, queue="keyed", on_conflict=OnConflict.REPLACE)])
        await broker.enqueue([an_envelope(key=key, queue="keyed", on_conflict=OnConflict.REPLACE, tags=("mine",))])
        assert await broker.holders([key]) != [None]
        await broker.settle([succeeded(lease, key=key)])
        await broker.enqueue([an_envelope(key=os.urandom(16)) for _ in range(3)])

    async def limits(self) -> None:
        broker, limit = self.broker, Gate(os.urandom(16), "limit", "", 2)
        await broker.enqueue([an_envelope(queue="limited", limits=(limit,)) for _ in range(6)])
        for ended in (failed, succeeded, succeeded):  # first, the slots go to others; then nobody waits for them
            leases = await self.claim(4, "limited")
            settled = await broker.settle([ended(lease, limits=lease.envelope.limits) for lease in leases])
            assert settled == [Settled.OK] * 2

    async def sessions(self) -> None:
        leaving, dying = Session(id=new_id(), name="leaving"), Session(id=new_id(), name="dying")
        for number, session in enumerate((leaving, dying)):
            await self.broker.register(session)
            await self.broker.enqueue([an_envelope(queue="dying")])
            assert await self.broker.claim(session.id, 1, ["dying"], 1)
            await self.broker.beat(Beat.of_death(session.id, "exit code 1") if number else Beat(session=session.id, leaving=True))

    async def schedules(self) -> None:
        broker = self.broker
        await broker.define([Definition("put", bytes(16), b"body")])
        await broker.define([Definition("declared", bytes(16), b"body")], self.session.id, 1.0)
        self.clock.advance(1.0)
        for offer in (await broker.upkeep(10)).offers:
            at = offer.now + 60_000_000
            await broker.fire(
                [Firing(name=offer.name, digest=offer.digest, expected=None, next_at=at, offer_at=at, envelopes=(an_envelope(),))]
            )
        assert len(await broker.admin.schedules(["put", "declared"])) == 2
        assert await broker.admin.amend_schedule("put", Amendment.REMOVE)

    async def operate(self) -> None:
        admin = self.broker.admin
        await admin.pause("paused")
        await admin.queues()
        await admin.metrics()
        await admin.workers()
        for status in Status:
            for queue in (None, "q0"):
                page = await admin.page(View(statuses=(status,), queue=queue), limit=1)
                await admin.page(View(statuses=(status,), queue=queue), limit=1, cursor=page.cursor)
        await admin.page(View(tag="mine"), limit=10)
        [group] = await admin.failure_groups(queue="q0", job="work")
        ids = await admin.failed_ids(group.fingerprint)
        await admin.retry(ids)
        await admin.drop(ids)
        await admin.purge(View(statuses=(Status.READY,), queue="q1"), limit=3)
        await admin.resume("paused")
        await admin.record_action(Action(id=new_id(), by="me", kind="purge"))
        await admin.actions(limit=5)

    async def wake(self) -> None:
        broker, job = self.broker, an_envelope()
        await broker.enqueue([job, an_envelope(queue="q0")])
        all_topics = [topics.ANY_QUEUE, topics.DUE, topics.queue("q0"), topics.session(self.session.id)]
        for listener in ("me", "other"):
            await broker._record_waiting(listener, [], 1, all_topics, [job.id])
        await broker._look(all_topics, [job.id])
        await broker.store.load_awaiting([job.id], [job.id], "me", 1_000_000)
        await broker.store.claim(self.session.id, 1_000_000, ["q0"], 1, ("me", [1], 2, [topics.queue("q0")]))
        self.requests = 1_000_000
        await broker.cancel([job.id])
        await broker._notify({topics.queue("q0"): 1, topics.DUE: 1, topics.session(self.session.id): 1, "*": 1}, [job.id])
        await broker.call("forget_listener", "me")

    async def upkeep(self) -> None:
        broker = self.broker
        for _ in range(3):
            self.clock.advance(2.0)
            await broker.upkeep(100, ends=True)
        await broker.store.fade(10, 0, 0)
        await broker.store.query(Query(tuple(Ref(kind, b"unknown") for kind in TABLES)))
        for name, prefix, backwards, with_records in HOT_SCANS:
            place = ("default" if name == "fair" else self.session.id, 0)[:prefix]
            await broker.store.query(Query(scans=(Scan(name, 10, place, backwards=backwards, with_records=with_records),)))
        await broker.call("locked", [new_id()], [new_id()], '{"sessions": [{"id": "00"}]}')
        await broker.call("check_marks", self.clock.wall())
