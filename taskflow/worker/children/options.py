"""Options for child processes."""

from __future__ import annotations

import os
import sys
from typing import Final

import msgspec

from taskflow.model.errors import ConfigurationError

MEBIBYTE: Final = 1 << 20


class ChildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options for a worker's child processes.

    `at_once`       the maximum number of children that run jobs at once; None means the number of cores that this process may use
    `most_runs`     the number of runs after which a child is replaced
    `most_growth`   the number of bytes by which a child's memory may grow after its imports before the child is replaced
    `idle_for`      seconds without work after which a child ends
    `start_within`  seconds allowed for a child to start, and for each later import
    `exit_within`   seconds allowed for a child to exit by itself before it is killed
    """

    at_once: int | None = None
    most_runs: int = 100
    most_growth: int = 256 * MEBIBYTE
    idle_for: float = 300.0
    start_within: float = 60.0
    exit_within: float = 5.0

    def __post_init__(self) -> None:
        for name, least in (("at_once", 1), ("most_runs", 1), ("most_growth", 0), ("idle_for", 0), ("start_within", 0), ("exit_within", 0)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigurationError(f"{name}={value!r}: expected {least} or more")

    @property
    def slots(self) -> int:
        return self.at_once or cores()


def cores() -> int:
    """Return the number of cores that this process may use."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1
