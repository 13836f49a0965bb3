"""`taskflow retry --group`: retries the failed jobs of one cause in stages, and stops as soon as one of them fails again."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Final

from taskflow.app.app import App
from taskflow.app.audit_log import ActionProgress, recorded, selection
from taskflow.app.bulk_actions import CHANGED, ActionResult, CallOnce, apply
from taskflow.app.failure_groups import group_ids
from taskflow.broker.protocol import Broker
from taskflow.cli.action_report import ActionReport, operator
from taskflow.cli.exit_codes import Exit
from taskflow.cli.job_filter import filter_of
from taskflow.cli.progress_bar import print_now
from taskflow.cli.store import existing_broker
from taskflow.model.errors import BrokerError
from taskflow.model.ids import id_text
from taskflow.model.printable import message
from taskflow.model.record import Record, Status

AT_ONCE: Final = 100
MOST_LOOKED_AT: Final = 1_000
"""The most jobs that are read between two portions, however many have not run yet."""

LOOK_EVERY: Final = 0.2


async def retry_group(app: App, arguments: argparse.Namespace) -> int:
    """Retry the group's jobs. Returns FAILED if a job has failed again, or has not ended in time; the rest is then left as it is."""
    broker = await existing_broker(app)
    ids = await group_ids(broker.console, filter_of(arguments), arguments.group)
    if not ids:
        print(f"taskflow: no failed job is in group {arguments.group}: `taskflow failures` lists the groups", file=sys.stderr)
        return Exit.NOT_FOUND
    report = ActionReport(act="retry", dry_run=arguments.dry_run, matching=len(ids))
    if arguments.dry_run:
        report.stages = [{"jobs": len(stage), "changed": 0} for stage in _stages(ids, arguments)]
        sizes = ", ".join(f"{stage['jobs']:,}" for stage in report.stages)
        if arguments.json:
            report.print()
        else:
            print(f"would retry {len(ids):,} in stages of {sizes}")
        return Exit.OK
    if not any(worker.is_alive for worker in await broker.console.workers()):
        print("taskflow: no worker is running: the jobs wait until one starts", file=sys.stderr)
    rollout = _Rollout(broker, arguments)
    try:
        await _retry_in_stages(rollout, ids, arguments, report)
    except (KeyboardInterrupt, asyncio.CancelledError, BrokerError):
        left = len(ids) - rollout.done.seen
        print(f"taskflow: interrupted: retried {rollout.done.changed:,}; {left:,} of {len(ids):,} were left alone", file=sys.stderr)
        raise
    for why, number in rollout.done.refused.items():
        print(f"taskflow: {number:,} were not retried: {why}", file=sys.stderr)
    if arguments.json:
        report.print()
    return Exit.FAILED if report.stopped is not None or report.refused else Exit.OK


async def _retry_in_stages(rollout: _Rollout, ids: Sequence[bytes], arguments: argparse.Namespace, report: ActionReport) -> None:
    """Run one stage after the other until one gives a reason to stop. Keep the report up to date."""
    for stage in _stages(ids, arguments):
        before = rollout.done.changed
        report.stopped = await rollout.run(stage)
        report.add(rollout.done)
        report.stages = [*report.stages, {"jobs": len(stage), "changed": report.changed - before}]
        if report.stopped is not None:
            left = len(ids) - rollout.done.seen
            print(f"taskflow: stopped: {report.stopped}; {left:,} of {len(ids):,} were left alone", file=sys.stderr)
            return
        if not arguments.json:
            print_now(f"retried {report.changed:,} of {len(ids):,}: none has failed again")


def _stages(ids: Sequence[bytes], arguments: argparse.Namespace) -> Iterator[Sequence[bytes]]:
    """Yield the ids of each stage: so many for the canary, then for each further size. The last stage has the rest."""
    begin = 0
    for size in (arguments.canary, *arguments.then):
        if begin < len(ids) and size != 0:
            end = len(ids) if size is None else begin + size
            yield ids[begin:end]
            begin = end
    if begin < len(ids):
        yield ids[begin:]


class _Rollout:
    """Retries jobs and watches them. `done` counts what has become of those that it was given. The audit log has an entry for each
    stage."""

    def __init__(self, broker: Broker, arguments: argparse.Namespace) -> None:
        self.done = ActionResult()
        self._broker = broker
        self._rate: float | None = arguments.rate
        self._wait: float = arguments.wait
        self._act = {"which": {"group": arguments.group, **selection(filter_of(arguments))}, **operator(arguments)}
        self._watched: list[bytes] = []

    async def run(self, stage: Sequence[bytes]) -> str | None:
        """Retry these jobs, and wait until they have ended. Return the reason to stop, if there is one."""
        async with recorded(CallOnce(self._broker), "retry", **self._act) as doing:
            problem = await self._retry(stage, doing)
            doing.stopped = problem or ""
        return problem or await self._until_ended()

    async def _retry(self, stage: Sequence[bytes], doing: ActionProgress) -> str | None:
        size = AT_ONCE if self._rate is None else max(1, min(AT_ONCE, int(self._rate)))
        for begin in range(0, len(stage), size):
            portion, began = stage[begin : begin + size], time.monotonic()
            answers = await apply(CallOnce(self._broker), "retry", portion)
            self._watched += [job_id for job_id, answer in zip(portion, answers, strict=True) if answer == CHANGED]
            done = ActionResult.of(answers)
            self.done += done
            doing.affected += done.changed
            if (problem := await self._look()) is not None:
                return problem
            if self._rate is not None:
                await asyncio.sleep(max(0.0, len(portion) / self._rate - (time.monotonic() - began)))
        return None

    async def _until_ended(self) -> str | None:
        give_up_at = time.monotonic() + self._wait
        while (problem := await self._look()) is None and self._watched:
            if time.monotonic() > give_up_at:
                number = len(self._watched)
                verb = "1 job has" if number == 1 else f"{number:,} jobs have"
                return f"{verb} not ended within {self._wait:g} s, for example {id_text(self._watched[0])}"
            await asyncio.sleep(LOOK_EVERY)
        return problem

    async def _look(self) -> str | None:
        """Return what has failed again. Jobs that have ended otherwise are not watched any longer. Those that have not ended are looked at
        again after the others."""
        left, next_ones = list[bytes](), self._watched[:MOST_LOOKED_AT]
        for begin in range(0, len(next_ones), AT_ONCE):
            ids = next_ones[begin : begin + AT_ONCE]
            for job_id, record in zip(ids, await self._broker.read(ids), strict=True):
                if record is not None and _has_failed(record):
                    error = record.errors[-1] if record.errors else None
                    why = record.reason or (f"{error.type}: {error.message}" if error else "")
                    return f"{id_text(job_id)} failed again: {message(why)}"
                if record is not None and not record.status.is_ended:
                    left.append(job_id)
        self._watched = self._watched[MOST_LOOKED_AT:] + left
        return None


def _has_failed(record: Record) -> bool:
    """Return True if a run has failed since the retry, which cleared the counters. The job may be waiting for its next attempt."""
    return record.status is Status.FAILED or record.failures > 0 or record.crashes > 0
