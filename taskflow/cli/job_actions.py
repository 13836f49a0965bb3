"""`taskflow retry | run-now | cancel | purge | pause | resume`: changes the jobs and queues in a store."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from taskflow.app import bulk_actions
from taskflow.app.app import App
from taskflow.app.bulk_actions import ASKED, CHANGED, UNKNOWN, ActionResult, CallBrokerOnce, amend_jobs, recorded, selection
from taskflow.app.flow_tree import flow_of, to_retry
from taskflow.app.operate import group_ids
from taskflow.app.rollout import Rollout, stages_of
from taskflow.broker.admin import Redone
from taskflow.broker.protocol import Broker
from taskflow.cli import command
from taskflow.cli.command import existing_broker, filter_of, operator
from taskflow.cli.exit_codes import Exit
from taskflow.cli.startup import raising
from taskflow.cli.terminal import Bar, confirmed, print_now, show, warn
from taskflow.model.envelope import check_job_name, check_queue
from taskflow.model.errors import BrokerError, ConfigurationError
from taskflow.model.ids import id_text, key_digest
from taskflow.model.printable import one_line

AT_ONCE: Final = 100
PAST: Final = {"retry": "retried", "run-now": "made ready", "cancel": "cancelled", "purge": "purged"}
WOULD: Final = {"run-now": "make ready"}


class Report(msgspec.Struct, kw_only=True):
    """The JSON output of `retry`, `run-now`, `cancel` and `purge`."""

    action: str
    dry_run: bool
    matching: int  # the number of jobs that match or were named; in a dry run, named jobs count only if they can be changed
    changed: int = 0
    asked: int = 0  # the number of running jobs that were asked to stop
    refused: dict[str, int] = {}  # the number of unchanged jobs, by reason
    jobs: list[dict[str, str]] = []  # the result for each job that was named
    stages: list[dict[str, int]] = []  # the stages of `retry --group`
    stopped: str | None = None  # why `retry --group` has stopped early

    def add(self, done: ActionResult) -> None:
        self.changed, self.asked, self.refused = done.changed, done.asked, done.refused

    def print(self, arguments: argparse.Namespace, *lines: str) -> None:
        for why, number in self.refused.items() if not self.jobs else ():  # named jobs have been reported one by one
            warn(f"{number:,} were not {PAST[self.action]}: {why}")
        show(arguments, self, lines)

    def print_done(self, arguments: argparse.Namespace) -> None:
        self.print(arguments, f"{PAST[self.action]} {self.changed:,}" + (f", asked {self.asked:,} running to stop" if self.asked else ""))

    def print_dry(self, arguments: argparse.Namespace, stages: str = "") -> None:
        self.print(arguments, f"would {WOULD.get(self.action, self.action)} {self.matching:,}{stages}")


def act(arguments: argparse.Namespace) -> int:
    with raising(signal.SIGTERM, signal.SIGHUP):  # so that the audit log records what was done before the signal
        return command.with_store(_pause if arguments.command in ("pause", "resume") else _act, arguments)


async def _act(app: App, arguments: argparse.Namespace) -> int:
    action, filters = arguments.command, command.given_filters(arguments)
    if getattr(arguments, "flow", None) is not None:
        if given := [*arguments.ids, *filters, *["--all"] * arguments.all]:
            raise ConfigurationError(f"{action} takes --flow, ids, filters or --all: leave out {given[0]}, or --flow")
        return await _on_flow(app, arguments)
    if getattr(arguments, "group", None) is not None:
        if arguments.ids or arguments.all:
            raise ConfigurationError("retry takes --group, ids or --all: leave out all but one")
        if arguments.status:
            raise ConfigurationError("retry --group takes no --status: a group contains only failed jobs")
        return await _retry_group(app, arguments)
    if flags := [f"--{name}" for name in ("canary", "then", "rate") if getattr(arguments, name, None)]:
        raise ConfigurationError(f"{flags[0]} needs --group: `taskflow failures` lists the groups")
    if arguments.ids:
        return await _on_ids(app, arguments)
    if filters and arguments.all:
        raise ConfigurationError(f"{action} takes filters or --all, not both: leave out {filters[0]}, or --all")
    if not filters and not arguments.all:  # a forgotten filter or an empty shell variable must not affect every job
        raise ConfigurationError(f"{action} needs to know which jobs: pass ids, filters or --all")
    return await _on_filtered(app, arguments)


async def _on_ids(app: App, arguments: argparse.Namespace) -> int:
    ids, action = command.ids_of(arguments.ids), arguments.command
    broker = await existing_broker(app)
    report = Report(action=action, dry_run=arguments.dry_run, matching=len(ids))
    if arguments.dry_run:
        answers = [bulk_actions.foresee(action, record, by_id=True) for record in await broker.read(ids)]
        report.matching = sum(answer in (CHANGED, ASKED) for answer in answers)
    else:
        call, answers = CallBrokerOnce(broker), list[str]()
        is_large = len(ids) > bulk_actions.PAGE  # as with "retry --flow", which passes the ids of all jobs of the flow
        bar = Bar(len(ids)) if is_large and not arguments.json else None
        with _showing_progress(report, bar) if is_large else contextlib.nullcontext(lambda _: None) as show_done:
            async with recorded(call, action, names=[*map(id_text, ids)], **operator(arguments)) as progress:
                async for answers in bulk_actions.apply_in_portions(call, action, ids):
                    report.add(done := ActionResult.of(answers))
                    progress.affected = done.affected
                    show_done(len(answers))
        for job_id, answer in zip(ids, answers, strict=True):
            if answer not in (CHANGED, ASKED):
                holder = await _holder_of_key(broker, job_id) if answer == Redone.KEY_TAKEN.value else ""
                warn(f"{id_text(job_id)} was not {PAST[action]}: {answer}{holder}")
    report.jobs = [{"id": id_text(job_id), "answer": answer} for job_id, answer in zip(ids, answers, strict=True)]
    (report.print_dry if arguments.dry_run else report.print_done)(arguments)
    return Exit.NOT_FOUND if UNKNOWN in answers else Exit.OK if {CHANGED, ASKED}.issuperset(answers) else Exit.FAILED


async def _on_flow(app: App, arguments: argparse.Namespace) -> int:
    """Cancel a flow as a whole, or retry its jobs that ended without success."""
    call = CallBrokerOnce(broker := await existing_broker(app))
    [named] = command.ids_of([arguments.flow])
    flow, records = await flow_of(call, named)
    if not records:
        warn(f"no flow or job of a flow has the id {id_text(named)}, or it is no longer kept")
        return Exit.NOT_FOUND
    if arguments.command == "retry":
        arguments.ids = [id_text(job_id) for job_id in to_retry(records)]
        return await _on_ids(app, arguments)
    report = Report(action="cancel", dry_run=arguments.dry_run, matching=sum(not record.status.is_ended for record in records))
    if arguments.dry_run:
        report.print_dry(arguments)
    elif not confirmed(f"cancel {report.matching:,} jobs?", arguments):
        return Exit.FAILED
    else:
        async with recorded(call, "cancel", which={"flow": id_text(flow)}, **operator(arguments)) as progress:
            report.changed = progress.affected = await broker.admin.cancel_flow(flow)
        report.print_done(arguments)
    return Exit.OK


async def _holder_of_key(broker: Broker, job_id: bytes) -> str:
    """Return a phrase that names the live job with this job's key, or "" if it isn't known."""
    [record] = await broker.read([job_id])
    if record is None or record.key_text is None:
        return ""
    holders = await broker.holders([key_digest(queue, record.job, record.key_text) for queue in (record.queue, "")])
    return next((f": {id_text(holder)} has {one_line(record.key_text)}" for holder in holders if holder is not None), "")


async def _on_filtered(app: App, arguments: argparse.Namespace) -> int:
    action = arguments.command
    view = filter_of(arguments, bulk_actions.DEFAULTS[action])
    with command.reporting(ValueError):
        bulk_actions.check_view(action, view)
    broker = await existing_broker(app)
    if not await command.is_known_queue(broker.admin, view.queue):
        return Exit.NOT_FOUND
    call = CallBrokerOnce(broker)
    report = Report(action=action, dry_run=arguments.dry_run, matching=(total := await bulk_actions.count(call, view)))
    if not total:
        await command.report_unknown_job(broker.admin, view.job)
    if arguments.dry_run:
        report.print_dry(arguments)
        return Exit.OK
    if action in ("cancel", "purge") and not confirmed(f"{action} {total:,} jobs?", arguments):
        return Exit.FAILED
    with _showing_progress(report, None if arguments.json else Bar(total)) as show_done:
        async with recorded(call, action, which=selection(view), **operator(arguments)) as progress:
            async for done in bulk_actions.act(call, action, view):
                report.add(done)
                progress.affected = done.affected
                show_done(min(total, done.seen))
    report.print_done(arguments)
    return Exit.FAILED if Redone.KEY_TAKEN.value in report.refused else Exit.OK


@contextlib.contextmanager
def _showing_progress(report: Report, bar: Bar | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows how many jobs are done."""
    action, total = PAST[report.action], report.matching
    with _explaining_interrupts(lambda: f"{action} {report.changed + report.asked:,} of {total:,} or a few more"):
        try:
            yield (lambda _: None) if bar is None else bar.show
        finally:
            if bar is not None:
                bar.close()


@contextlib.contextmanager
def _explaining_interrupts(words: Callable[[], str]) -> Iterator[None]:
    """If the block is interrupted, or the store fails, print what has been done so far."""
    try:
        yield
    except (KeyboardInterrupt, asyncio.CancelledError, BrokerError):
        warn(f"interrupted: {words()}")
        raise


async def _retry_group(app: App, arguments: argparse.Namespace) -> int:
    """Retry a group of failed jobs in stages. If a job fails again or does not end in time, stop there and return FAILED."""
    broker = await existing_broker(app)
    ids = await group_ids(broker.admin, filter_of(arguments), arguments.group)
    if not ids:
        warn(f"no failed job is in group {arguments.group}: `taskflow failures` lists the groups")
        return Exit.NOT_FOUND
    report, sizes = Report(action="retry", dry_run=arguments.dry_run, matching=len(ids)), (arguments.canary, *arguments.then)
    if arguments.dry_run:
        report.stages = [{"jobs": len(stage), "changed": 0} for stage in stages_of(ids, sizes)]
        report.print_dry(arguments, " in stages of " + ", ".join(f"{stage['jobs']:,}" for stage in report.stages))
        return Exit.OK
    if not any(worker.is_alive for worker in await broker.admin.workers()):
        warn("no worker is running: the jobs wait until one starts")
    which, how = {"group": arguments.group, **selection(filter_of(arguments))}, operator(arguments)
    rollout = Rollout(CallBrokerOnce(broker), len(ids), which, wait=arguments.wait, rate=arguments.rate, **how)
    with _explaining_interrupts(lambda: f"retried {rollout.done.changed:,}; {rollout.left_alone}"):
        for stage in stages_of(ids, sizes):
            before = rollout.done.changed
            report.stopped = await rollout.run(stage)
            report.add(rollout.done)
            report.stages = [*report.stages, {"jobs": len(stage), "changed": report.changed - before}]
            if report.stopped is not None:
                warn(f"stopped: {report.stopped}; {rollout.left_alone}")
                break
            if not arguments.json:
                print_now(f"retried {report.changed:,} of {len(ids):,}: none has failed again")
    report.print(arguments)
    return Exit.FAILED if report.stopped is not None or report.refused else Exit.OK


async def _pause(app: App, arguments: argparse.Namespace) -> int:
    """Pause or resume queues and jobs. An unknown one is paused too, before its first job, but with a hint in case it's a typo."""
    action, broker = arguments.command, app.broker()
    with command.reporting(ValueError):
        names = list(dict.fromkeys(check_queue(name) for name in arguments.names))
        jobs = list(dict.fromkeys(check_job_name(name) for name in arguments.job))
        if not names and not jobs:
            raise ValueError(f"{action} needs a queue, or a job as in `taskflow {action} --job NAME`")
    await _pause_jobs(broker, jobs, arguments)
    known = {queue.name: queue.is_paused for queue in await broker.admin.queues()}
    changing = [name for name in names if known.get(name, False) != (action == "pause")]
    async with recorded(CallBrokerOnce(broker), action, names=changing, **operator(arguments)) as progress:
        for name in names:
            if name in changing:
                await (broker.admin.pause(name) if action == "pause" else broker.admin.resume(name))
                progress.affected += 1
                text = f"{action}d {name}" + ("" if name in known else ", which has never had a job")
            else:
                text = f"{name} is paused already" if action == "pause" else f"{name} is not paused"
            if not arguments.json:
                print(text + ("" if name in known else command.suggestion(name, known)))
    queues = [{"name": name, "known": name in known} for name in names]
    return show(arguments, {"action": action, "queues": queues, "jobs": jobs}, ())


async def _pause_jobs(broker: Broker, names: Sequence[str], arguments: argparse.Namespace) -> None:
    changed = await amend_jobs(CallBrokerOnce(broker), arguments.command, names, **operator(arguments)) if names else []
    for name in names if not arguments.json else ():
        is_not = "is paused already" if arguments.command == "pause" else "is not paused"
        print(f"{arguments.command}d job {one_line(name)}" if name in changed else f"job {one_line(name)} {is_not}")
        if arguments.command == "pause" or name not in changed:
            await command.report_unknown_job(broker.admin, name)
