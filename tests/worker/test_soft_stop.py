"""Runs in child processes that are asked to stop: they receive the request, tidy up, and are killed only if they take too long."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from taskflow import DeclarationError, JobCancelled, JobHandle, Status, Worker, job
from taskflow.broker.memory import MemoryBroker
from taskflow.model.clock import start_thread
from taskflow.model.envelope import ClaimId, Envelope, Lease
from taskflow.model.verdict import Cancelled, Succeeded
from taskflow.worker.children.messages import Stop, pack
from taskflow.worker.children.process import Child, ChildOptions, ChildSpec
from taskflow.worker.executor import CANCELLED
from taskflow.worker.lease_table import HeldLease
from tests.worker import stopping_jobs as jobs
from tests.worker.child_scene import HANDSHAKE, TIMEOUT, Lines, a_worker, failure, gone, is_alive

pytestmark = pytest.mark.usefixtures("memory_broker")


class Ledger:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    @property
    def lines(self) -> list[str]:
        return Path(self.path).read_text().splitlines() if Path(self.path).exists() else []

    async def until(self, word: str) -> list[int]:
        """Wait for a line that begins with this word, and return its numbers."""
        async with asyncio.timeout(TIMEOUT):
            while not (found := [line for line in self.lines if line.startswith(word)]):  # noqa: ASYNC110  # another process writes it
                await asyncio.sleep(0.01)
        return [int(text) for text in found[0].split() if text.isdigit()]

    async def begun(self) -> list[int]:
        """Return the pids of the child, and of what it has started."""
        return await self.until("begun")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    async with a_worker() as begun:
        yield begun


async def cancelled(handle: JobHandle[Any]) -> None:
    assert await handle.cancel() is Status.RUNNING
    with pytest.raises(JobCancelled):
        await handle.result(TIMEOUT)


# --- what the function sees ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", jobs.WAYS)
async def test_a_cancelled_function_tidies_up_wherever_it_is(worker: Worker, ledger: Ledger, how: str) -> None:
    handle = await jobs.works.delay(ledger.path, how)
    [pid] = await ledger.begun()
    await asyncio.sleep(random.random() * 0.2)
    begun = time.monotonic()
    await cancelled(handle)
    assert time.monotonic() - begun < 10, "it is not killed after its grace period"
    assert ledger.lines[1:] == ["stopping cancelled True", "finally", "context manager"]
    await gone(pid)


async def test_the_timeout_is_a_failure_that_shows_where_the_function_was(worker: Worker, ledger: Ledger) -> None:
    failed = await failure(await jobs.works.options(timeout=1.0).delay(ledger.path, "computes"))
    assert ledger.lines[1:] == ["stopping timeout True", "finally", "context manager"]
    assert (failed.type, failed.message) == ("TimeoutError", f"{jobs.works.name} ran longer than its timeout of 1 s")
    assert "while True:" in failed.traceback


async def test_a_worker_that_winds_down_asks_after_its_grace_period_and_hands_back(ledger: Ledger) -> None:
    async with a_worker(grace=0.2):
        handle = await jobs.works.delay(ledger.path, "sleeps")
        await ledger.begun()
        wound_down_at = time.monotonic()
    assert ledger.lines[1:] == ["stopping shutdown True", "finally", "context manager"]
    assert 0.2 < time.monotonic() - wound_down_at < 5
    info = await handle.info()
    assert info is not None
    assert (info.status, info.failures, info.crashes) == (Status.READY, 0, 0)


async def test_a_lost_lease_asks_too(worker: Worker, ledger: Ledger, memory_broker: MemoryBroker) -> None:
    handle = await jobs.works.delay(ledger.path, "sleeps")
    await ledger.begun()
    session = worker._sessions.current
    assert session is not None
    session.lose("in this test")
    await ledger.until("context manager")
    assert ledger.lines[1] == "stopping lost True"
    await worker.finish()
    assert await handle.status() is not Status.SUCCEEDED


async def test_an_async_function_is_cancelled(worker: Worker, ledger: Ledger) -> None:
    handle = await jobs.works_async.delay(ledger.path)
    [pid] = await ledger.begun()
    await cancelled(handle)
    assert ledger.lines[1:] == ["finally True"]
    await gone(pid)


async def test_a_function_that_returns_instead_has_succeeded(worker: Worker, ledger: Ledger) -> None:
    handle = await jobs.returns_when_stopped.delay(ledger.path)
    await ledger.begun()
    await handle.cancel()
    assert await handle.result(TIMEOUT) == "saved (cancelled)"


# --- the kill -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "heard"), [("holds the interpreter", []), ("takes its time", ["finally"])])
async def test_a_function_that_does_not_end_is_killed(worker: Worker, ledger: Ledger, how: str, heard: list[str]) -> None:
    handle = await jobs.is_deaf.delay(ledger.path, how)
    [pid] = await ledger.begun()
    asked_at = time.monotonic()
    await cancelled(handle)
    assert time.monotonic() - asked_at >= 0.5
    assert not is_alive(pid)
    assert ledger.lines[1:] == heard


async def test_a_stopped_child_is_not_used_again(ledger: Ledger) -> None:
    """It may have been interrupted anywhere, for example in an import."""
    async with a_worker(at_once=1):
        before = await (await jobs.is_short.delay(1)).result(TIMEOUT)
        handle = await jobs.works.delay(ledger.path, "computes")
        [pid] = await ledger.begun()
        await cancelled(handle)
        assert await (await jobs.is_short.delay(2)).result(TIMEOUT) == before + 1
        await gone(pid)


# --- at any moment ------------------------------------------------------------------------------------------------------


async def test_a_request_at_any_moment_reaches_its_own_run_or_none() -> None:
    """Two requests arrive during each of many short runs, or just after it: neither our own code nor another run is ever interrupted."""
    lines = Lines()
    child = await Child.start(ChildSpec(HANDSHAKE, ChildOptions(), lines, start_thread))
    chance = random.Random(7)
    came_to = dict.fromkeys(("returned", "stopped"), 0)
    try:
        await child.prepare(jobs.__name__, None)
        for number in range(1500):
            is_asked = bool(number % 2)
            run = asyncio.create_task(child.run(*_a_short_run(number)))
            if is_asked:
                await asyncio.sleep(0)
                busy_until = time.monotonic() + chance.random() * 0.0008
                while time.monotonic() < busy_until:
                    pass
                for _ in range(2):
                    child._transport.write(pack(Stop(CANCELLED)))  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
            verdict = await asyncio.wait_for(run, TIMEOUT)
            has_returned = verdict == Succeeded(jobs.is_short.codec.encode_result(number))
            came_to["returned" if has_returned else "stopped"] += is_asked
            assert has_returned or (is_asked and verdict == Cancelled(CANCELLED)), number
    finally:
        child.kill()
        await child.ended
    assert min(came_to.values()) > 20, f"the requests came too early or too late: {came_to}"
    assert lines.printed == []


def _a_short_run(number: int) -> tuple[HeldLease, str]:
    payload = jobs.is_short.codec.encode_arguments((number,), {})
    envelope = Envelope(id=number.to_bytes(16), job=jobs.is_short.name, payload=payload)
    lease = Lease(envelope=envelope, epoch=1, claim=ClaimId(b"", 1, number), created_at=0)
    return HeldLease(lease), jobs.__name__


async def test_a_request_is_repeated_until_it_takes_effect(worker: Worker, ledger: Ledger) -> None:
    """The signal may come just before a system call, which it then does not interrupt. Here the function ignores it for a while."""
    handle = await jobs.ignores_signals.delay(ledger.path, 0.3)
    await ledger.begun()
    asked_at = time.monotonic()
    await cancelled(handle)
    assert time.monotonic() - asked_at < 10


def test_a_function_that_has_returned_is_not_interrupted() -> None:
    """The signal ends the wait in C, and Python calls the handler in the function's caller."""
    returned = subprocess.run([sys.executable, "-c", HAS_RETURNED], capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert returned.stdout == "-1\n"


HAS_RETURNED = """
import asyncio, ctypes, functools, threading
from taskflow.worker.children.executor import MainThreadCalls

async def ask() -> None:
    returned = calls.run(functools.partial(ctypes.CDLL(None).usleep, 900_000))
    await asyncio.sleep(0.2)
    calls.stop("cancelled")
    print(await returned)
    calls.end()

calls = MainThreadCalls()
threading.Thread(target=lambda: asyncio.run(ask())).start()
calls.make()
"""


# --- how it is declared -------------------------------------------------------------------------------------------------


def test_the_grace_period_is_seconds_or_a_timedelta() -> None:
    assert [jobs.works.stop_grace, jobs.is_deaf.stop_grace, jobs.is_not_asked.stop_grace] == [20.0, 0.5, 0.0]
    assert job(name="tests.stop.delta", runs_in="process", stop_grace=timedelta(minutes=1))(_plain).stop_grace == 60.0


def test_a_job_that_does_not_run_in_a_process_has_no_grace_period() -> None:
    with pytest.raises(DeclarationError, match="a thread is interrupted only with timeout_raises=True"):
        job(name="tests.stop.thread", stop_grace=5)(_plain)
    with pytest.raises(DeclarationError, match="an async function is cancelled"):
        job(name="tests.stop.loop", stop_grace=5)(_async)


def _plain() -> None: ...


async def _async() -> None: ...


@pytest.mark.parametrize("wrong", [-1, "5", True, float("nan")])
def test_a_wrong_grace_period_is_refused_where_it_is_declared(wrong: Any) -> None:
    with pytest.raises(DeclarationError, match="stop_grace="):
        job(name="tests.stop.wrong", runs_in="process", stop_grace=wrong)(_plain)
