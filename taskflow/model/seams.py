"""Seams: the only sources of time, randomness and new threads, so that a test can replace them."""

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
        """Return a float from 0 to 1, excluding 1."""
        ...

    def getrandbits(self, k: int, /) -> int:
        """Return an integer of k random bits."""
        ...


class _Module:
    """The random module's own generator, which is seeded by the system and again after a fork."""

    def __init__(self) -> None:
        self.random = random.random
        self.getrandbits = random.getrandbits


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


class Seams(msgspec.Struct, frozen=True):
    """The sources of time, randomness and threads for a part of taskflow."""

    clock: Clock = msgspec.field(default_factory=SystemClock)
    chance: Chance = msgspec.field(default_factory=_Module)
    start_thread: StartThread = start_thread
