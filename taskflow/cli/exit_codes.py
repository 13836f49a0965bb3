"""The exit codes of all commands. `--help` and docs/reference/cli.md show them in a table."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    BROKER = 3
    NOT_FOUND = 4
    STALLED = 5
    FORCED = 124


MEANINGS: Final = {
    Exit.OK: "success",
    Exit.FAILED: "a job or a check failed",
    Exit.USAGE: "the command line is wrong, or a module cannot be imported",
    Exit.BROKER: "the broker cannot be reached, or refuses the request",
    Exit.NOT_FOUND: "the requested job, queue or file does not exist",
    Exit.STALLED: "a job has blocked the worker's event loop for --stall-limit seconds",
    Exit.FORCED: "ended by force after the grace period",
}

TABLE: Final = "\n".join(f"  {code:>5}  {meaning}" for code, meaning in MEANINGS.items()) + "\n  128+n  ended by signal n"
