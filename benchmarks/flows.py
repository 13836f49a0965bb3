"""Flows: how fast a group drains beside as many plain jobs, how soon its join starts, and how long cancelling a large flow takes."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.loops import run_in_fastest_loop
from benchmarks.options import Options
from benchmarks.processes import using
from benchmarks.report import Contender, Measured, Row, in_turn
from benchmarks.stores import Store
from taskflow import Worker, job
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.codec.payload import seal
from taskflow.model.codec.wire import pack
from taskflow.model.envelope import Envelope
from taskflow.model.flow import Member, Tie
from taskflow.model.ids import IdFactory
from taskflow.worker.options import WorkerOptions

JOBS: Final = 10_000
SMALL: Final = 100
SMALL_FLOWS: Final = 20
PEER_FLOWS: Final = 5
CONCURRENCY: Final = 100
PLAIN: Final = "plain jobs"
CALL_INTERVAL: Final = 0.005
RUN_TIME: Final = 0.05
"""The seconds for which each job of a flow runs that is cancelled beside a busy worker."""

new_id: Final = IdFactory()


class Ends:
    """Records when the last member returned, and how long after it each join began."""

    members = 0
    last = 0.0
    joins: list[float] = []
    all_ended: asyncio.Event
    joined: asyncio.Event

    @classmethod
    def begin(cls) -> None:
        cls.members, cls.all_ended, cls.joined = 0, asyncio.Event(), asyncio.Event()


@job(name="benchmarks.member")
async def member(number: int) -> int:
    Ends.members += 1
    Ends.last = time.monotonic()
    if Ends.members == JOBS:
        Ends.all_ended.set()
    return number


@job(name="benchmarks.slow_member")
async def slow_member(number: int) -> int:
    Ends.members += 1
    await asyncio.sleep(RUN_TIME)
    return number


@job(name="benchmarks.join")
async def join(numbers: list[int]) -> int:
    Ends.joins.append(time.monotonic() - Ends.last)
    Ends.joined.set()
    return len(numbers)


def a_group(size: int, name: str = member.name) -> list[Envelope]:
    flow, join_id = new_id(), new_id()
    members = [
        Envelope(
            id=new_id(),
            job=name,
            payload=_payload(number),
            member=Member(flow, number, 0, size),
            joins=(join_id,),
            ties=(Tie(number),),
        )
        for number in range(size)
    ]
    place = Member(flow, size, 0, size, "numbers", is_list=True, inputs=size)
    return [*members, Envelope(id=join_id, job=join.name, payload=seal(pack({})), member=place, awaits=size)]


def _payload(number: int) -> bytes:
    return seal(pack({"number": number}))


def in_process(kind: str, options: Options) -> list[Row]:
    """Measure the memory broker or SQLite, with a worker in this process."""

    @contextlib.contextmanager
    def begin() -> Iterator[str]:
        with TemporaryDirectory() as folder:
            yield "memory://" if kind == "memory" else f"sqlite:///{Path(folder, 'queue.db')}"

    return _rows(kind, begin, options)


def on_server(store: Store, options: Options) -> list[Row]:
    @contextlib.contextmanager
    def begin() -> Iterator[str]:
        with store.start() as server:
            yield server.url

    return _rows(store.name, begin, options, options.peers.groups(store, JOBS), options.peers.joins(store, SMALL, PEER_FLOWS))


def _rows(
    name: str,
    begin: Callable[[], contextlib.AbstractContextManager[str]],
    options: Options,
    groups: Sequence[Contender] = (),
    joins: Sequence[Contender] = (),
) -> list[Row]:
    def measured(of: Callable[[str], Measured]) -> Callable[[], Measured]:
        def once() -> Measured:
            with begin() as url:
                return of(url)

        return once

    drains = f"{name}: a group of {JOBS:,} drains"
    rows = in_turn(drains, options.repeats, measured(_group), measured(_plain), groups, part=f"{name}, drain", beside=PLAIN)
    rows += in_turn(f"{name}: the join of a group of {SMALL}", options.repeats, measured(_joins), peers=joins, part=f"{name}, join")
    rows += in_turn(
        f"{name}: a flow of {JOBS:,} is cancelled beside a busy worker", options.repeats, measured(_cancel), part=f"{name}, cancel"
    )
    if name != "memory":
        rows += in_turn(f"{name}: others send while a flow of {JOBS:,} is sent", options.repeats, measured(_beside), part=f"{name}, beside")
    return rows


def _group(url: str) -> Measured:
    return run_in_fastest_loop(_drain(url, a_group(JOBS)))


def _plain(url: str) -> Measured:
    return run_in_fastest_loop(_drain(url, [Envelope(id=new_id(), job=member.name, payload=_payload(number)) for number in range(JOBS)]))


async def _drain(url: str, envelopes: list[Envelope]) -> Measured:
    """Return jobs per second from the worker's start to the last job's run. The join counts as a job."""
    Ends.begin()
    ended = Ends.joined if len(envelopes) > JOBS else Ends.all_ended
    async with using(url) as broker:
        await broker.enqueue(envelopes)
        began = time.monotonic()
        async with Worker(options=_quiet()):
            await ended.wait()
            took = time.monotonic() - began
    return {"jobs/s": len(envelopes) / took}


def _joins(url: str) -> Measured:
    return run_in_fastest_loop(_join_lags(url))


async def _join_lags(url: str) -> Measured:
    """Measure the time from the last member's return to the join's first line, with one flow at a time."""
    Ends.joins = []
    async with using(url) as broker, Worker(options=_quiet()):
        for _ in range(SMALL_FLOWS):
            Ends.begin()
            await broker.enqueue(a_group(SMALL))
            await Ends.joined.wait()
    lags = sorted(1_000 * lag for lag in Ends.joins)
    return {"join starts after ms": statistics.median(lags), "at most ms": lags[-1]}


def _cancel(url: str) -> Measured:
    return run_in_fastest_loop(_cancelled(url))


async def _cancelled(url: str) -> Measured:
    """Cancel a flow while a worker of this process runs its jobs. `started after` counts the jobs that start once the call has returned."""
    Ends.begin()
    async with using(url) as broker:
        envelopes = a_group(JOBS, slow_member.name)
        began = time.monotonic()
        await broker.enqueue(envelopes)
        sent = time.monotonic() - began
        place = envelopes[0].member
        assert place is not None
        async with Worker(options=_quiet()):
            await asyncio.sleep(10 * RUN_TIME)
            began = time.monotonic()
            await broker.admin.cancel_flow(place.flow)
            took, started = time.monotonic() - began, Ends.members
            await asyncio.sleep(10 * RUN_TIME)
            return {"cancelled in s": took, "started after": float(Ends.members - started), "sent in s": sent}


def _beside(url: str) -> Measured:
    """Measure how long single calls of this process take while another process sends a flow."""
    run_in_fastest_loop(_one_call(url))  # creates the tables
    sender = multiprocessing.get_context("spawn").Process(target=_send, args=(url,))
    sender.start()
    try:
        return run_in_fastest_loop(_calls_until(url, sender.is_alive))
    finally:
        sender.join()


def _send(url: str) -> None:
    envelopes = a_group(JOBS)

    async def send() -> None:
        broker = connect(url)
        await broker.enqueue([Envelope(id=new_id(), job="x", payload=b"")])
        await broker.enqueue(envelopes)
        await broker.close()

    run_in_fastest_loop(send())


async def _one_call(url: str) -> None:
    async with using(url) as broker:
        await _call(broker)


async def _calls_until(url: str, is_alive: Callable[[], bool]) -> Measured:
    waits = list[float]()
    async with using(url) as broker:
        while is_alive():
            began = time.monotonic()
            await _call(broker)
            waits.append(1_000 * (time.monotonic() - began))
            await asyncio.sleep(CALL_INTERVAL)
    waits.sort()
    return {"others wait at most ms": waits[-1], "median ms": statistics.median(waits)}


async def _call(broker: Broker) -> None:
    await broker.enqueue([Envelope(id=new_id(), job="benchmarks.other", payload=b"")])


def _quiet() -> WorkerOptions:
    return WorkerOptions(concurrency=CONCURRENCY, subscribers=())


def flows(options: Options) -> list[Row]:
    return [row for kind in ("memory", "sqlite") for row in in_process(kind, options)]
