"""Which jobs have run, how often, and when: what the jobs themselves write into a file that all processes share.

A job has a number and calls `mark` in its first line. It may run in any process, thread or virtual environment, so this needs nothing
but the standard library. Layout: a byte for each job, which counts its runs, then a double for each, the monotonic clock at the last one.
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
"""Of the environment: the file's path."""

A_DOUBLE: Final = 8


class Marks:
    """Of jobs 0 to N-1. Two threads never write the same byte, as no two jobs have the same number; a job that runs twice shows."""

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
        """How many jobs have run at least once."""
        return self._jobs - bytes(self._runs).count(0)

    def stamps(self) -> list[float]:
        """In the jobs' order; of one that has not run, 0."""
        return list(self._stamps)

    def clear(self) -> None:
        """As if none had run."""
        self._map[:] = bytes(len(self._map))

    @property
    def rate(self) -> float:
        """Jobs a second, from the first one's first line to the last one's."""
        stamps = self.stamps()
        return (len(stamps) - 1) / (max(stamps) - min(stamps))

    def check(self) -> None:
        """Raises AssertionError unless each has run exactly once."""
        runs = bytes(self._runs)
        if never := runs.count(0):
            raise AssertionError(f"{never:,} of {self._jobs:,} jobs have not run")
        if often := self._jobs - runs.count(1):
            raise AssertionError(f"{often:,} of {self._jobs:,} jobs have run more than once")


@contextmanager
def marks_of(jobs: int) -> Iterator[Marks]:
    """A file for so many, gone after the block; child processes started in it with `environment_of` write to it."""
    padded = -(-jobs // A_DOUBLE) * A_DOUBLE
    if padded != jobs:
        raise ValueError(f"a multiple of {A_DOUBLE} jobs, so that the stamps are aligned; not {jobs}")
    with TemporaryDirectory(prefix="taskflow-benchmark-") as folder:
        path = Path(folder, "marks")
        path.write_bytes(bytes(jobs * (1 + A_DOUBLE)))
        yield Marks(path)


def environment_of(marks: Marks) -> dict[str, str]:
    """That of a process whose jobs shall write there."""
    return {**os.environ, VARIABLE: str(marks.path)}


def mark(number: int) -> None:
    """That this job runs, now, in the file that the environment names."""
    _of_the_environment().mark(number)


@cache
def _of_the_environment() -> Marks:
    return Marks(Path(os.environ[VARIABLE]))
