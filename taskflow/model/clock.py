"""The sources of time, randomness and threads, which tests can replace. Clocks count in microseconds."""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

import msgspec

MICROSECONDS: Final = 1_000_000

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST: Final = datetime.min.replace(tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)
_BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    """The source of time for stores without a server clock: memory and SQLite."""

    def wall(self) -> int:
        """Return the current time as microseconds since 1970 (UTC). This clock may be adjusted at any time."""
        ...

    def steady(self) -> int:
        """Return the microseconds since boot, including time spent suspended. Processes on the same machine can compare their readings."""
        ...

    def boot_id(self) -> str:
        """Return an id for the boot from which `steady` counts. Readings from different boots cannot be compared."""
        ...


class SystemClock:
    def wall(self) -> int:
        return time.time_ns() // 1_000

    def steady(self) -> int:
        return time.clock_gettime_ns(_STEADY) // 1_000

    def boot_id(self) -> str:
        return _BOOT_ID


class ManualClock:
    """A clock that moves only when a test moves it. `skew` moves only the wall clock, and `reboot` restarts the steady one."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._wall = microseconds_of(start)
        self._steady = 1_000 * MICROSECONDS
        self._boots = 0

    def wall(self) -> int:
        return self._wall

    def steady(self) -> int:
        return self._steady

    def boot_id(self) -> str:
        return f"manual-{self._boots}"

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("time only moves forward: use skew() to set the wall clock back")
        self._wall += to_microseconds(seconds)
        self._steady += to_microseconds(seconds)

    def skew(self, seconds: float) -> None:
        self._wall += to_microseconds(seconds)

    def reboot(self) -> None:
        self._boots += 1
        self._steady = 5 * MICROSECONDS


def to_microseconds(seconds: float) -> int:
    return round(seconds * MICROSECONDS)


def to_seconds(microseconds: int) -> float:
    return microseconds / MICROSECONDS


def microseconds_of(instant: datetime) -> int:
    """Convert an aware datetime to microseconds since 1970. Raises ValueError for a naive datetime, which is ambiguous."""
    if instant.utcoffset() is None:
        raise ValueError(f"{instant!r} is naive: give it a time zone, for example datetime.now(UTC)")
    return (instant - _EPOCH) // timedelta(microseconds=1)


def instant_of(microseconds: int) -> datetime:
    """Convert microseconds since 1970 to an aware datetime in UTC. Instants outside datetime's range become its first or last instant."""
    try:
        return _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return _FIRST if microseconds < 0 else _LAST


def _read_boot_id() -> str:
    """Return the boot id that Linux provides; on other systems, return an id made from the boot time, rounded to ten seconds."""
    try:
        return _BOOT_ID_FILE.read_text().strip()
    except OSError:
        booted = time.time() - time.clock_gettime(_STEADY)
        return str(uuid.UUID(int=round(booted / 10)))


# CLOCK_BOOTTIME keeps counting while the machine sleeps, so a lease expires even if the lid is closed.
# On macOS, CLOCK_MONOTONIC does so too.
_STEADY: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BOOT_ID: Final = _read_boot_id()


class StartThread(Protocol):
    def __call__(self, target: Callable[[], None], name: str) -> threading.Thread:
        """Start a daemon thread that runs `target`."""
        ...


class Chance(Protocol):
    """The methods of `random.Random` that taskflow uses."""

    def random(self) -> float:
        """Return a float that is at least 0 and less than 1."""
        ...

    def randbytes(self, n: int, /) -> bytes: ...


SYSTEM_RANDOM: Final = random.SystemRandom()
"""Draws from the operating system. If the generators of two processes had the same state, they would make the same ids, and jobs would be
lost. Some applications seed the random module's generator, and C code that forks, as in uWSGI, copies the state of any generator."""


class _SystemChance:
    def __init__(self) -> None:
        self.random = SYSTEM_RANDOM.random
        self.randbytes = os.urandom  # an id is made for every job sent, and this is faster than SystemRandom's method


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


class Seams(msgspec.Struct, frozen=True):
    """The replaceable sources (seams) of time, randomness and threads for a part of taskflow."""

    clock: Clock = msgspec.field(default_factory=SystemClock)
    chance: Chance = msgspec.field(default_factory=_SystemChance)
    start_thread: StartThread = start_thread
