"""The JSON output of `retry`, `cancel` and `purge`, and the operator that the audit log names."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from taskflow.app.audit_log import this_operator
from taskflow.app.bulk_actions import ActionResult
from taskflow.cli.json_text import print_json


class ActionReport(msgspec.Struct, kw_only=True):
    """The result of a command that acts on jobs.

    `matching`  the number of jobs that match or were named; in a dry run, only the named jobs that can be changed
    `jobs`      the result for each job that was named
    `stages`    the stages of `retry --group`
    `stopped`   the reason why `retry --group` stopped early
    """

    act: str
    dry_run: bool
    matching: int
    changed: int = 0
    asked: int = 0
    refused: dict[str, int] = {}
    jobs: list[dict[str, str]] = []
    stages: list[dict[str, int]] = []
    stopped: str | None = None

    def add(self, done: ActionResult) -> None:
        self.changed, self.asked, self.refused = done.changed, done.asked, done.refused

    def print(self) -> None:
        print_json(msgspec.structs.asdict(self))


def operator(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return who acts, and why, as arguments of the functions that record acts."""
    return {"by": arguments.by or this_operator(), "reason": arguments.reason}
