"""Jobs for child processes that are asked to stop. They append what happens to a ledger: one word a line, in one write."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from taskflow import JobContext, JobStopping, job

WAYS = ("computes", "sleeps", "reads a socket", "waits for a process", "writes to stderr", "in a loop of its own", "reports progress")


def note(ledger: str, *words: object) -> None:
    with open(ledger, "a") as file:
        file.write(" ".join(map(str, words)) + "\n")


@contextmanager
def noting(ledger: str) -> Iterator[None]:
    try:
        yield
    finally:
        note(ledger, "context manager")


@job(runs_in="process", max_attempts=1, stop_grace=20)
def works(ctx: JobContext, ledger: str, how: str) -> None:
    """Work for ever, and tidy up when asked to stop."""
    with noting(ledger):
        try:
            note(ledger, "begun", os.getpid())
            work(ctx, how)
        except Exception:
            note(ledger, "an exception")
        except JobStopping as stopping:
            note(ledger, "stopping", stopping.reason, ctx.cancelled.is_set())
            raise
        finally:
            note(ledger, "finally")


def work(ctx: JobContext, how: str) -> None:
    match how:
        case "computes":
            while True:
                pass
        case "sleeps":
            time.sleep(60)
        case "reads a socket":
            ours, theirs = socket.socketpair()
            ours.recv(1)
            theirs.close()
        case "waits for a process":
            subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"], check=False)
        case "writes to stderr":
            while True:
                print("x" * 1000, file=sys.stderr)
        case "in a loop of its own":
            asyncio.run(asyncio.sleep(60))
        case "reports progress":
            while True:
                ctx.progress(0.5)


@job(runs_in="process", max_attempts=1, stop_grace=20)
def returns_when_stopped(ledger: str) -> str:
    try:
        note(ledger, "begun", os.getpid())
        time.sleep(60)
    except JobStopping as stopping:
        return f"saved ({stopping.reason})"
    return ""


@job(runs_in="process", timeout=1, max_attempts=1, timeout_raises=True)
def returns_at_its_timeout(ctx: JobContext) -> str:
    try:
        time.sleep(60)
    except JobStopping as stopping:
        return f"in part: {stopping.reason}, {ctx.cancelled.is_set()}"
    return ""


@job(runs_in="process", timeout=1, max_attempts=1, timeout_raises=True)
async def returns_at_its_timeout_async(ctx: JobContext) -> str:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return f"in part: timeout, {ctx.cancelled.is_set()}"
    return ""


@job(runs_in="process", timeout=1, max_attempts=1, timeout_raises=True)
def is_deaf_to_its_timeout(ledger: str) -> None:
    while True:
        try:
            time.sleep(60)
        except JobStopping as stopping:
            note(ledger, "stopping", stopping.reason)


@job(runs_in="process", max_attempts=1, stop_grace=20)
async def works_async(ctx: JobContext, ledger: str) -> None:
    try:
        note(ledger, "begun", os.getpid())
        await asyncio.sleep(60)
    finally:
        note(ledger, "finally", ctx.cancelled.is_set())


@job(runs_in="process", max_attempts=1, stop_grace=0.5)
def is_deaf(ledger: str, how: str) -> None:
    """Ignore the request."""
    note(ledger, "begun", os.getpid())
    try:
        ctypes.PyDLL(None).sleep(60) if how == "holds the interpreter" else time.sleep(60)
    finally:
        note(ledger, "finally")
        time.sleep(60)


@job(runs_in="process", max_attempts=1)
def is_not_asked(ledger: str) -> None:
    try:
        note(ledger, "begun", os.getpid())
        time.sleep(60)
    finally:
        note(ledger, "finally")


@job(runs_in="process", max_attempts=1, stop_grace=20)
def is_short(number: int) -> int:
    """Return before the worker can notice. The child's threads switch as often as they can."""
    sys.setswitchinterval(1e-6)
    return sum(range(number % 1000)) * 0 + number


@job(runs_in="process", max_attempts=1, stop_grace=20)
def ignores_signals(ledger: str, seconds: float) -> None:
    """Ignore for a while the signal that interrupts this function."""
    handler = signal.signal(signal.SIGURG, signal.SIG_IGN)
    note(ledger, "begun", os.getpid())
    time.sleep(seconds)
    signal.signal(signal.SIGURG, handler)
    time.sleep(60)
