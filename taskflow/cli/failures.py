"""`taskflow failures`: lists the causes for which jobs have failed."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from typing import Final

import msgspec

from taskflow.app.app import App
from taskflow.app.failure_groups import MAX_GROUPS, FailureGroup, failure_groups
from taskflow.cli.exit_codes import Exit
from taskflow.cli.job_filter import filter_of, is_known_queue, note_unknown_job
from taskflow.cli.json_text import print_json
from taskflow.cli.store import existing_broker, with_store
from taskflow.cli.terminal import BOLD, RED, cut, painted, room
from taskflow.cli.time_format import span
from taskflow.model.printable import one_line


def run(arguments: argparse.Namespace) -> int:
    return with_store(arguments, _failures)


async def _failures(app: App, arguments: argparse.Namespace) -> int:
    view, broker = filter_of(arguments), await existing_broker(app)
    if not await is_known_queue(broker.console, view.queue):
        return Exit.NOT_FOUND
    groups, window = await failure_groups(broker, view, MAX_GROUPS + 1)
    if not groups:
        await note_unknown_job(broker.console, view.job)
    if window is not None:
        print(f"taskflow: only the newest {window:,} failed jobs that match were counted", file=sys.stderr)
    if len(groups) > MAX_GROUPS:
        print(f"taskflow: only the {MAX_GROUPS} largest groups are listed", file=sys.stderr)
        groups = groups[:MAX_GROUPS]
    if arguments.json:
        print_json([msgspec.structs.asdict(group) for group in groups])
    elif not groups:
        print("no failed jobs match", file=sys.stderr)
    else:
        _print(groups)
    return Exit.OK


def _print(groups: list[FailureGroup]) -> None:
    now, width = datetime.now(UTC), room()
    print(painted(f"{'GROUP':16}  {'COUNT':>7}  FIRST AGO  LAST AGO  JOB", BOLD))
    for group in groups:
        first, last = (span((now - at).total_seconds()) for at in (group.first, group.last))
        [job, *others] = group.jobs
        more = f" and {len(others)} more" if others else ""
        print(cut(one_line(f"{group.id}  {group.count:>7,}  {first:>9}  {last:>8}  {job}{more}"), width))
        print(f"    {painted(cut(one_line(group.error.partition(chr(10))[0]), width - 4), RED)}")
        print(f"    {one_line(f'in {group.frame}, ' if group.frame else '', width - 4)}last: {group.sample}")
        if group.deploys:
            print(f"    {one_line(f'deploys: {_listed(group.deploys)}', width - 4)}")


MOST_DEPLOYS: Final = 3
"""The number of deploys that are listed by name."""


def _listed(counts: dict[str, int]) -> str:
    shown = [f"{name} ({count:,})" for name, count in list(counts.items())[:MOST_DEPLOYS]]
    return ", ".join(shown) + (f" and {len(counts) - MOST_DEPLOYS} more" if len(counts) > MOST_DEPLOYS else "")
