"""The dashboard over a million jobs: the time of its pages, the cost of a hundred viewers, and a host's `delay()` beside viewers."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from benchmarks.admin_pages import QUEUES, SMALL, fill
from benchmarks.loops import run_in_fastest_loop
from benchmarks.options import Options
from benchmarks.places import PLACES
from benchmarks.report import Measured, Row, in_turn, percentile
from taskflow import Every, configure, job, operate, schedules
from taskflow.app.app import default_app
from taskflow.app.loop_client import LoopClient
from taskflow.broker.admin import View
from taskflow.broker.sqlite import SqliteBroker
from taskflow.broker.url import connect
from taskflow.dashboard import Access, dashboard
from taskflow.dashboard.live import Sampler
from taskflow.model.clock import ManualClock, Seams, instant_of
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory, id_text
from taskflow.model.measures import Measure, pack_measures
from taskflow.model.record import Status
from taskflow.model.session import Session

JOBS: Final = 1_000_000
WORKERS: Final = 20
SCHEDULES: Final = 50
KINDS: Final = 5  # the number of job names in the history of each queue

TIMES: Final = 40  # the number of requests for each page
VIEWERS: Final = 100
WATCHED_FOR: Final = 20.0  # seconds
CHANGES: Final = 10.0  # jobs per second that change the store meanwhile
FETCH_INTERVAL: Final = 2.0  # seconds between two fetches, as in the pages' script
WATCHED: Final = ("/", "/jobs", "/jobs?status=failed", "/failures", f"/queues/{QUEUES[3]}", "/workers", "/charts")

FEW_VIEWERS: Final = 10
SENT_FOR: Final = 8.0  # seconds
SENT_EVERY: Final = 0.01
TURNS: Final = 3


@job(queue="beside")
async def beside() -> None: ...


def pages(options: Options) -> list[Row]:
    """Measure on each store the 95th percentile and size of each page, the cost of viewers, and the host's `delay()` beside viewers."""
    rows: list[Row] = []
    jobs = options.jobs or options.of(JOBS)
    for name in [options.on] if options.on else PLACES:
        with PLACES[name](options.under) as url:
            run_in_fastest_loop(_remember(url))
            run_in_fastest_loop(fill(url, jobs))
            paths = run_in_fastest_loop(_furnish(url))
            rows += in_turn(f"{name}, {jobs:,} jobs", 1, partial(_in_loop, _pages, url, paths), part=f"{name} pages")
            rows += in_turn(f"{name}, {VIEWERS} viewers", 1, partial(_viewers, url), part=f"{name} viewers")
            rows += in_turn(f"{name}, `delay()` of the host beside {FEW_VIEWERS} viewers", 1, partial(_host, url), part=f"{name} host")
    return rows


async def _remember(url: str) -> None:
    """Fill an empty store with the history of 30 days: by hours, the last 2 days by ten minutes, and the last 3 hours by minutes."""
    now = datetime.now(UTC)
    clock, opened = ManualClock(now - timedelta(days=30)), connect(url)
    kind: Any = type(opened)
    broker = connect(url, seams=Seams(clock)) if isinstance(opened, SqliteBroker) else kind(opened.server, clock=clock)  # type: ignore[attr-defined]
    measure = Measure(runs={"succeeded": 90, "failed": 10}, waits=dict.fromkeys(range(10, 20), 10), times=dict.fromkeys(range(12, 22), 10))
    packed = pack_measures({(queue, f"job-{number}"): measure for queue in QUEUES for number in range(KINDS)})
    while (left := now - instant_of(clock.wall())) > timedelta(minutes=1):
        clock.advance(3_600 if left > timedelta(days=2) else 600 if left > timedelta(hours=3) else 60)
        await broker.admin.record_measures(os.urandom(16), packed)
        await broker.upkeep(1_000)
    await broker.close()
    await opened.close()


async def _furnish(url: str) -> list[str]:
    """Add workers, schedules and actions to a store with jobs. Return the paths of the pages, including those of some jobs."""
    broker = connect(url)
    for number in range(WORKERS):
        await broker.register(Session(id=os.urandom(16), name=f"web-{number}:1", ttl=86_400.0, concurrency=8, deploy=f"v{number % 2}"))
    while (await broker.upkeep(1_000)).next_in <= 0:  # cancelled jobs are kept for five minutes
        pass
    paths = list[str]()
    for status in Status:
        page = await broker.admin.page(View(statuses=(status,)), limit=100)
        paths += [f"/jobs/{id_text(record.id)}" for record in page.records[-1:]]  # there may be none: cancelled jobs are dropped early
    with default_app().using(broker):
        for number in range(SCHEDULES):
            await schedules.put(f"schedule-{number}", beside.bind(), Every(3_600.0))
        for number in range(60):
            await (operate.pause if number % 2 else operate.resume)(SMALL, by="ada@laptop", reason="a reason")
    await broker.close()
    filters = ("queue=queue-3", "tag=import:42", "queue=queue-3&status=ready", "status=failed&error=no+such+text", "job=rare&status=ready")
    return [
        *("/", "/jobs", *(f"/jobs?status={status}" for status in Status), *(f"/jobs?{each}" for each in filters), *paths),
        *("/failures", "/failures?queue=queue-3", f"/queues/{QUEUES[3]}", "/workers", "/schedules", "/audit"),
        *(f"/charts?hours={hours}" for hours in (1, 24, 720)),
        *("/act?action=retry&status=failed", "/act?action=cancel&status=ready", f"/act?action=retry&queue={QUEUES[3]}&status=failed"),
    ]


def _in_loop(measure: Callable[..., Coroutine[Any, Any, Measured]], *arguments: Any) -> Measured:
    return run_in_fastest_loop(measure(*arguments))


# --- pages ----------------------------------------------------------------------------------------------------------


async def _pages(url: str, paths: Sequence[str]) -> Measured:
    """Measure the time from a request to its answer inside the application, without a socket."""
    broker = connect(url)
    found, sizes = dict[str, float](), list[int]()
    transport = httpx.ASGITransport(app=dashboard(authorize=_everybody))
    with default_app().using(broker):
        async with httpx.AsyncClient(transport=transport, base_url="http://host", timeout=120) as client:
            for path in paths:
                taken, size = list[float](), 0
                for _ in range(TIMES):
                    began = time.perf_counter()
                    answer = await client.get(path)
                    taken.append(time.perf_counter() - began)
                    size = len(answer.raise_for_status().content)
                sizes.append(size)
                found[_name(path)] = max(1e3 * percentile(taken, 0.95), found.get(_name(path), 0.0))
    await broker.close()
    return {"the slowest page, p95 ms": max(found.values()), "the largest page, kB": max(sizes) / 1e3, **found}


def _name(path: str) -> str:
    return "one job, p95 ms" if path.startswith("/jobs/") else f"{path}, p95 ms"


async def _everybody(request: Request) -> Access:
    return Access("ada", actions=True, show_arguments=True)


# --- viewers --------------------------------------------------------------------------------------------------------


def _viewers(url: str) -> Measured:
    """Measure what many viewers cost the server while jobs are sent, and how often it queries the store once they have left."""
    with _serving(url) as base, _changing(url):
        with _watching(base, VIEWERS):
            first = _figures(base)
            time.sleep(WATCHED_FOR)
            last = _figures(base)
        time.sleep(2.0)  # until the last streams are closed
        quiet = _figures(base)
        time.sleep(5.0)
        after = _figures(base)
    return {
        "CPU, % of a core": 100 * (last["cpu"] - first["cpu"]) / WATCHED_FOR,
        "checks a second": (last["checks"] - first["checks"]) / WATCHED_FOR,
        "requests a second": (last["requests"] - first["requests"]) / WATCHED_FOR,
        "store calls while no one watches": after["calls"] - quiet["calls"],
    }


def _host(url: str) -> Measured:
    """Measure `delay()` in a web application that runs the dashboard on its event loop, in turn alone and beside viewers."""
    alone, beside_viewers = list[float](), list[float]()
    with _serving(url) as base:
        for _ in range(TURNS):
            alone += httpx.get(f"{base}/send", timeout=120).json()
            with _watching(base, FEW_VIEWERS):
                beside_viewers += httpx.get(f"{base}/send", timeout=120).json()
    figures = {"alone, p99 ms": 1e3 * percentile(alone, 0.99), "beside viewers, p99 ms": 1e3 * percentile(beside_viewers, 0.99)}
    return {**figures, "beside viewers, of alone": figures["beside viewers, p99 ms"] / figures["alone, p99 ms"]}


def _figures(base: str) -> dict[str, float]:
    found: dict[str, float] = httpx.get(f"{base}/figures", timeout=30).json()
    return found


@contextmanager
def _program(*arguments: str) -> Iterator[str]:
    """Run this module as a program. Yield the first line that it prints; end the program after the block."""
    with subprocess.Popen([sys.executable, "-m", "benchmarks.dashboard_pages", *arguments], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        try:
            yield program.stdout.readline().strip()
        finally:
            program.terminate()


def _serving(url: str) -> Any:
    return _program("serve", url)


def _watching(base: str, viewers: int) -> Any:
    return _program("watch", base, str(viewers))


def _changing(url: str) -> Any:
    return _program("change", url)


async def _serve(url: str) -> None:
    """Serve a web application with the dashboard, and count calls, checks and requests."""
    configure(broker=url)
    counts: dict[str, int] = dict.fromkeys(("calls", "checks", "requests"), 0)

    def counted(kind: type, method: str, name: str) -> None:
        original = getattr(kind, method)

        def count(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return original(*arguments, **options)

        setattr(kind, method, count)

    async def figures(request: Request) -> Response:
        return JSONResponse({"cpu": time.process_time(), **counts})

    async def send(request: Request) -> Response:
        return JSONResponse(await _sent())

    async def authorize(request: Request) -> Access:
        counts["requests"] += 1
        return await _everybody(request)

    counted(LoopClient, "call", "calls")
    counted(Sampler, "_check_store", "checks")
    app = Starlette(routes=[Route("/figures", figures), Route("/send", send), Mount("/jobs", dashboard(authorize=authorize))])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # nobody announces it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    print(f"http://127.0.0.1:{port}", flush=True)
    await serving


async def _sent() -> list[float]:
    taken = list[float]()
    ends_at = time.monotonic() + SENT_FOR
    while time.monotonic() < ends_at:
        began = time.perf_counter()
        await beside.delay()
        taken.append(time.perf_counter() - began)
        await asyncio.sleep(SENT_EVERY)
    return taken[20:]


async def _watch(base: str, viewers: int) -> None:
    """Behave like the pages' script in `viewers` browsers with various pages: listen, and fetch the content after a change."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=f"{base}/jobs", limits=limits, timeout=60) as client:
        watchers = [asyncio.create_task(_view(client, path)) for path in itertools.islice(itertools.cycle(WATCHED), viewers)]
        await asyncio.sleep(3.0)
        print("watching", flush=True)
        await asyncio.gather(*watchers)


async def _view(client: httpx.AsyncClient, path: str) -> None:
    seen, fetched_at = "", 0.0
    while True:
        with suppress(httpx.HTTPError):
            async for changed in _changes(client, seen):
                if changed != seen and (rest := fetched_at + FETCH_INTERVAL - time.monotonic()) > 0:
                    await asyncio.sleep(rest)
                fetched_at = time.monotonic()
                answer = await client.get(path, headers={"X-Taskflow-Fragment": "1", "If-None-Match": f'"{seen}"'})
                seen = answer.headers.get("etag", "").strip('"') or changed
        await asyncio.sleep(1.0)


async def _changes(client: httpx.AsyncClient, seen: str) -> AsyncIterator[str]:
    """Yield the newest state whenever it differs from the last one."""
    newest, arrived = [seen], asyncio.Event()

    async def listen() -> None:
        async with client.stream("GET", "/live", headers={"Last-Event-ID": seen} if seen else {}) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("id: "):
                    newest[0] = line[4:]
                    arrived.set()

    listening = asyncio.create_task(listen())
    listening.add_done_callback(lambda task: arrived.set())
    try:
        while not listening.done():
            await arrived.wait()
            arrived.clear()
            if newest[0] != seen:
                seen = newest[0]
                yield seen
    finally:
        listening.cancel()


async def _change(url: str) -> None:
    broker, new_id = connect(url), IdFactory()
    print("changing", flush=True)
    while True:
        await broker.enqueue([Envelope(id=new_id(), job="common", payload=b"", queue="beside")])
        await asyncio.sleep(1 / CHANGES)


def main(arguments: Sequence[str]) -> None:
    command, target, *rest = arguments
    with suppress(KeyboardInterrupt):
        if command == "serve":
            run_in_fastest_loop(_serve(target))
        elif command == "watch":
            run_in_fastest_loop(_watch(target, int(rest[0])))
        else:
            run_in_fastest_loop(_change(target))


if __name__ == "__main__":
    main(sys.argv[1:])
