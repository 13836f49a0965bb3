"""Describes a verb that waits for the writer, and how durable its changes must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from taskflow.broker.sqlite.store import SqliteStore


class Durability(IntEnum):
    """How durable the changes of a verb must be. The strictest verb in a group decides for the whole group."""

    READ = 0
    """Nothing is written, and no write lock is taken."""

    NORMAL = 1
    """For claims, heartbeats and upkeep: the log is written but not flushed. If the process is killed, nothing is lost.

    A power failure may lose changes made since the last flush. A job whose claim is lost is READY again. Its worker, which lost power
    too, cannot settle it, because the next claim has another id. So a flush would gain nothing, and would cost several times as much.
    """

    FULL = 2
    """For settlements, cancellations and console operations: the log is flushed before the answer."""

    GROWING = 3
    """For verbs that add jobs: in addition, a full disk is StoreFull."""


@dataclass(eq=False, slots=True)
class QueuedVerb:
    """A verb, and its answer or error. `accepted_at` is a `time.monotonic()` value."""

    verb: Callable[[SqliteStore], Any]
    durability: Durability
    accepted_at: float
    answer: Any = field(default=None, init=False)
    error: BaseException | None = field(default=None, init=False)
