"""One chaos test from its beginning to the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from taskflow import BrokerError
from taskflow.broker.admin import View
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.ids import id_text
from taskflow.model.record import LIVE, Status
from taskflow.model.schedule import Amendment
from tests.cli.processes import TIMEOUT, Shell
from tests.long.chaos.faults import ROOT, SUPERVISED, Chaos, Fleet
from tests.long.chaos.history import History
from tests.long.chaos.judge import judge, told
from tests.long.chaos.ledger import VARIABLE, Ledger, Line
from tests.long.chaos.overlaps import Zombies, overlaps
from tests.long.chaos.places import Place
from tests.long.chaos.state import State, read_state
from tests.long.chaos.tables import Tables
from tests.support.listing import listed
from tests.support.waiting import until

SECONDS: Final = float(os.environ.get("CHAOS_SECONDS", "600"))
SEED: Final = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1_000)
"""Random unless the environment names it. It decides which jobs are sent and which faults occur, not when processes run."""

DRAINS_TIMEOUT: Final = 180.0
"""Seconds until one more job has ended. One that has crashed three times waits 35 s, and on a busy machine everything takes longer."""

CENSUS_INTERVAL: Final = 30.0
"""Seconds between two reads of cancelled jobs, which the store drops after five minutes."""


async def play(shell: Shell, place: Place, *, seed: int, seconds: float, ttl: float) -> None:
    """Let workers and producers live through chaos for this many seconds, and judge their ledger and the store.

    Raises AssertionError with the violations, each with its lines in the ledger."""
    ledger = Ledger(shell.folder / "ledger")
    tables = Tables(place.straight) if place.has_tables else None
    if tables is not None:
        tables.make()
    fleet = Fleet(shell, place, ledger, ttl, seed)
    await asyncio.to_thread(fleet.begin, seconds)
    for worker, times in ((fleet.supervisor, SUPERVISED), (fleet.lone, 1)):
        await asyncio.to_thread(worker.wait_for, "working as", times)
    broker = connect(place.straight)
    try:
        async with census(broker, ledger):
            await Chaos(fleet, seed).run(seconds)
            for producer in fleet.producers:
                assert await asyncio.to_thread(producer.end) == 0, producer.said[-4_000:]
            await drain(broker)  # on a busy machine it takes longer than a cancelled job is kept
        await until(lambda: has_no_dead_session(broker, SUPERVISED + 1), within=3 * ttl + 20)
        for worker in (fleet.supervisor, fleet.lone):
            worker.signal(signal.SIGTERM)
        for worker in (fleet.supervisor, fleet.lone):
            assert await asyncio.to_thread(worker.end) == 0, worker.said[-2_000:]
        await take_census(broker, ledger, set())
        state = await read_state(broker, tables)
    finally:
        await broker.close()
    check(ledger.read(), state, ttl=ttl, name=f"{place.name}, CHAOS_SEED={seed} CHAOS_SECONDS={seconds:g}", folder=shell.folder)


def play_in_memory(shell: Shell, *, seed: int, seconds: float) -> None:
    """Run `tests/long/chaos/memory.py` in a separate process, which has the memory broker to itself."""
    shell.environment |= {"PYTHONPATH": str(ROOT), VARIABLE: str(shell.folder / "ledger")}
    running = shell.start("-m", "tests.long.chaos.memory", str(seed), str(seconds))
    running.process.wait(2 * seconds + DRAINS_TIMEOUT + TIMEOUT)  # faults keep the workers from a third of the jobs
    assert running.end() == 0, running.said
    print(running.said)


def check(lines: list[Line], state: State, *, ttl: float, name: str, folder: Path) -> None:
    """Print what has happened. The state read from the store is written beside the ledger, so that both can be judged again."""
    (folder / "state.json").write_bytes(msgspec.json.encode(state))
    violations = judge(lines, state, ttl=ttl)
    history, zombies = History(lines), Zombies()
    list(overlaps(history, ttl, zombies))
    faults = sum(line.event in ("killed", "stopped", "cut off", "fault") for line in lines)
    print(
        f"{name}: {len(history.sent)} sent, {sum(map(len, history.runs.values()))} runs, {faults} faults, jobs {state.counts}; "
        f"overlaps without a fault {dict(zombies.number)}, the longest {zombies.longest}"
    )
    assert not violations, f"{name}, ledger in {folder}\n{told(violations, lines)}"


@asynccontextmanager
async def census(broker: Broker, ledger: Ledger) -> AsyncIterator[None]:
    """Record at intervals which jobs were cancelled."""

    async def look() -> None:
        seen = set[bytes]()
        while True:
            with contextlib.suppress(BrokerError):
                await take_census(broker, ledger, seen)
            await asyncio.sleep(CENSUS_INTERVAL)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def take_census(broker: Broker, ledger: Ledger, seen: set[bytes]) -> None:
    for record in await listed(broker.admin, View(statuses=(Status.CANCELLED,))):
        if record.id not in seen:
            seen.add(record.id)
            ledger.write("ended", id=id_text(record.id), status="cancelled", note=record.reason or "")


async def drain(broker: Broker) -> None:
    """Pause the schedules, and wait until nothing is left to do. If no job ends any more, the judge reports what is stuck."""
    for schedule in await broker.admin.schedules():
        await broker.admin.amend_schedule(schedule.name, Amendment.PAUSE)
    left, gives_up_at = math.inf, 0.0
    while (live := await live_jobs(broker)) and (live < left or time.monotonic() < gives_up_at):
        if live < left:
            left, gives_up_at = live, time.monotonic() + DRAINS_TIMEOUT
        await asyncio.sleep(0.1)


async def live_jobs(broker: Broker) -> int:
    return sum(queue.counts.get(status, 0) for queue in await broker.admin.queues() for status in LIVE)


async def has_no_dead_session(broker: Broker, living: int) -> bool:
    return len(await broker.admin.workers()) <= living
