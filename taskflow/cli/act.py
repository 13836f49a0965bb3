"""`taskflow retry | cancel | purge | pause | resume`: what an operator does to a store."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Final

from taskflow.app.app import App
from taskflow.app.current import default_app
from taskflow.broker.console import Console, JobFilter, Redone
from taskflow.broker.protocol import Broker
from taskflow.cli.exits import Exit
from taskflow.cli.look import a_filter, ids_of
from taskflow.cli.progress import Bar
from taskflow.model.envelope import check_queue
from taskflow.model.errors import ConfigurationError
from taskflow.model.ids import id_text
from taskflow.model.record import ENDED, LIVE, Status

PAGE: Final = 500
DEFAULTS: Final = {"retry": (Status.FAILED,), "cancel": tuple(sorted(LIVE)), "purge": tuple(sorted(ENDED))}


def run(arguments: argparse.Namespace) -> int:
    app = default_app()
    app.flag(broker=arguments.broker)
    return asyncio.run(_act(app, arguments))


async def _act(app: App, arguments: argparse.Namespace) -> int:
    try:
        if arguments.command in ("pause", "resume"):
            return await _pause(app.broker().console, arguments)
        if arguments.ids:
            return await _on_ids(app.broker(), arguments)
        return await _on_chosen(app.broker(), arguments)
    finally:
        await app.close()


async def _pause(console: Console, arguments: argparse.Namespace) -> int:
    for name in arguments.names:
        try:
            check_queue(name)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        await (console.pause(name) if arguments.command == "pause" else console.resume(name))
        print(f"{arguments.command}d {name}")
    return Exit.OK


async def _on_ids(broker: Broker, arguments: argparse.Namespace) -> int:
    ids = ids_of(arguments.ids)
    if arguments.dry_run:
        found = sum(record is not None for record in await broker.read(ids))
        print(f"would {arguments.command} {found:,}")
        return Exit.OK if found == len(ids) else Exit.NOT_FOUND
    done, unknown = await _apply(broker, arguments.command, ids, is_told=True)
    print(f"{_past(arguments.command)} {done:,}")
    return Exit.NOT_FOUND if unknown else Exit.OK if done == len(ids) else Exit.FAILED


async def _on_chosen(broker: Broker, arguments: argparse.Namespace) -> int:
    chosen = a_filter(arguments, DEFAULTS[arguments.command])
    total = await _count(broker.console, chosen)
    if arguments.dry_run:
        print(f"would {arguments.command} {total:,}")
        return Exit.OK
    bar, done, seen = Bar(total), 0, 0
    if arguments.command == "purge":
        while (dropped := await broker.console.purge(chosen, limit=PAGE)) > 0:
            done += dropped
            bar.show(min(done, total))
    else:
        async for ids in _pages(broker.console, chosen):
            done += (await _apply(broker, arguments.command, ids, is_told=False))[0]
            seen += len(ids)
            bar.show(min(seen, total))
    bar.close()
    print(f"{_past(arguments.command)} {done:,}")
    return Exit.OK


async def _apply(broker: Broker, command: str, ids: Sequence[bytes], *, is_told: bool) -> tuple[int, int]:
    """How many it was done to, and how many are unknown; with `is_told` each refusal is a line on stderr."""
    if command == "retry":
        answers = await broker.console.retry(ids)
        refused = {
            job_id: f"was not retried: {answer.value}" for job_id, answer in zip(ids, answers, strict=True) if answer is not Redone.OK
        }
        unknown = sum(answer is Redone.UNKNOWN for answer in answers)
    else:
        found = await broker.cancel(ids)
        refused = {job_id: _uncancelled(status) for job_id, status in zip(ids, found, strict=True) if status is None or status.is_ended}
        unknown = sum(status is None for status in found)
    for job_id, why in refused.items() if is_told else ():
        print(f"taskflow: {id_text(job_id)} {why}", file=sys.stderr)
    return len(ids) - len(refused), unknown


def _uncancelled(status: Status | None) -> str:
    return "is unknown, or no longer kept" if status is None else f"was not cancelled: it has {status} already"


async def _count(console: Console, chosen: JobFilter) -> int:
    return sum([len(ids) async for ids in _pages(console, chosen)])


async def _pages(console: Console, chosen: JobFilter) -> AsyncIterator[list[bytes]]:
    """Page by page from the newest down: what is acted upon may leave the choice without shifting the pages."""
    before: bytes | None = None
    while records := await console.browse(chosen, before=before, limit=PAGE):
        before = records[-1].id
        yield [record.id for record in records]


def _past(command: str) -> str:
    return {"retry": "retried", "cancel": "cancelled", "purge": "purged"}[command]
