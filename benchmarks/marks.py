"""Records which jobs have run, how often, and when, in a file that all processes share.

A job has a number and calls `mark` in its first line. It may run in any process, thread or virtual environment, so this module needs
only the standard library. The file has a byte for each job, which counts its runs, then a double for each: the time of its last run.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

VARIABLE: Final = "BENCHMARK_MARKS"
"""The environment variable with the file's path."""

A_DOUBLE: Final = 8


class Marks:
    """The marks of jobs 0 to N-1. No two jobs have the same number, so threads never write the same byte unless a job runs twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._jobs = len(self._map) // (1 + A_DOUBLE)
        whole = memoryview(self._map)
        self._runs = whole[: self._jobs]
        self._stamps = whole[self._jobs :].cast("d")

    def mark(self, number: int) -> None:
        self._runs[number] += 1
        self._stamps[number] = time.monotonic()

    @property
    def ran(self) -> int:
        """The number of jobs that have run at least once."""
        return self._jobs - bytes(self._runs).count(0)

    def stamps(self) -> list[float]:
        """Return the times of the jobs' last runs, ordered by number; 0 for a job that has not run."""
        return list(self._stamps)

    def clear(self) -> None:
        """Clear all marks."""
        self._map[:] = bytes(len(self._map))

    @property
    def rate(self) -> float:
        """Jobs per second, from the first job's first line to the last one's."""
        stamps = self.stamps()
        return (len(stamps) - 1) / (max(stamps) - min(stamps))

    def check(self) -> None:
        """Raise AssertionError unless each job has run exactly once."""
        runs = bytes(self._runs)
        if never := runs.count(0):
            raise AssertionError(f"{never:,} of {self._jobs:,} jobs have not run")
        if often := self._jobs - runs.count(1):
            raise AssertionError(f"{often:,} of {self._jobs:,} jobs have run more than once")


@contextmanager
def marks_of(jobs: int) -> Iterator[Marks]:
    """Create a file for this number of jobs, and delete it after the block. Child processes with `environment_of` write to it."""
    padded = -(-jobs // A_DOUBLE) * A_DOUBLE
    if padded != jobs:
        raise ValueError(f"jobs must be a multiple of {A_DOUBLE}, so that the stamps are aligned, got {jobs}")
    with TemporaryDirectory(prefix="taskflow-benchmark-") as folder:
        path = Path(folder, "marks")
        path.write_bytes(bytes(jobs * (1 + A_DOUBLE)))
        yield Marks(path)


def environment_of(marks: Marks) -> dict[str, str]:
    """Return the environment for a process whose jobs write to this file."""
    return {**os.environ, VARIABLE: str(marks.path)}


def mark(number: int) -> None:
    """Record in the file that the environment names that this job runs now."""
    _of_the_environment().mark(number)


@cache
def _of_the_environment() -> Marks:
    return Marks(Path(os.environ[VARIABLE]))
