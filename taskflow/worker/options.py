"""The options of a worker."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Final

import msgspec

from taskflow.app.events import Subscriber
from taskflow.model.envelope import check_queue
from taskflow.model.errors import ConfigurationError
from taskflow.model.printable import MAX_WHOLE, shown, whole
from taskflow.worker.children.process import ChildOptions
from taskflow.worker.log import log_event

MAX_CONCURRENCY: Final = 100_000


class QueueChoice:
    """The order in which a worker claims from its queues: strict for ``a,b``, weighted for ``a=3,b=1``. If no queue is named, all take
    turns. With weights, each queue comes first in a share of the claims that is proportional to its weight, so that none starves."""

    def __init__(self, weights: Mapping[str, int | None] | None = None) -> None:
        weights = dict(weights or {})
        self._random = random.Random()  # a job may seed the global generator, and queues would starve
        self.names: tuple[str, ...] = tuple(weights)
        self._weights = {name: weight for name, weight in weights.items() if weight is not None}
        if self._weights and len(self._weights) != len(weights):
            raise ValueError(f"queues {', '.join(weights)}: give every queue a weight (a=3,b=1), or no queue (a,b: in strict order)")

    @classmethod
    def parse(cls, text: str) -> QueueChoice:
        """Parse the value of `--queues`. If a part of it is invalid, raises a ValueError that names the part."""
        weights: dict[str, int | None] = {}
        for part in text.split(","):
            name, separator, weight = part.strip().partition("=")
            check_queue(name)
            if name in weights:
                raise ValueError(f"queue {name!r} is named twice")
            number = whole(weight)
            if separator and not (number and number < MAX_WHOLE):
                raise ValueError(f"queue {name!r} has the weight {shown(weight)}: expected a whole number from 1 to {MAX_WHOLE - 1:,}")
            weights[name] = number if separator else None
        return cls(weights)

    def order(self) -> Sequence[str]:
        """Return the queues in the order for the next claim. With weights, the order is random: see Efraimidis and Spirakis (2006)."""
        if not self._weights:
            return self.names
        return sorted(self.names, key=lambda name: self._random.random() ** (1 / self._weights[name]), reverse=True)

    def __str__(self) -> str:
        if not self.names:
            return "every queue"
        return ", ".join(f"{name}={self._weights[name]}" if name in self._weights else name for name in self.names)


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    queues: QueueChoice = msgspec.field(default_factory=QueueChoice)
    concurrency: int = 100  # the maximum number of jobs that run at once
    grace: float = 25.0  # seconds that runs have to finish when the worker winds down
    stop_timeout: float = 5.0  # seconds after `grace` for cancelled runs to stop and for their verdicts to reach the broker
    ttl: float = 20.0  # seconds without a heartbeat after which other workers may take the jobs
    start_timeout: float = 0.0  # seconds to wait at startup for a broker that does not answer; 0 raises at once
    drain_horizon: float = 60.0  # `drained` waits for jobs that are due within this many seconds
    modules: tuple[str, ...] = ()  # the modules that a child process imports first; it also imports those of the jobs that it runs
    children: ChildOptions = msgspec.field(default_factory=ChildOptions)
    stall_limit: float = 300.0  # seconds that a job may block the loop before the heartbeat stops and others take its jobs; 0 disables
    # Called from a separate thread when that limit is reached. The argument is False if the subscribers did not receive `StalledForGood`
    # in time, for example because the loop is stuck writing to the log.
    on_stall_limit: Callable[[bool], None] | None = None
    subscribers: tuple[Subscriber, ...] = (log_event,)

    def __post_init__(self) -> None:
        if not _is_number(self.concurrency, int) or not 1 <= self.concurrency <= MAX_CONCURRENCY:
            raise ConfigurationError(f"concurrency={self.concurrency!r}: expected an int from 1 to {MAX_CONCURRENCY:,}")
        for name in ("grace", "stop_timeout", "ttl", "start_timeout", "drain_horizon", "stall_limit"):
            seconds = getattr(self, name)
            if not _is_number(seconds, int | float) or not 0 <= seconds < float("inf"):
                raise ConfigurationError(f"{name}={seconds!r}: expected seconds, 0 or more")


def _is_number(given: object, kind: type[int] | UnionType) -> bool:
    return isinstance(given, kind) and not isinstance(given, bool)
