"""`taskflow worker` on Postgres that records each claim and each settlement: `python -m benchmarks.recorded_worker FILE worker ...`.

Each line of the file is a call: the operation, the time of its answer on the monotonic clock, its duration in seconds, the number of jobs,
and the waits of settled jobs that returned them (`tasks.waited`), in milliseconds separated by spaces.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from taskflow.broker.postgres import PostgresBroker
from taskflow.cli.main import main as taskflow
from taskflow.model.codec import decode_value
from taskflow.model.verdict import Settlement, Succeeded

CLAIM: Final = "claim"
SETTLE: Final = "settle"

Operation = Callable[..., Awaitable[Sequence[Any]]]


@dataclass(frozen=True)
class Call:
    """A recorded call: when it was answered, how long it took, and the waits of jobs that returned them, in seconds."""

    operation: str
    at: float
    took: float
    jobs: int
    waits: tuple[float, ...]


class Recorder:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def wrap(self, broker: type) -> None:
        """Record the calls of all brokers of this type from now on."""
        for name in (CLAIM, SETTLE):
            setattr(broker, name, self._recorded(name, getattr(broker, name)))

    def _recorded(self, name: str, operation: Operation) -> Operation:
        async def call(broker: object, *arguments: Any) -> Sequence[Any]:
            began = time.monotonic()
            answers: Sequence[Any] = ()
            try:
                answers = await operation(broker, *arguments)
            finally:
                now = time.monotonic()
                waits = " ".join(_waits(arguments[0])) if name == SETTLE else ""
                self._file.write(f"{name},{now:.6f},{now - began:.6f},{len(answers)},{waits}\n")
            return answers

        return call


def _waits(settlements: Sequence[Settlement]) -> Iterator[str]:
    for settlement in settlements:
        if isinstance(settlement.verdict, Succeeded):
            result = decode_value(settlement.verdict.result)
            if isinstance(result, float):
                yield f"{1e3 * result:.3f}"


def read_calls(path: Path, since: float = 0.0) -> list[Call]:
    """Return the calls in a file that were answered after `since`, in order."""
    with path.open() as lines:
        calls = [_call(line) for line in lines if line.endswith("\n")]
    return [call for call in calls if call.at >= since]


def _call(line: str) -> Call:
    operation, at, took, jobs, waits = line.rstrip("\n").split(",")
    return Call(operation, float(at), float(took), int(jobs), tuple(float(wait) / 1e3 for wait in waits.split()))


def main(path: str, *arguments: str) -> int:
    with Path(path).open("w", buffering=1) as file:
        Recorder(file).wrap(PostgresBroker)
        return taskflow(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
