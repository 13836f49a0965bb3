"""Admin pages in a store with a million jobs: how long each kind takes, and how long another program's enqueue takes meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.loops import run_in_fastest_loop
from benchmarks.options import Options
from benchmarks.places import PLACES
from benchmarks.report import Measured, Row, in_turn, percentile
from taskflow.broker.admin import View
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.fingerprint import cause_of
from taskflow.model.ids import IdFactory
from taskflow.model.record import Status
from taskflow.model.session import Session
from taskflow.model.verdict import Cancelled, Failed, RunError, Settlement, Succeeded, Verdict

JOBS: Final = 1_000_000
SHARES: Final[Mapping[Status, float]] = {
    Status.SUCCEEDED: 0.32,
    Status.FAILED: 0.08,
    Status.CANCELLED: 0.04,
    Status.HELD: 0.01,
    Status.SCHEDULED: 0.15,
    Status.READY: 0.398,
    Status.RUNNING: 0.002,
}
"""The share of the jobs that have each status."""

QUEUES: Final = tuple(f"queue-{number}" for number in range(8))
SMALL: Final = "small"
IN_SMALL: Final = 40
"""A queue with few jobs beside the large queues, and its number of jobs of each status."""

TAGGED: Final = 10_000
PAYLOAD: Final = bytes(200)
AT_ONCE: Final = 1_000

CAUSES: Final = 150
"""The number of causes of failures."""

LIMIT: Final = 100
PAGES: Final = 40
DEEP: Final = 50
"""`PAGES` pages of each kind are read from the start, and as many after `DEEP` pages of a thousand jobs."""

ENQUEUED_FOR: Final = 15.0
EVERY: Final = 0.01
TURNS: Final = 4

VIEWS: Final[Mapping[str, View]] = {
    **{str(status): View(statuses=(status,)) for status in Status},
    **{f"{status} of a queue": View(statuses=(status,), queue=QUEUES[3]) for status in Status},
    **{f"{status} of a small queue": View(statuses=(status,), queue=SMALL) for status in Status},
    "all": View(),
    "a tag": View(tag="import:42"),
    "a tag and a status": View(tag="import:42", statuses=(Status.READY,)),
    "a rare job": View(job="rare", statuses=(Status.READY,)),
    "an error": View(error="no such text", statuses=(Status.FAILED,)),
    "a header": View(header=("trace", None), statuses=(Status.SUCCEEDED,)),
}


def pages(options: Options) -> list[Row]:
    """Measure on each store the 95th percentile of each kind of page, and a neighbour's enqueue with and without constant paging."""
    rows: list[Row] = []
    jobs = options.jobs or options.of(JOBS)
    for name in [options.on] if options.on else PLACES:
        with PLACES[name](options.under) as url:
            run_in_fastest_loop(fill(url, jobs))
            rows += in_turn(f"{name}, {jobs:,} jobs", 1, lambda: run_in_fastest_loop(_pages(url)), part=f"{name} pages")
            rows += in_turn(f"{name}, a neighbour's enqueue beside constant paging", 1, partial(_neighbour, url), part=f"{name} enqueue")
    return rows


# --- the jobs -------------------------------------------------------------------------------------------------------


async def fill(url: str, jobs: int) -> None:
    broker, new_id = connect(url), IdFactory()
    session = Session(id=os.urandom(16), name="filler:1", ttl=86_400.0)
    await broker.register(session)

    def envelopes(number: int, first: int, **fields: object) -> list[Envelope]:
        return [
            Envelope(
                id=new_id(),
                job="common",
                payload=PAYLOAD,
                queue=SMALL if first + n < IN_SMALL else QUEUES[n % len(QUEUES)],
                headers={"from": "web"},
                keep_result=86_400.0,
                tags=("import:42",) if first < TAGGED and fields.get("after", 0.0) == 0.0 and not fields.get("awaits") else (),
                **fields,  # type: ignore[arg-type]
            )
            for n in range(number)
        ]

    request = 0
    for status in SHARES:
        wanted = int(SHARES[status] * jobs)
        for first in range(0, wanted, AT_ONCE):
            number = min(AT_ONCE, wanted - first)
            after = 3600.0 + first if status is Status.SCHEDULED else 0.0
            await broker.enqueue(envelopes(number, first, after=after, awaits=int(status is Status.HELD)))
            if status is Status.RUNNING or status.is_ended:
                taken = 0
                while taken < number:
                    leases = await broker.claim(session.id, request := request + 1, [], 200)
                    taken += len(leases)
                    if status.is_ended:
                        await broker.settle([_settled(lease, status) for lease in leases])
                    if not leases:
                        raise RuntimeError(f"{number - taken} jobs were not claimed")
    await broker.close()


def _settled(lease: Lease, status: Status) -> Settlement:
    number = lease.envelope.id[-1] % CAUSES
    error = RunError(type="ValueError", message=f"cause {chr(65 + number % 26) * (1 + number // 26)}", traceback="", attempt=1)
    verdicts: Mapping[Status, Verdict] = {
        Status.SUCCEEDED: Succeeded(b"\xc0"),
        Status.FAILED: Failed(error),
        Status.CANCELLED: Cancelled("no longer needed"),
    }
    verdict = verdicts[status]
    cause = cause_of(verdict, f"v{number % 3}")
    return Settlement(id=lease.envelope.id, epoch=lease.epoch, claim=lease.claim, verdict=verdict, keep_for=86_400.0, cause=cause)


# --- pages ----------------------------------------------------------------------------------------------------------


async def _pages(url: str) -> Measured:
    broker = connect(url)
    found: dict[str, float] = {}
    for kind, view in VIEWS.items():
        taken = await _timed(broker, view, None)
        cursor: str | None = None
        for _ in range(DEEP):
            cursor = (await broker.admin.page(view, cursor=cursor, limit=1_000)).cursor
            if cursor is None:
                break
        if cursor is not None:
            taken += await _timed(broker, view, cursor)
        found[f"{kind}, p95 ms"] = 1e3 * percentile(taken, 0.95)
    await broker.close()
    return {"the slowest kind, p95 ms": max(found.values()), **found}


async def _timed(broker: Broker, view: View, cursor: str | None) -> list[float]:
    taken = list[float]()
    first = cursor
    for _ in range(PAGES):
        began = time.perf_counter()
        page = await broker.admin.page(view, cursor=cursor, limit=LIMIT)
        taken.append(time.perf_counter() - began)
        cursor = first if page.cursor is None else page.cursor
    return taken


# --- the neighbour --------------------------------------------------------------------------------------------------


def _neighbour(url: str) -> Measured:
    """Measure a program that enqueues one job at a time, in turn alone and beside a program that reads page after page."""
    quiet, beside = list[float](), list[float]()
    for _ in range(TURNS):
        quiet += _enqueued(url)
        with _paging(url):
            beside += _enqueued(url)
    figures = {"alone, p99 ms": 1e3 * percentile(quiet, 0.99), "beside pages, p99 ms": 1e3 * percentile(beside, 0.99)}
    return {**figures, "beside pages, of alone": figures["beside pages, p99 ms"] / figures["alone, p99 ms"]}


def _enqueued(url: str) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "taken"
        subprocess.run([sys.executable, "-m", __name__, "enqueue", url, str(file)], check=True)
        return [float(line) for line in file.read_text().split()]


@contextmanager
def _paging(url: str) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-m", __name__, "page", url], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        program.stdout.readline()  # it has begun
        try:
            yield
        finally:
            program.send_signal(signal.SIGTERM)


async def _enqueue(url: str) -> list[float]:
    broker, new_id, taken = connect(url), IdFactory(), list[float]()
    ends_at = time.monotonic() + ENQUEUED_FOR
    while time.monotonic() < ends_at:
        began = time.perf_counter()
        await broker.enqueue([Envelope(id=new_id(), job="common", payload=PAYLOAD, queue="beside")])
        taken.append(time.perf_counter() - began)
        await asyncio.sleep(EVERY)
    await broker.close()
    return taken[20:]


async def _page(url: str) -> None:
    broker = connect(url)
    cursors: dict[str, str | None] = dict.fromkeys(VIEWS)
    while True:
        for kind, view in VIEWS.items():
            cursors[kind] = (await broker.admin.page(view, cursor=cursors[kind], limit=LIMIT)).cursor
        print(flush=True)


def main(arguments: Sequence[str]) -> None:
    command, url, *rest = arguments
    if command == "page":
        run_in_fastest_loop(_page(url))
    else:
        Path(rest[0]).write_text("\n".join(map(str, run_in_fastest_loop(_enqueue(url)))))


if __name__ == "__main__":
    main(sys.argv[1:])
