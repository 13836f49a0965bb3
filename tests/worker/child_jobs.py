"""Jobs for child processes, which import this module: it is small, and does nothing else."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from taskflow import Backoff, JobContext, Worker, job

AT_ONCE = Backoff(base=0.0)


def leave(note: str, *numbers: int) -> None:
    """Write the numbers to the file in one step."""
    Path(f"{note}.new").write_text(" ".join(map(str, numbers)))
    Path(f"{note}.new").rename(note)


@dataclass
class Order:
    number: int
    day: date


@job(runs_in="process")
def pid() -> int:
    return os.getpid()


@job(runs_in="process")
async def pid_of_async() -> int:
    await asyncio.sleep(0)
    return os.getpid()


@job(runs_in="process")
def describe(order: Order, *, times: int = 2) -> list[Order]:
    assert isinstance(order, Order)
    assert isinstance(order.day, date)
    return [order] * times


@job(runs_in="process", max_attempts=2, retry=AT_ONCE)
def fails(ctx: JobContext) -> None:
    raise ValueError(f"attempt {ctx.attempt} \ud800")


@job(runs_in="process", max_attempts=2, retry=AT_ONCE, retry_on=(OSError,))
def dies(how: str) -> None:
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(7)
        case "abort":
            os.abort()
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang up":
            os.closerange(3, 256)
            time.sleep(20)
        case "noise":
            for descriptor in range(3, 64):
                try:
                    os.write(descriptor, b"\xff" * 64)
                except OSError:
                    continue
            time.sleep(20)


@job(runs_in="process", max_attempts=1)
def endless(note: str) -> None:
    leave(note, os.getpid())
    while True:
        pass


@job(runs_in="process", max_attempts=1)
async def endless_async(note: str) -> None:
    leave(note, os.getpid())
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue


@job(runs_in="process", max_attempts=1)
def begets(note: str) -> None:
    """Start a process, and wait with it for a kill."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    leave(note, os.getpid(), child.pid)
    time.sleep(60)


@job(runs_in="process", max_attempts=1)
def forks_and_dies(note: str) -> None:
    """The forked process has all descriptors of the child, including that of the socket to the worker."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    leave(note, os.getpid(), process.pid or 0)
    os._exit(3)


@job(runs_in="process")
def prints(lines: int, length: int) -> int:
    for number in range(lines):
        print(f"{number} ".ljust(length, "o"))
        print(f"{number} ".ljust(length, "e"), file=sys.stderr)
    return lines


@job(runs_in="process")
def prints_natively() -> None:
    os.write(1, b"by the system: \xff\n")
    ctypes.CDLL(None).puts(b"by the library")
    os.write(2, b"unended")


@job(runs_in="process")
def reports(ctx: JobContext, note: str) -> None:
    for number in range(100_000):
        ctx.progress(number / 200_000, "counting")
    ctx.progress(0.75, "waits")
    while not Path(note).exists():
        time.sleep(0.01)


@job(runs_in="process")
def overlaps(note: str) -> float:
    with open(note, "a") as file:
        file.write("+")
        file.flush()
        time.sleep(0.05)
        file.write("-")
    return 1.0


@job(runs_in="process", max_attempts=1)
def reads_state(ctx: JobContext) -> str:
    state: str = ctx.state.name
    return state


@job(runs_in="process", max_attempts=1)
async def starts_a_worker() -> None:
    async with Worker():
        pass


@job(runs_in="process", max_attempts=1)
def sends() -> str:
    return pid.delay_sync().id


@job(runs_in="process")
def grows(mebibytes: int) -> int:
    kept.append(bytearray(os.urandom(1 << 20)) * mebibytes)
    return os.getpid()


kept: list[bytearray] = []


@job(runs_in="process")
def outlives_signals() -> bool:
    """Send what a service's stop, or a Ctrl-C, sends to all its processes. Return whether a program started here would react to it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(os.getpid(), number)
    time.sleep(0.1)
    started = subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True, check=True)
    ignored = int(started.stdout.split()[1], 16)
    return not any(ignored & 1 << (number - 1) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


@job(runs_in="process")
def days(orders: list[Order], times: int = 1) -> list[date]:
    return [order.day for order in orders] * times
