"""Values that no broker has stored: what becomes of them in detail. tests/conformance/test_spoilt_rows.py draws them at random."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from taskflow import Worker, job
from taskflow.app.app import default_app
from taskflow.broker.console import JobFilter
from taskflow.broker.sqlite import SqliteBroker
from taskflow.model.envelope import ClaimId
from taskflow.model.record import Status
from taskflow.model.verdict import Settled, Settlement, Succeeded
from taskflow.worker.options import WorkerOptions
from tests.stores.sqlite.support import a_session, an_envelope, connected, envelopes, registered, run_script, succeeded, unmeasured


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

    records = await broker.console.browse(JobFilter())

    assert [len(record.id) for record in records] == [16, 16]
    [mended] = [record for record in records if record.unreadable]
    assert await broker.read([mended.id]) == [mended]
    assert await broker.console.purge(JobFilter()) == 2


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
    from taskflow.broker.console import JobFilter
    from taskflow.broker.sqlite import SqliteBroker
    from taskflow.model.record import Status
    from tests.stores.sqlite.support import envelopes, registered, succeeded

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
        records = await broker.console.browse(JobFilter())
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
