"""`taskflow failures | audit | metrics`: shows why jobs failed, what operators did, and how often each kind of event occurred."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from taskflow.app.app import App
from taskflow.app.operate import MAX_GROUPS, FailureGroup, failure_groups
from taskflow.cli.command import existing_broker, filter_of, is_known_queue, on_store, report_unknown_job
from taskflow.cli.exit_codes import Exit
from taskflow.cli.terminal import RED, Column, ago, cut, only, painted, room, show, table, warn
from taskflow.model.audit import ActionRecord
from taskflow.model.errors import ConfigurationError, DriverMissing
from taskflow.model.printable import INDENT, one_line
from taskflow.model.stored_values import LATEST

MAX_DEPLOYS: Final = 3  # maximum number of deploys listed by name
MAX_ACTIONS: Final = 10_000  # maximum number of actions in one list, which is also the maximum that a store keeps


@on_store
async def failures(app: App, arguments: argparse.Namespace) -> int:
    view, broker = filter_of(arguments), await existing_broker(app)
    if not await is_known_queue(broker.admin, view.queue):
        return Exit.NOT_FOUND
    groups, window = await failure_groups(broker, view, MAX_GROUPS + 1, arguments.deploy or "")
    if not groups:
        await report_unknown_job(broker.admin, view.job)
    if window is not None:
        warn(f"only the newest {window:,} failed jobs that match were counted")
    if len(groups) > MAX_GROUPS:
        warn(f"only the {MAX_GROUPS} largest groups are listed")
        groups = groups[:MAX_GROUPS]
    if not groups and not arguments.json:
        print("no failed jobs match", file=sys.stderr)
    return show(arguments, groups, table(_GROUP_COLUMNS, groups, below=_below_group) if groups else ())


def _jobs_of(group: FailureGroup) -> str:
    [job, *others] = group.jobs
    return f"{job} and {len(others)} more" if others else job


_GROUP_COLUMNS: Final = (
    Column("GROUP", lambda group: group.id),
    Column("COUNT", lambda group: f"{group.count:,}", is_number=True, pad=7),
    Column("FIRST AGO", lambda group: ago(group.first), is_number=True),
    Column("LAST AGO", lambda group: ago(group.last), is_number=True),
    Column("JOB", _jobs_of),
)


def _below_group(group: FailureGroup) -> Iterator[str]:
    width = room() - len(INDENT)
    yield INDENT + painted(cut(one_line(group.error.partition("\n")[0]), width), RED)
    yield f"{INDENT}{one_line(f'in {group.frame}, ' if group.frame else '', width)}last: {group.sample}"
    if group.deploys:
        named = ", ".join(f"{name} ({count:,})" for name, count in list(group.deploys.items())[:MAX_DEPLOYS])
        more = f" and {len(group.deploys) - MAX_DEPLOYS} more" if len(group.deploys) > MAX_DEPLOYS else ""
        yield INDENT + one_line(f"deploys: {named}{more}", width)


@on_store
async def audit(app: App, arguments: argparse.Namespace) -> int:
    before = None if arguments.before is None else min(arguments.before, LATEST)
    records = await (await existing_broker(app)).admin.actions(before=before, limit=min(arguments.limit, MAX_ACTIONS))
    lines = table(_ACTION_COLUMNS, records, below=_below_action, color=None) if records else ()
    show(arguments, map(_action_json, records), lines)
    if not records and not arguments.json:
        print("no operator has done anything yet", file=sys.stderr)
    if len(records) == arguments.limit and not arguments.json:
        print(f"there may be more: --before {records[-1].number}", file=sys.stderr)
    return Exit.OK


def _by_and_what(record: ActionRecord) -> str:
    action = record.action
    more = f" and {action.named - len(action.names):,} more" if action.named > len(action.names) else ""
    what = [", ".join(action.names) + more, *(f"{name}={value}" for name, value in action.which.items())]
    return f"{action.by}: {' '.join(filter(None, what))}"


_ACTION_COLUMNS: Final = (
    Column("AGO", lambda record: ago(record.at), is_number=True, pad=6),
    Column("ACTION", lambda record: one_line(record.action.kind, 24)),
    Column("COUNT", lambda record: f"{record.action.affected:,}", is_number=True, pad=9),
    Column("BY, WHAT", _by_and_what),
)


def _below_action(record: ActionRecord) -> Iterator[str]:
    for title, text in (("reason", record.action.reason), ("stopped early", record.action.stopped)):
        if text:
            yield INDENT + one_line(f"{title}: {text}", room() - len(INDENT))


def _action_json(record: ActionRecord) -> dict[str, Any]:
    action, at = record.action, only(record, "number", "at")
    named = {"by": action.by, "action": action.kind, "names": action.names, "named": action.named, "selection": action.which}
    return at | named | {"affected": action.affected, "stopped": action.stopped or None, "reason": action.reason}


@on_store
async def metrics(app: App, arguments: argparse.Namespace) -> int:
    store = (await existing_broker(app)).admin
    totals = (await store.metrics()).totals
    if arguments.prometheus:
        if arguments.json:
            raise ConfigurationError("--prometheus and --json cannot be combined: each selects an output format")
        try:
            from taskflow.telemetry.prometheus import store_page
        except ImportError as error:
            raise DriverMissing("--prometheus needs prometheus_client: pip install prometheus-client") from error
        workers = [worker for worker in await store.workers() if worker.is_alive]
        sys.stdout.write(store_page(await store.queues(), totals, len(workers), await store.limits()).decode())
        return Exit.OK
    if not totals and not arguments.json:
        print("no job has been sent yet", file=sys.stderr)
    return show(arguments, {"totals": totals}, _metric_lines(totals))


def _metric_lines(totals: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    for queue, events in sorted(totals.items()):
        yield one_line(queue, room())
        most = max((len(f"{number:,}") for number in events.values()), default=0)
        for event, number in events.items():
            yield one_line(f"{INDENT}{number:>{most},}  {event}", room())
