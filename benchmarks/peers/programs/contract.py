"""The commands of a peer's program, and their answers, which are printed as JSON.

    python -m benchmarks.peers.programs.with_NAME work CONCURRENCY       works until SIGTERM
    ... set-up                      creates the peer's tables
    ... fill JOBS                   sends jobs 0 to N-1 in the fastest documented way; answers {"jobs/s", "CPU µs/job"}
    ... flow JOBS                   sends a group of jobs 0 to N-2, and a job that awaits them all and gets their results: number N-1
    ... callers JOBS CALLERS        sends from several callers, each one job after another; same answer
    ... one-by-one JOBS SECONDS     sends a job every SECONDS; answers the monotonic times just before each
    ... ask JOBS WAITERS            sends from several callers, which wait for each result; answers the seconds of each
    ... plan INSTANTS               sends jobs for later times, a JSON list of seconds since 1970

A program runs in its peer's environment, so this module needs only the standard library. The environment variable PEER_URL
names the store, and PEER_VARIANT a variant of the settings. A command that a peer does not support ends with code 3.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from itertools import count
from typing import Any, Final, Protocol

CANNOT: Final = 3
PORTION: Final = 1_000
URL: Final = os.environ.get("PEER_URL", "")
VARIANT: Final = os.environ.get("PEER_VARIANT", "")


class CannotError(Exception):
    """Raised for a command that the peer does not support."""


class Sending:
    """Sends a peer's jobs from an event loop. Each method is optional."""

    async def set_up(self) -> None:
        """Create the peer's tables, if it has any."""

    async def send(self, number: int) -> object:
        raise CannotError("send")

    async def send_many(self, numbers: Sequence[int]) -> object:
        """Send jobs in bulk; by default one after another."""
        for number in numbers:
            await self.send(number)
        return None

    async def ask(self, number: int) -> object:
        """Send a job and return its result."""
        raise CannotError("wait for a result")

    async def send_flow(self, jobs: int) -> object:
        raise CannotError("await a group of jobs")

    async def send_at(self, number: int, instant: float) -> object:
        raise CannotError("plan a job")


class SyncSending:
    """Sends a peer's jobs through a blocking API. Methods are called from several threads at once."""

    def set_up(self) -> None: ...

    def send(self, number: int) -> object:
        raise CannotError("send")

    def send_many(self, numbers: Sequence[int]) -> object:
        for number in numbers:
            self.send(number)
        return None

    def ask(self, number: int) -> object:
        raise CannotError("wait for a result")

    def send_flow(self, jobs: int) -> object:
        raise CannotError("await a group of jobs")

    def send_at(self, number: int, instant: float) -> object:
        raise CannotError("plan a job")


class Work(Protocol):
    def __call__(self, concurrency: int) -> object:
        """Work until SIGTERM, in this process or by exec."""
        ...


def run_async(sending: Callable[[], AbstractAsyncContextManager[Sending]], work: Work) -> None:
    """Run the program of a peer with an async API."""

    async def send(command: str, arguments: Sequence[str]) -> object:
        async with sending() as sender:
            return await _COMMANDS[command](sender, *map(json.loads, arguments))

    _main(lambda command, arguments: in_fastest_loop(send(command, arguments)), work)


def run_sync(sending: Callable[[], AbstractContextManager[SyncSending]], work: Work) -> None:
    """Run the program of a peer with a blocking API. Concurrent callers are threads."""

    def send(command: str, arguments: Sequence[str]) -> object:
        with sending() as sender:
            return _SYNC_COMMANDS[command](sender, *map(json.loads, arguments))

    _main(send, work)


def in_fastest_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        uvloop: Any = __import__("uvloop")
    except ImportError:
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)


def work_by(*command: str) -> None:
    """Replace this process with the peer's own command line."""
    os.execv(sys.executable, [sys.executable, "-m", *command])


def _main(send: Callable[[str, Sequence[str]], object], work: Work) -> None:
    command, *arguments = sys.argv[1:]
    if command == "work":
        with contextlib.suppress(KeyboardInterrupt):
            work(int(arguments[0]))
        return
    try:
        print(json.dumps(send(command, arguments)))
    except CannotError as error:
        print(f"it cannot {error}", file=sys.stderr)
        sys.exit(CANNOT)


def _figures(jobs: int, began: float, cpu: float) -> dict[str, float]:
    return {"jobs/s": jobs / (time.perf_counter() - began), "CPU µs/job": 1e6 * (time.process_time() - cpu) / jobs}


# --- from an event loop ------------------------------------------------------------------------------------------


async def _fill(sender: Sending, jobs: int) -> object:
    began, cpu = time.perf_counter(), time.process_time()
    for start in range(0, jobs, PORTION):
        await sender.send_many(range(start, min(start + PORTION, jobs)))
    return _figures(jobs, began, cpu)


async def _callers(sender: Sending, jobs: int, callers: int) -> object:
    numbers = iter(range(jobs))

    async def call() -> None:
        for number in numbers:
            await sender.send(number)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(call() for _ in range(callers)))
    return _figures(jobs, began, cpu)


async def _one_by_one(sender: Sending, jobs: int, every: float) -> object:
    began = []
    for number in range(jobs):
        await asyncio.sleep(every)
        began.append(time.monotonic())
        await sender.send(number)
    return began


async def _ask(sender: Sending, jobs: int, waiters: int) -> object:
    numbers, taken = iter(range(jobs)), list[float]()

    async def wait() -> None:
        for number in numbers:
            began = time.perf_counter()
            await sender.ask(number)
            taken.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(wait() for _ in range(waiters)))
    return {"all": time.perf_counter() - began, "each": taken}


async def _plan(sender: Sending, instants: Sequence[float]) -> object:
    for start in range(0, len(instants), 100):
        await asyncio.gather(*(sender.send_at(start + i, instant) for i, instant in enumerate(instants[start : start + 100])))
    return None


async def _flow(sender: Sending, jobs: int) -> object:
    await sender.send_flow(jobs)
    return None


async def _set_up(sender: Sending) -> object:
    await sender.set_up()
    return None


_COMMANDS: Final[dict[str, Callable[..., Awaitable[object]]]] = {
    "set-up": _set_up,
    "fill": _fill,
    "flow": _flow,
    "callers": _callers,
    "one-by-one": _one_by_one,
    "ask": _ask,
    "plan": _plan,
}


# --- from threads --------------------------------------------------------------------------------------------------


def _in_threads(threads: int, call: Callable[[int], object], jobs: int) -> None:
    """Call the function for each number from several threads, each of which takes the next number when it is done."""
    numbers = count()

    def take_turns() -> None:
        while (number := next(numbers)) < jobs:
            call(number)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(take_turns) for _ in range(threads)]:
            done.result()


def _fill_sync(sender: SyncSending, jobs: int) -> object:
    began, cpu = time.perf_counter(), time.process_time()
    for start in range(0, jobs, PORTION):
        sender.send_many(range(start, min(start + PORTION, jobs)))
    return _figures(jobs, began, cpu)


def _flow_sync(sender: SyncSending, jobs: int) -> object:
    sender.send_flow(jobs)
    return None


def _callers_sync(sender: SyncSending, jobs: int, callers: int) -> object:
    began, cpu = time.perf_counter(), time.process_time()
    _in_threads(callers, sender.send, jobs)
    return _figures(jobs, began, cpu)


def _one_by_one_sync(sender: SyncSending, jobs: int, every: float) -> object:
    began = []
    for number in range(jobs):
        time.sleep(every)
        began.append(time.monotonic())
        sender.send(number)
    return began


def _ask_sync(sender: SyncSending, jobs: int, waiters: int) -> object:
    taken = list[float]()

    def ask(number: int) -> None:
        began = time.perf_counter()
        sender.ask(number)
        taken.append(time.perf_counter() - began)

    began = time.perf_counter()
    _in_threads(waiters, ask, jobs)
    return {"all": time.perf_counter() - began, "each": taken}


def _plan_sync(sender: SyncSending, instants: Iterable[float]) -> object:
    for number, instant in enumerate(instants):
        sender.send_at(number, instant)
    return None


_SYNC_COMMANDS: Final[dict[str, Callable[..., object]]] = {
    "set-up": SyncSending.set_up,
    "fill": _fill_sync,
    "flow": _flow_sync,
    "callers": _callers_sync,
    "one-by-one": _one_by_one_sync,
    "ask": _ask_sync,
    "plan": _plan_sync,
}
