"""Values that no broker has stored: what becomes of them in detail. tests/conformance/test_spoilt_rows.py draws them at random."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from taskflow import Worker, job
from taskflow.app.app import default_app
from taskflow.broker import topics
from taskflow.broker.console import View
from taskflow.broker.protocol import Added
from taskflow.broker.sqlite import SqliteBroker
from taskflow.broker.sqlite.size_limits import LARGEST_PAYLOAD
from taskflow.model.clock import ManualClock
from taskflow.model.envelope import ClaimId
from taskflow.model.record import Status
from taskflow.model.schedule import MAX_OFFERED_BYTES, Definition, Firing
from taskflow.model.seams import Seams
from taskflow.model.session import Beat
from taskflow.model.stored_values import LATEST
from taskflow.model.verdict import Settled, Settlement, Succeeded
from taskflow.worker.options import WorkerOptions
from tests.stores.sqlite.support import Open, a_session, an_envelope, connected, envelopes, registered, run_script, succeeded, unmeasured
from tests.support.listing import listed


def spoil(path: Path, column: str, value: object, seq: int = 1) -> None:
    with connected(path) as connection:
        connection.execute("PRAGMA ignore_check_constraints=ON")
        connection.execute(f"UPDATE taskflow_jobs SET {column} = ? WHERE seq = ?", (value, seq))


@pytest.mark.parametrize("value", [b"\xc1\xff", 0.5, "text"])
@pytest.mark.parametrize("column", ["extras", "name", "due_at", "created_at", "spoilt"])
async def test_an_unsound_job_is_leased_with_what_cannot_be_read(broker: SqliteBroker, path: Path, column: str, value: object) -> None:
    """Beside its neighbours; and its record tells the same when its worker has ended it."""
    jobs = envelopes(3)
    await broker.enqueue(jobs)
    session = await registered(broker)
    spoil(path, column, value, seq=2)

    leases = {lease.envelope.id: lease for lease in await broker.claim(session.id, 1, [], 10)}

    assert [leases[job.id].unreadable for job in (jobs[0], jobs[2])] == [(), ()]
    assert [found.column for found in leases[jobs[1].id].unreadable] == [column]
    assert await broker.settle([succeeded(lease) for lease in leases.values()]) == [Settled.OK] * 3


async def test_a_job_that_ended_in_the_far_future_can_be_dropped(broker: SqliteBroker, path: Path) -> None:
    """Its id is kept for some time after its end, which no column can hold."""
    job = an_envelope()
    await broker.enqueue([job])
    await broker.cancel([job.id])
    spoil(path, "ended_at", (1 << 63) - 1)

    assert await broker.console.drop([job.id]) == [Status.CANCELLED]


async def test_a_replaced_value_is_kept(broker: SqliteBroker, path: Path) -> None:
    job = an_envelope()
    await broker.enqueue([job])
    spoil(path, "failures", b"precious")

    [record] = await broker.read([job.id])

    assert record is not None
    [found] = record.unreadable
    assert (found.column, found.raw) == ("failures", b"precious")
    assert "expected a whole number, got bytes" in found.problem


@pytest.mark.parametrize("odd", [b"short", "sixteen letters.", 7])
async def test_a_job_whose_id_is_none_has_another_one(broker: SqliteBroker, path: Path, odd: object) -> None:
    """So that it can be named, retried and purged."""
    await broker.enqueue(envelopes(2))
    spoil(path, "id", odd)

    records = await listed(broker.console)

    assert [len(record.id) for record in records] == [16, 16]
    [repaired] = [record for record in records if record.unreadable]
    assert await broker.read([repaired.id]) == [repaired]
    assert await broker.console.purge(View()) == 2


@pytest.mark.parametrize("priority", ["high", b"\xc1\xff", 1 << 40])
async def test_a_job_whose_priority_is_none_is_listed(broker: SqliteBroker, path: Path, priority: object) -> None:
    await broker.enqueue(envelopes(2))
    spoil(path, "priority", priority)

    assert len((await broker.console.page(View(statuses=(Status.READY,)))).records) == 2


@pytest.mark.parametrize("status", [None, 7, "ready", 4])
async def test_a_job_whose_status_is_none_is_found_by_upkeep(broker: SqliteBroker, path: Path, status: object) -> None:
    """No claim would; and the counts of its queue are right again."""
    await broker.enqueue(envelopes(2))
    session = await registered(broker)
    spoil(path, "status", status)

    await broker.upkeep(100)

    [queue] = await broker.console.queues()
    assert queue.counts[Status.READY] == 2
    assert len(await broker.claim(session.id, 1, [], 10)) == 2


async def test_a_lease_of_a_session_that_is_unknown_is_released(broker: SqliteBroker, path: Path) -> None:
    await broker.enqueue([an_envelope()])
    session = await registered(broker)
    [lease] = await broker.claim(session.id, 1, [], 1)
    with connected(path) as connection:
        connection.execute("DELETE FROM taskflow_sessions")

    await broker.upkeep(100)

    [record] = await broker.read([lease.envelope.id])
    assert record is not None
    assert record.status is Status.READY


async def test_a_session_whose_request_is_unsound_can_claim(broker: SqliteBroker, path: Path) -> None:
    await broker.enqueue([an_envelope()])
    session = a_session()
    await broker.register(session)
    with connected(path) as connection:
        connection.execute("UPDATE taskflow_sessions SET request = 'many', about = 7, name = x'ff', ttl = 'long'")

    [lease] = await broker.claim(session.id, 1, [], 1)

    assert await broker.settle([succeeded(lease)]) == [Settled.OK]
    assert [worker.session.id for worker in await broker.console.workers()] == [session.id]


@pytest.mark.parametrize(
    ("epoch", "claim"),
    [
        (-1, ClaimId(b"s" * 16, 1, 0)),
        (1 << 80, ClaimId(b"s" * 16, 1, 0)),
        (1, ClaimId(b"short", 1, 0)),
        (1, ClaimId(b"s" * 16, -1, 0)),
        (1, ClaimId(b"s" * 16, 1 << 64, 0)),
        (1, ClaimId(b"s" * 16, 1, 1 << 32)),
    ],
)
async def test_a_fence_that_cannot_exist_is_stale(broker: SqliteBroker, epoch: int, claim: ClaimId) -> None:
    """Its neighbour in the batch counts."""
    await broker.enqueue(envelopes(2))
    session = await registered(broker)
    [good, bad] = await broker.claim(session.id, 1, [], 2)
    impossible = Settlement(id=bad.envelope.id, epoch=epoch, claim=claim, verdict=Succeeded(b""))

    assert await broker.settle([impossible, succeeded(good)]) == [Settled.STALE, Settled.OK]


HUGE = """
    import asyncio, resource, sqlite3, sys
    from pathlib import Path
    from taskflow.broker.sqlite import SqliteBroker
    from tests.stores.sqlite.support import envelopes, registered, succeeded
    from tests.support.listing import listed

    async def main(path, column):
        broker = SqliteBroker(path, timeout=60)
        await broker.enqueue(envelopes(4))
        session = await registered(broker)
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute(f"UPDATE taskflow_jobs SET {column} = zeroblob(80 * 1024 * 1024) WHERE seq = 2")
        connection.close()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        leases = await broker.claim(session.id, 1, [], 10)
        await broker.settle([succeeded(lease) for lease in leases])
        records = await listed(broker.console)
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print([found.column for record in records for found in record.unreadable], len(leases), growth < 400 * 1024, growth)
        await broker.close()

    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("column", ["payload", "errors"])
def test_a_value_of_80_mb_is_not_multiplied(path: Path, column: str) -> None:
    """It is set aside, its neighbours are done, and the process grows by no more than SQLite needs to move it."""
    said = run_script(HUGE, path, column, timeout=120, env=unmeasured(PYTHONPATH=str(Path(__file__).parents[3])))
    assert said.startswith(f"['{column}'] 4 True"), said


@job(name="tests.unsound.work")
async def work(n: int) -> int:
    return n


@pytest.mark.parametrize("value", [b"\xc1\xff", "text", -1, 1 << 50, 0.5, None])
@pytest.mark.parametrize("column", ["id", "name", "ttl", "about", "registered_at", "boot_id", "beat_at", "is_spared", "dead_at", "request"])
async def test_a_worker_goes_on_whose_session_was_spoilt(broker: SqliteBroker, path: Path, column: str, value: object) -> None:
    """As the same session, or as a new one."""
    with default_app().using(broker):
        async with Worker(options=WorkerOptions(ttl=1.0, subscribers=())):
            assert await (await work.delay(1)).result(timeout=5) == 1
            with connected(path, timeout=5) as connection, contextlib.suppress(sqlite3.IntegrityError):  # NOT NULL
                connection.execute("PRAGMA ignore_check_constraints=ON")
                connection.execute(f"UPDATE taskflow_sessions SET {column} = ?", (value,))
            assert [await (await work.delay(n)).result(timeout=10) for n in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("literal", ["1.5", "'text'", "x'c1ff'", "9e999"])
@pytest.mark.parametrize("spoils", ["queues SET ready = {}", "queues SET failed = {}", "meta SET value = {} WHERE name = 'pulse'"])
async def test_a_count_or_a_time_that_is_no_number_stops_nothing(broker: SqliteBroker, path: Path, spoils: str, literal: str) -> None:
    """Neither the queue nor the sessions; and wake-ups go on."""
    jobs = [an_envelope(queue=name) for name in ("one", "two")]
    await broker.enqueue(jobs)
    session = await registered(broker)
    with connected(path) as connection:
        connection.execute("PRAGMA ignore_check_constraints=ON")
        connection.execute("UPDATE taskflow_" + spoils.format(literal))

    await broker.beat(Beat(session=session.id))
    with broker.listen([topics.queue("one")]) as waiter:
        assert await waiter.wait(5.0) or "ready" not in spoils
    leases = [lease for request in (1, 2) for lease in await broker.claim(session.id, request, [], 1)]
    assert {lease.envelope.id for lease in leases} == {job.id for job in jobs}
    assert await broker.settle([succeeded(lease) for lease in leases]) == [Settled.OK] * 2
    await broker.upkeep(100)
    assert len(await broker.console.queues()) == 2


async def test_more_joins_than_any_job_has_are_not_looked_up(broker: SqliteBroker, path: Path) -> None:
    """Each would take a statement when the job ends: a minute for 62 MB."""
    await broker.enqueue([an_envelope()])
    session = await registered(broker)
    spoil(path, "joins", bytes(2 << 20))

    [lease] = await broker.claim(session.id, 1, [], 1)

    assert await broker.settle([succeeded(lease)]) == [Settled.OK]
    [record] = await broker.read([lease.envelope.id])
    assert record is not None
    assert [found.column for found in record.unreadable] == ["joins"]


# --- schedules ---------------------------------------------------------------------------------------------------------

LITERALS = ("NULL", "-1", "0", "1", "9223372036854775807", "x''", "x'c1ff'", "CAST(x'c1ff' AS TEXT)", "'text'", "0.5")


def columns_of(path: Path, table: str) -> list[str]:
    with connected(path) as connection:
        return [name for _, name, *_ in connection.execute(f"PRAGMA table_info(taskflow_{table})")]


def spoil_with(path: Path, table: str, column: str, literal: str) -> None:
    """Except a session's, only what is called "spoilt"."""
    with connected(path) as connection, contextlib.suppress(sqlite3.Error):  # STRICT and NOT NULL
        connection.execute("PRAGMA ignore_check_constraints=ON")
        connection.execute(f"UPDATE taskflow_{table} SET {column} = {literal} WHERE name = 'spoilt' OR '{table}' = 'sessions'")


@pytest.mark.parametrize("literal", LITERALS)
@pytest.mark.parametrize("table", ["schedules", "declarations"])
async def test_a_spoilt_schedule_leaves_the_others_alone(open_broker: Open, path: Path, table: str, literal: str) -> None:
    """Each column in turn. Upkeep does not run in circles, and a new definition repairs the schedule."""
    broker = open_broker(seams=Seams(clock=(clock := ManualClock())))
    await broker.define([])
    for version, column in enumerate(columns_of(path, table)):
        session, digest = await registered(broker), bytes([version]) * 16
        await broker.define([Definition(name, digest, digest) for name in ("sound", "spoilt")], session.id)
        spoil_with(path, table, column, literal)

        offered = {offer.name: offer for offer in (await broker.upkeep(100)).offers}
        assert (await broker.upkeep(100)).next_in > 0, column
        firing = Firing(name="sound", digest=digest, expected=None, next_at=clock.wall(), look_at=None, envelope=an_envelope())
        spoilt = Firing(name="spoilt", digest=digest, expected=None, next_at=1, look_at=None, envelope=an_envelope(), missed=1)
        assert isinstance((await broker.fire([spoilt, firing, spoilt]))[1], Added), column
        assert offered["sound"].digest == digest
        assert all(0 <= offer.next_at <= LATEST for offer in offered.values() if offer.next_at is not None), column
        spoil_with(path, "sessions", "name", literal)
        shown = {record.name: record for record in await broker.console.schedules()}
        assert all(isinstance(name, str) for name in shown["sound"].declarers)

        assert (await broker.define([Definition("spoilt", b"new".ljust(16), b"")], session.id))[0] or column == "is_declared"
        await broker.beat(Beat(session=session.id, leaving=True))
        assert all(record.is_declared or record.asleep_since is None for record in await broker.console.schedules()), column
        with connected(path) as connection:
            connection.execute("DELETE FROM taskflow_schedules")
            connection.execute("DELETE FROM taskflow_declarations")


async def test_definitions_that_are_too_long_together_are_offered_in_turn(broker: SqliteBroker) -> None:
    body = bytes(MAX_OFFERED_BYTES // 2)
    for name in "abc":
        await broker.define([Definition(name, bytes(16), body)])

    first, second = [await broker.upkeep(100) for _ in range(2)]

    assert [offer.name for offer in first.offers + second.offers] == ["a", "b", "c"]
    assert (len(first.offers), first.next_in) == (2, 0.0)


async def test_a_schedule_that_cannot_be_read_is_left_out_for_an_hour(open_broker: Open, path: Path) -> None:
    """And shown. Putting it again repairs it."""
    broker = open_broker(seams=Seams(clock=(clock := ManualClock())))
    definition = Definition("spoilt", b"1" * 16, b"body")
    await broker.define([definition])
    spoil_with(path, "schedules", "body", f"zeroblob({LARGEST_PAYLOAD + 1})")

    assert (await broker.upkeep(100)).offers == ()
    with connected(path) as connection:
        [(look_at,)] = connection.execute("SELECT look_at FROM taskflow_schedules")
    assert look_at == clock.wall() + 3_600_000_000
    [record] = await broker.console.schedules()
    assert (record.name, record.digest, record.body) == ("spoilt", b"", b"")
    await broker.define([definition])
    [offer] = (await broker.upkeep(100)).offers
    assert offer.body == definition.body


async def test_a_schedule_sleeps_whose_session_was_deleted(broker: SqliteBroker, path: Path) -> None:
    """From its next instant on: nobody has handed it over."""
    session = await registered(broker)
    await broker.define([Definition("nightly", bytes(16), b"")], session.id)
    with connected(path) as connection:
        connection.execute("DELETE FROM taskflow_sessions")

    assert (await broker.upkeep(100)).offers == ()

    [record] = await broker.console.schedules()
    assert record.asleep_since is not None
