"""Seams: the only places from which taskflow gets time, randomness and new threads, so that tests can replace them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Protocol

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

    def getrandbits(self, k: int, /) -> int:
        """Return an integer of k random bits."""
        ...


class _Module:
    """The random module's generator. Python seeds it from the operating system, and again in a forked child."""

    def __init__(self) -> None:
        self.random = random.random
        self.getrandbits = random.getrandbits


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


class Seams(msgspec.Struct, frozen=True):
    """The sources from which a part of taskflow gets time, randomness and threads."""

    clock: Clock = msgspec.field(default_factory=SystemClock)
    chance: Chance = msgspec.field(default_factory=_Module)
    start_thread: StartThread = start_thread
