"""Describes a verb that waits for the writer, and how durable its changes must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from taskflow.broker.sqlite.transitions import Transitions


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

    FULL_AND_NEW = 3
    """For a `fire` that adds jobs: the log is flushed before the answer, and the
    verb is refused if the disk is full. All other verbs still work."""

    FULL_AND_SENT = 4
    """For `enqueue` and a `define` without a session: in addition, the verb is
    refused if a transaction of this process that may be waiting for it holds the lock."""


@dataclass(eq=False, slots=True)
class QueuedVerb:
    """A verb, and its answer or error. `accepted_at` is a `time.monotonic()` value."""

    verb: Callable[[Transitions], Any]
    durability: Durability
    accepted_at: float
    answer: Any = field(default=None, init=False)
    error: BaseException | None = field(default=None, init=False)
