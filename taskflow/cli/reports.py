"""`taskflow failures | audit | metrics`: why jobs have failed, what operators did, and how often each kind of event has happened."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from taskflow.app.app import App
from taskflow.app.operate import MAX_GROUPS, FailureGroup, failure_groups
from taskflow.cli.command import existing_broker, filter_of, is_known_queue, note_unknown_job, on_store
from taskflow.cli.exit_codes import Exit
from taskflow.cli.terminal import BOLD, RED, cut, painted, print_json, print_lines, room, span
from taskflow.model.audit import ActionRecord
from taskflow.model.printable import INDENT, one_line
from taskflow.model.stored_values import LATEST

MAX_DEPLOYS: Final = 3  # that are listed by name
MAX_ACTS: Final = 10_000  # in one list, which is how many a store keeps


@on_store
async def failures(app: App, arguments: argparse.Namespace) -> int:
    view, broker = filter_of(arguments), await existing_broker(app)
    if not await is_known_queue(broker.admin, view.queue):
        return Exit.NOT_FOUND
    groups, window = await failure_groups(broker, view, MAX_GROUPS + 1)
    if not groups:
        await note_unknown_job(broker.admin, view.job)
    if window is not None:
        print(f"taskflow: only the newest {window:,} failed jobs that match were counted", file=sys.stderr)
    if len(groups) > MAX_GROUPS:
        print(f"taskflow: only the {MAX_GROUPS} largest groups are listed", file=sys.stderr)
        groups = groups[:MAX_GROUPS]
    if arguments.json:
        print_json(groups)
    elif not groups:
        print("no failed jobs match", file=sys.stderr)
    else:
        print_lines(_group_lines(groups))
    return Exit.OK


def _group_lines(groups: list[FailureGroup]) -> Iterator[str]:
    now, width = datetime.now(UTC), room()
    yield painted(f"{'GROUP':16}  {'COUNT':>7}  FIRST AGO  LAST AGO  JOB", BOLD)
    for group in groups:
        first, last = (span((now - at).total_seconds()) for at in (group.first, group.last))
        [job, *others] = group.jobs
        more = f" and {len(others)} more" if others else ""
        yield cut(one_line(f"{group.id}  {group.count:>7,}  {first:>9}  {last:>8}  {job}{more}"), width)
        yield f"{INDENT}{painted(cut(one_line(group.error.partition(chr(10))[0]), width - 4), RED)}"
        yield f"{INDENT}{one_line(f'in {group.frame}, ' if group.frame else '', width - 4)}last: {group.sample}"
        if group.deploys:
            named = ", ".join(f"{name} ({count:,})" for name, count in list(group.deploys.items())[:MAX_DEPLOYS])
            others_too = f" and {len(group.deploys) - MAX_DEPLOYS} more" if len(group.deploys) > MAX_DEPLOYS else ""
            yield f"{INDENT}{one_line(f'deploys: {named}{others_too}', width - 4)}"


@on_store
async def audit(app: App, arguments: argparse.Namespace) -> int:
    before = None if arguments.before is None else min(arguments.before, LATEST)
    records = await (await existing_broker(app)).admin.actions(before=before, limit=min(arguments.limit, MAX_ACTS))
    if arguments.json:
        print_json([_act_json(record) for record in records])
        return Exit.OK
    if records:
        print_lines(_act_lines(records))
    else:
        print("no act of an operator is recorded", file=sys.stderr)
    if len(records) == arguments.limit:
        print(f"there may be more: --before {records[-1].number}", file=sys.stderr)
    return Exit.OK


def _act_lines(records: list[ActionRecord]) -> Iterator[str]:
    """Yield a header, and lines for each act: when, how many it affected, what and who. The reason has a separate line."""
    now, width = datetime.now(UTC), room()
    verbs = max(len("ACT"), *(len(one_line(record.act.verb, 24)) for record in records))
    yield f"{'AGO':>6}  {'ACT':{verbs}}  {'COUNT':>9}  BY, WHAT"
    for record in records:
        act, ago = record.act, span((now - record.at).total_seconds())
        more = f" and {act.named - len(act.names):,} more" if act.named > len(act.names) else ""
        what = [", ".join(act.names) + more, *(f"{name}={value}" for name, value in act.which.items())]
        line = f"{ago:>6}  {one_line(act.verb, 24):{verbs}}  {act.affected:>9,}  {act.by}: {' '.join(filter(None, what))}"
        yield one_line(line, width).rstrip()
        for remark in (act.reason and f"reason: {act.reason}", act.stopped and f"stopped early: {act.stopped}"):
            if remark:
                yield f"{INDENT}{one_line(remark, width - len(INDENT))}"


def _act_json(record: ActionRecord) -> dict[str, Any]:
    act = record.act
    return {
        "number": record.number,
        "at": record.at,
        "by": act.by,
        "act": act.verb,
        "names": list(act.names),
        "named": act.named,
        "selection": dict(act.which),
        "affected": act.affected,
        "stopped": act.stopped or None,
        "reason": act.reason,
    }


@on_store
async def metrics(app: App, arguments: argparse.Namespace) -> int:
    totals = (await (await existing_broker(app)).admin.metrics()).totals
    if arguments.json:
        print_json({"totals": totals})
        return Exit.OK
    if not totals:
        print("no job has been sent yet", file=sys.stderr)
    width = room()
    for queue, events in sorted(totals.items()):
        print(one_line(queue, width))
        most = max((len(f"{number:,}") for number in events.values()), default=0)
        for event, number in events.items():
            print(one_line(f"{INDENT}{number:>{most},}  {event}", width))
    return Exit.OK
