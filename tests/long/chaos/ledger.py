"""The ledger of a chaos test: one line for each thing that happened, in a file outside the store.

Every process appends to the same file. A line is one write, so it survives the SIGKILL of its writer, and lines never mix.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

Event = Literal[
    # a producer: before it sends, and what it was answered
    "send",
    "accepted",
    "refused",
    "unknown",
    "committed",
    "rolled back",
    "cancelling",
    "cancelled",
    "ended",
    # a run
    "begin",
    "end",
    "ignored",
    # a process and what was done to it
    "killed",
    "stopped",
    "continued",
    "starved",
    "service failed",
    "cut off",
    "healed",
    "fault",
]

VARIABLE: Final = "CHAOS_LEDGER"
"""The environment variable with the path of the ledger."""


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line.

    `at`, `mono`     the wall clock and the monotonic clock, in seconds. All processes of a machine share both
    `pid`            the process that the line is about: the writer, or the one that was killed or stopped. 0 stands for all of them
    `id`             the job
    `kind`           what the judge expects of the job
    `key`            the key with which it was sent, and `conflict` says what was to happen if a live job has it
    `after`          the wait in seconds with which it was sent. Of "starved": how many seconds
    `expires`        the seconds from now after which no run may begin; 0 for no limit
    `fails`          how many attempts are to fail
    `max_attempts`   how many attempts it has
    `batch`          the first id of the batch or transaction in which it was sent
    `epoch`, `attempt`  of the run
    `status`         how the run has ended, or which status was found
    `standing`       the live job that had the key
    `note`           for people
    """

    event: Event
    at: float
    mono: float
    pid: int = 0
    id: str = ""
    kind: str = ""
    key: str = ""
    conflict: str = ""
    after: float = 0.0
    expires: float = 0.0
    fails: int = 0
    max_attempts: int = 0
    batch: str = ""
    epoch: int = 0
    attempt: int = 0
    status: str = ""
    standing: str = ""
    note: str = ""

    def __str__(self) -> str:
        skipped = ("at", "mono", "event", "id", "kind")
        facts = [f"{name}={value}" for name, value in msgspec.structs.asdict(self).items() if value and name not in skipped]
        return f"{self.mono:.3f} {self.event:<11} {' '.join(facts)}"


class Ledger:
    """Appends lines to the file at `path`. The clocks are those of the system, unless a test replaces them."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.wall: Callable[[], float] = time.time
        self.mono: Callable[[], float] = time.monotonic
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._encoder = msgspec.json.Encoder()

    def write(self, event: Event, *, pid: int | None = None, **facts: Any) -> None:
        """Append a line with these fields of `Line`."""
        given = {"event": event, "at": self.wall(), "mono": self.mono(), "pid": os.getpid() if pid is None else pid}
        os.write(self._file, self._encoder.encode({**given, **facts}) + b"\n")

    def read(self) -> list[Line]:
        """Return all lines in the order in which they were written."""
        return list(map(_decode, self.path.read_bytes().splitlines()))


_decode: Final = msgspec.json.Decoder(Line).decode


def of_environment() -> Ledger:
    """Return the ledger of the test that has started this process."""
    return Ledger(os.environ.get(VARIABLE, os.devnull))
