"""`taskflow retry | cancel | purge | pause | resume`: changes the jobs and queues in a store."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable

from taskflow.app.app import App
from taskflow.app.audit_log import recorded, selection
from taskflow.app.bulk_actions import ASKED, CHANGED, DEFAULTS, UNKNOWN, ActionResult, CallOnce, act, apply, check_view, count, foresee
from taskflow.broker.console import Redone, View
from taskflow.broker.protocol import Broker
from taskflow.cli.action_report import ActionReport, operator
from taskflow.cli.exit_codes import Exit
from taskflow.cli.interrupts import raising
from taskflow.cli.job_filter import all_or_filters, filter_of, ids_of, ids_or_filters, is_known_queue, note_unknown_job, suggestion
from taskflow.cli.json_text import print_json
from taskflow.cli.progress_bar import Bar, confirmed
from taskflow.cli.store import existing_broker, with_store
from taskflow.model.envelope import check_queue
from taskflow.model.errors import BrokerError, ConfigurationError
from taskflow.model.ids import id_text, key_digest
from taskflow.model.printable import one_line


def run(arguments: argparse.Namespace) -> int:
    with raising(signal.SIGTERM, signal.SIGHUP):  # so that the audit log gets what was done until then
        return with_store(arguments, _act)


async def _act(app: App, arguments: argparse.Namespace) -> int:
    if arguments.command in ("pause", "resume"):
        return await _pause(app.broker(), arguments)
    ids_or_filters(arguments)
    if arguments.command == "retry" and (staged := _staged(arguments)) is not None:
        return await staged(app, arguments)
    if arguments.ids:
        return await _on_ids(app, arguments)
    all_or_filters(arguments)
    return await _on_filtered(app, arguments)


def _staged(arguments: argparse.Namespace) -> Callable[[App, argparse.Namespace], Awaitable[int]] | None:
    """Return the command for a group of failures, or None without `--group`, which the options of stages need."""
    if arguments.group is None:
        given = {"--canary": arguments.canary, "--then": arguments.then, "--rate": arguments.rate}
        if flags := [flag for flag, value in given.items() if value]:
            raise ConfigurationError(f"{flags[0]} needs --group: `taskflow failures` lists the groups")
        return None
    if arguments.ids or arguments.all:
        raise ConfigurationError("retry takes --group, ids or --all: leave out all but one")
    if arguments.status:
        raise ConfigurationError("retry --group takes no --status: its jobs have failed")
    from taskflow.cli.staged_retry import retry_group

    return retry_group


async def _pause(broker: Broker, arguments: argparse.Namespace) -> int:
    """Pause or resume queues, and leave those that are so already. A queue may be paused before its first job, but an unknown name
    is usually a typo, so the output says that it is unknown."""
    verb, console = arguments.command, broker.console
    try:
        names = list(dict.fromkeys(check_queue(name) for name in arguments.names))
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    known = {queue.name: queue.is_paused for queue in await console.queues()}
    changing = [name for name in names if known.get(name, False) != (verb == "pause")]
    async with recorded(CallOnce(broker), verb, names=changing, **operator(arguments)) as doing:
        for name in names:
            if name in changing:
                await (console.pause(name) if verb == "pause" else console.resume(name))
                doing.affected += 1
                text = f"{verb}d {name}" + ("" if name in known else ", in which no job has ever been")
            else:
                text = f"{name} is paused already" if verb == "pause" else f"{name} is not paused"
            if not arguments.json:
                print(text + ("" if name in known else suggestion(name, known)))
    if arguments.json:
        print_json({"act": verb, "queues": [{"name": name, "known": name in known} for name in names]})
    return Exit.OK


async def _on_ids(app: App, arguments: argparse.Namespace) -> int:
    ids, action = ids_of(arguments.ids), arguments.command
    broker = await existing_broker(app)
    if arguments.dry_run:
        return await _foresee_ids(broker, ids, arguments)
    async with recorded(CallOnce(broker), action, names=[*map(id_text, ids)], **operator(arguments)) as doing:
        answers = await apply(CallOnce(broker), action, ids)
        done = ActionResult.of(answers)
        doing.affected = done.affected
    for job_id, answer in zip(ids, answers, strict=True):
        if answer not in (CHANGED, ASKED):
            holder = await _holder_of_key(broker, job_id) if answer == Redone.KEY_TAKEN.value else ""
            print(f"taskflow: {id_text(job_id)} was not {_past(action)}: {answer}{holder}", file=sys.stderr)
    if arguments.json:
        _report(arguments, ids, answers, len(ids), done)
    else:
        _print_done(action, done)
    return Exit.NOT_FOUND if UNKNOWN in done.refused else Exit.FAILED if done.refused else Exit.OK


async def _foresee_ids(broker: Broker, ids: list[bytes], arguments: argparse.Namespace) -> int:
    action, answers = arguments.command, [foresee(arguments.command, record, by_id=True) for record in await broker.read(ids)]
    found = sum(answer in (CHANGED, ASKED) for answer in answers)
    if arguments.json:
        _report(arguments, ids, answers, found)
    else:
        print(f"would {action} {found:,}")
    return Exit.NOT_FOUND if UNKNOWN in answers else Exit.OK if found == len(ids) else Exit.FAILED


def _report(arguments: argparse.Namespace, ids: list[bytes], answers: list[str], matching: int, done: ActionResult | None = None) -> None:
    report = ActionReport(act=arguments.command, dry_run=arguments.dry_run, matching=matching)
    report.jobs = [{"id": id_text(job_id), "answer": answer} for job_id, answer in zip(ids, answers, strict=True)]
    if done is not None:
        report.add(done)
    report.print()


async def _holder_of_key(broker: Broker, job_id: bytes) -> str:
    """Return words that name the live job with this job's key, or nothing if it is not known."""
    [record] = await broker.read([job_id])
    if record is None or record.key_text is None:
        return ""
    holders = await broker.holders([key_digest(queue, record.job, record.key_text) for queue in (record.queue, "")])
    return next((f": {id_text(holder)} has {one_line(record.key_text)}" for holder in holders if holder is not None), "")


async def _on_filtered(app: App, arguments: argparse.Namespace) -> int:
    action, job_filter = arguments.command, _checked_filter(arguments)
    broker = await existing_broker(app)
    if not await is_known_queue(broker.console, job_filter.queue):
        return Exit.NOT_FOUND
    call = CallOnce(broker)
    total = await count(call, job_filter)
    if not total:
        await note_unknown_job(broker.console, job_filter.job)
    if arguments.dry_run:
        if arguments.json:
            _report(arguments, [], [], total)
        else:
            print(f"would {action} {total:,}")
        return Exit.OK
    if action != "retry" and not confirmed(f"{action} {total:,} jobs?", arguments):
        return Exit.FAILED
    bar, done = None if arguments.json else Bar(total), ActionResult()
    try:
        async with recorded(call, action, which=selection(job_filter), **operator(arguments)) as doing:
            async for so_far in act(call, action, job_filter):
                done, doing.affected = so_far, so_far.affected
                if bar is not None:
                    bar.show(min(total, done.seen))
    except (KeyboardInterrupt, asyncio.CancelledError, BrokerError):
        if bar is not None:
            bar.close()
        print(f"taskflow: interrupted: {_past(action)} {done.affected:,} of {total:,} or a few more", file=sys.stderr)
        raise
    for why, number in done.refused.items():
        print(f"taskflow: {number:,} were not {_past(action)}: {why}", file=sys.stderr)
    if bar is None:
        _report(arguments, [], [], total, done)
    else:
        bar.close()
        _print_done(action, done)
    return Exit.FAILED if Redone.KEY_TAKEN.value in done.refused else Exit.OK


def _print_done(command: str, done: ActionResult) -> None:
    asked = f", asked {done.asked:,} running to stop" if done.asked else ""
    print(f"{_past(command)} {done.changed:,}{asked}")


def _checked_filter(arguments: argparse.Namespace) -> View:
    command = arguments.command
    job_filter = filter_of(arguments, DEFAULTS[command])
    try:
        check_view(command, job_filter)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    return job_filter


def _past(command: str) -> str:
    return {"retry": "retried", "cancel": "cancelled", "purge": "purged"}[command]
