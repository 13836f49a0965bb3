"""Pages of the admin interface: which jobs they list, in which order, and where each begins."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import patch

import pytest

from taskflow.broker import paging
from taskflow.broker.admin import Page, View
from taskflow.broker.engine.pages import scan
from taskflow.broker.engine.seam import Operation
from taskflow.broker.paging import ScanRequest, ScanResult
from taskflow.model.envelope import Envelope
from taskflow.model.record import Status
from taskflow.model.session import Beat
from tests.support.listing import listed
from tests.support.verdicts import SettlementOf, cancelled, failed, succeeded
from tests.support.world import World, id_of, ids_of

LONG = 1_000_000.0


async def pages_of(world: World, view: View, limit: int) -> AsyncIterator[Page]:
    page = await world.broker.admin.page(view, limit=limit)
    yield page
    while page.cursor is not None:
        page = await world.broker.admin.page(view, cursor=page.cursor, limit=limit)
        yield page


async def ids_in_order(world: World, view: View, limit: int = 1) -> list[bytes]:
    return [record.id async for page in pages_of(world, view, limit) for record in page.records]


async def _a_few(world: World) -> list[Envelope]:
    """Add five jobs, a second apart, oldest first: ready mail, scheduled mail, ready default, failed x, poisoned x.

    In `world` one crash is poison."""
    session = await world.a_session(ttl=LONG)
    jobs = list[Envelope]()
    traced: tuple[dict[str, Any], ...] = ({"headers": {"trace": "1"}}, {"after": 60.0, "headers": {"trace": "2"}})
    for fields in (*({"queue": "mail", **each} for each in traced), {"job": "other"}):
        jobs.append(await world.add(**fields))
        world.clock.advance(1.0)
    for settle in (failed, None):
        lease = await world.running(session, queue="x", priority=1)
        jobs.append(lease.envelope)
        if settle is not None:
            await world.settle(settle(lease))
        else:
            await world.broker.beat(Beat.of_death(session.id, "signal SIGSEGV"))
        world.clock.advance(1.0)
    return jobs


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (View(), [4, 3, 2, 1, 0]),
        (View(queue="mail"), [1, 0]),
        (View(queue="nobody"), []),
        (View(job="other"), [2]),
        (View(statuses=(Status.READY,)), [2, 0]),
        (View(statuses=(Status.SCHEDULED, Status.FAILED)), [4, 3, 1]),
        (View(queue="mail", statuses=(Status.READY,)), [0]),
        (View(queue="x", statuses=(Status.FAILED,), job="work"), [4, 3]),
        (View(poison=True), [4]),
        (View(ended_before=1.5), [3]),
        (View(ended_before=0.5, statuses=(Status.FAILED,)), [4, 3]),
        (View(created_before=3.5), [1, 0]),
        (View(header=("trace", None)), [1, 0]),
        (View(header=("trace", "2")), [1]),
        (View(header=("trace", "3")), []),
        (View(error="SIGSEGV"), [4]),
        (View(error="valueerror", queue="x"), [3]),
    ],
)
async def test_page_lists(world: World, view: View, expected: list[int]) -> None:
    """The page has the jobs that the view selects, with all that `read` returns."""
    world = world.under(max_crashes=0)
    jobs = await _a_few(world)

    records = await listed(world.broker.admin, view)

    assert [record.id for record in records] == ids_of([jobs[index] for index in expected])
    assert records == await world.broker.read([record.id for record in records])


async def _ended(world: World, settlement: SettlementOf, queue: str) -> bytes:
    lease = await world.running(queue=queue)
    await world.settle(settlement(lease))
    return id_of(lease)


async def _stock(world: World) -> dict[Status, list[bytes]]:
    """Add jobs of each status in the queues "b" and "a", and return their ids in the order of the list."""
    expected: dict[Status, list[bytes]] = {}
    ended = (failed, succeeded, cancelled)
    for settlement in (*ended, *ended):
        for queue in ("b", "a"):
            job_id = await _ended(world, settlement, queue)
            expected.setdefault((await world.record(job_id)).status, []).insert(0, job_id)
            world.clock.advance(0.5 if queue == "a" else 0.0)  # two jobs end at the same time
    sessions = sorted([await world.a_session(f"host:{n}", ttl=LONG) for n in range(3)], key=lambda session: session.id)
    running = {session.id: [id_of(await world.running(session)) for _ in range(2)] for session in sessions[::-1]}
    expected[Status.RUNNING] = [job_id for session in sessions for job_id in running[session.id]]
    ready = {name: await world.add(**fields) for name, fields in _READY.items()}
    world.clock.advance(3.0)
    await world.upkeep()
    expected[Status.READY] = ids_of([ready[name] for name in ("a urgent", "a first", "a second", "a due", "b urgent", "b", "b low")])
    due = [await world.add(after=after, queue=queue) for after, queue in ((70.0, "b"), (60.0, "a"), (61.0, "b"), (60.0, "a"))]
    expected[Status.SCHEDULED] = ids_of([due[1], due[3], due[2], due[0]])
    expected[Status.HELD] = ids_of([await world.add(awaits=1, queue=queue) for queue in ("b", "a", "b")])
    return expected


_READY: dict[str, dict[str, Any]] = {
    "b": {"queue": "b"},
    "a due": {"queue": "a", "after": 2.0},
    "b low": {"queue": "b", "priority": -5},
    "a first": {"queue": "a"},
    "b urgent": {"queue": "b", "priority": 7},
    "a second": {"queue": "a"},
    "a urgent": {"queue": "a", "priority": 1},
}


async def test_page_order(world: World) -> None:
    """Each status has its order, in one page or in many. Without a status, jobs come in the order of a job's life."""
    expected = await _stock(world)

    for status, ids in expected.items():
        view = View(statuses=(status,))
        assert [record.id for record in (await world.broker.admin.page(view)).records] == ids, status
        assert await ids_in_order(world, view) == ids, status
        records = await listed(world.broker.admin, view)
        for queue in ("a", "b"):
            of_queue = {record.id for record in records if record.queue == queue}
            assert await ids_in_order(world, View(statuses=(status,), queue=queue)) == [job_id for job_id in ids if job_id in of_queue]
    assert await ids_in_order(world, View(), limit=4) == [job_id for status in Status for job_id in expected[status]]
    both = View(statuses=(Status.FAILED, Status.READY))
    assert await ids_in_order(world, both, limit=3) == expected[Status.READY] + expected[Status.FAILED]


async def test_page_cursor(world: World) -> None:
    """A page begins behind the one before, even if its last job is gone. New jobs are not listed, so the pages have an end."""
    await _stock(world)
    for status in (Status.FAILED, Status.READY, Status.SCHEDULED, Status.HELD):
        view = View(statuses=(status,))
        expected, found = await ids_in_order(world, view), list[bytes]()
        async for page in pages_of(world, view, limit=2):
            ids = [record.id for record in page.records]
            found += ids
            world.clock.advance(0.001)
            await world.broker.cancel(ids) if status in (Status.READY, Status.SCHEDULED, Status.HELD) else await world.broker.admin.retry(
                ids
            )
            await world.add(queue="b")
            await world.add(queue="b", after=100.0)
            await world.add(queue="a", awaits=1)
            assert len(found) < 100
        assert found == expected, status


@pytest.mark.parametrize("status", [Status.READY, Status.SCHEDULED, Status.HELD, Status.FAILED, None])
async def test_page_bounded(world: World, status: Status | None) -> None:
    """A page is short if too many jobs were read for it, and the next one goes on behind them."""
    tags = ("a",) if status is None else ()
    after, awaits = (60.0 if status is Status.SCHEDULED else 0.0), int(status is Status.HELD)
    jobs = [await world.add(job=f"job{n % 5}", after=after, awaits=awaits, tags=tags) for n in range(10)]
    if status is None:
        jobs.sort(key=id_of)
    if status is Status.FAILED:
        for lease in await world.claim(await world.a_session()):
            await world.settle(failed(lease))
            world.clock.advance(1.0)
    if status in (Status.FAILED, None):
        jobs.reverse()
    statuses = () if status is None else (status,)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paging, "EXAMINED", 3)
        found = [page async for page in pages_of(world, View(statuses=statuses, tag="a" if tags else None, job="job1"), limit=2)]

    ids = [record.id for page in found for record in page.records]
    assert ids == ids_of([job for job in jobs if job.job == "job1"])
    assert all(page.examined <= 3 and page.stopped_early == (page.cursor is not None and len(page.records) < 2) for page in found)
    assert sum(page.examined for page in found) == 10


async def test_page_bounded__no_longer_kept(world: World) -> None:
    """Few jobs are read, in few round trips, if many ended jobs are past their keeping. The jobs behind them are still listed."""
    session, jobs = await world.a_session(ttl=LONG), list[Envelope]()
    for keep_for in (LONG, 1.0):
        jobs += [await world.add(queue=f"queue{number // 10}") for number in range(40)]
        for lease in await world.claim(session):
            await world.settle(succeeded(lease, keep_for=keep_for))
        world.clock.advance(2.0)
    read = list[tuple[int, int]]()

    def counted(request: ScanRequest) -> Operation[ScanResult]:
        operation, queries, rows, answer = scan(request), 0, 0, None
        while True:
            try:
                effect = operation.send(answer)
            except StopIteration as end:
                read.append((queries, rows))
                found: ScanResult = end.value
                return found
            answer = yield effect
            queries, rows = queries + 1, rows + len(answer.records) + sum(map(len, answer.scans))

    with patch.multiple("taskflow.broker.engine.pages", scan=counted, MAX_FADED=10):
        for queue in (None, "queue1"):
            view = View(statuses=(Status.SUCCEEDED,), queue=queue)
            assert await ids_in_order(world, view, limit=5) == ids_of([job for job in jobs[39::-1] if queue in (None, job.queue)])
    assert all(queries <= 8 and rows <= 50 for queries, rows in read), read


async def test_page_refuses(world: World) -> None:
    """A cursor that no page has made is refused, whatever it contains."""
    for _ in range(3):
        await world.add()
    view = View(statuses=(Status.READY,))
    cursor = (await world.broker.admin.page(view, limit=1)).cursor
    assert cursor is not None
    packed = base64.urlsafe_b64decode(cursor + "==")
    damaged = [
        packed[:-1],
        packed[1:],
        packed + b"\0",
        b"",
        b"\xc0",
        b"\x93\x02\xc0\x91\x01",
        b"\x93\x63\xc0\xc0",
    ]
    texts = ["", "x", "\0", "é", "=" * 10, "A" * 5_000, *(base64.urlsafe_b64encode(each).decode().rstrip("=") for each in damaged)]
    for text in texts:
        with pytest.raises(ValueError, match="the cursor is damaged"):
            await world.broker.admin.page(view, cursor=text)
    with pytest.raises(ValueError, match="belongs to another view"):
        await world.broker.admin.page(View(statuses=(Status.FAILED,)), cursor=cursor)
    with pytest.raises(ValueError, match="limit=0"):
        await world.broker.admin.page(view, limit=0)
