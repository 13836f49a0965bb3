"""`taskflow worker` on Postgres that writes down each claim and each settlement: `python -m benchmarks.recorded_worker FILE worker ...`.

A line of the file is a call: what it was, the instant of its answer by the monotonic clock, the seconds that it took, how many jobs,
and of those that were settled and returned how long they had waited (`tasks.waited`) the milliseconds, separated by spaces.
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

Verb = Callable[..., Awaitable[Sequence[Any]]]


@dataclass(frozen=True)
class Call:
    """`at` the answer's instant, `took` seconds, `waits` seconds of each job that told so."""

    verb: str
    at: float
    took: float
    jobs: int
    waits: tuple[float, ...]


class Recorder:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def wrap(self, broker: type) -> None:
        """All brokers of that type are recorded from now on."""
        for name in (CLAIM, SETTLE):
            setattr(broker, name, self._recorded(name, getattr(broker, name)))

    def _recorded(self, name: str, verb: Verb) -> Verb:
        async def call(broker: object, *arguments: Any) -> Sequence[Any]:
            began = time.monotonic()
            answers: Sequence[Any] = ()
            try:
                answers = await verb(broker, *arguments)
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
    """Those of a file whose answer came after that instant, in their order."""
    with path.open() as lines:
        calls = [_call(line) for line in lines if line.endswith("\n")]
    return [call for call in calls if call.at >= since]


def _call(line: str) -> Call:
    verb, at, took, jobs, waits = line.rstrip("\n").split(",")
    return Call(verb, float(at), float(took), int(jobs), tuple(float(wait) / 1e3 for wait in waits.split()))


def main(path: str, *arguments: str) -> int:
    with Path(path).open("w", buffering=1) as file:
        Recorder(file).wrap(PostgresBroker)
        return taskflow(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
