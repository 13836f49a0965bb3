"""Seams: the only places from which taskflow gets time, randomness and new threads, so that tests can replace them."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from taskflow.model.clock import Clock, SystemClock


class StartThread(Protocol):
    def __call__(self, target: Callable[[], None], name: str) -> threading.Thread:
        """Start a daemon thread that runs `target`."""
        ...


class Chance(Protocol):
    """The methods of `random.Random` that taskflow uses."""

    def random(self) -> float:
        """Return a float that is at least 0 and less than 1."""
        ...

    def randbytes(self, n: int, /) -> bytes:
        """Return n random bytes."""
        ...


SYSTEM_RANDOM: Final = random.SystemRandom()
"""Draws from the operating system. If two processes had generators in the same state, they would make the same ids, and jobs would be
lost. Applications seed the random module's generator. C code that forks, as in uWSGI, copies the state of any generator."""


class _SystemChance:
    def __init__(self) -> None:
        self.random = SYSTEM_RANDOM.random
        self.randbytes = os.urandom  # ids are made on the way of each job: this is faster than the method of SystemRandom


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


class Seams(msgspec.Struct, frozen=True):
    """The sources from which a part of taskflow gets time, randomness and threads."""

    clock: Clock = msgspec.field(default_factory=SystemClock)
    chance: Chance = msgspec.field(default_factory=_SystemChance)
    start_thread: StartThread = start_thread
