"""Opens the store for a command, and reads the options that several commands share: ids, filters and the operator."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

from taskflow.app.app import App, default_app
from taskflow.app.bulk_actions import CHECKS, this_operator
from taskflow.broker.admin import Admin, View
from taskflow.broker.migrations import Migrating
from taskflow.broker.paging import AT_ONCE
from taskflow.broker.protocol import Broker
from taskflow.cli.exit_codes import Exit
from taskflow.cli.terminal import print_json, warn
from taskflow.model.errors import BrokerRefused, ConfigurationError
from taskflow.model.ids import id_text, parse_id
from taskflow.model.printable import nearest, one_line
from taskflow.model.record import Record, Status

FILTERS: Final = ("queue", "job", "tag", "status", "error", "header", "created_before", "ended_before", "poison")

_MISSING: Final = "does not exist: the first job creates it, or `taskflow migrate` does; if the jobs are elsewhere, use --broker"

Work = Callable[[App, argparse.Namespace], Awaitable[int]]


def on_store(work: Work) -> partial[int]:
    """Turn an async function into a command, which opens the store that the options name, and closes the store at the end."""
    return partial(with_store, work)


def with_store(work: Work, arguments: argparse.Namespace) -> int:
    app = default_app()
    app.flag(broker=arguments.broker)

    async def run() -> int:
        try:
            return await work(app, arguments)
        finally:
            await app.close()

    return asyncio.run(run())


async def existing_broker(app: App) -> Broker:
    """Return the broker. If its file, schema or tables do not exist, raises BrokerRefused instead of creating them."""
    broker = app.broker()  # raises for a wrong URL
    if (file := _missing_file(urlsplit(app.broker_url()))) is not None:
        raise BrokerRefused(f"{file} {_MISSING}")
    if isinstance(broker, Migrating) and not (found := await broker.pending()).version:
        raise BrokerRefused(f"{found.place} {_MISSING}")
    return broker


def _missing_file(url: SplitResult) -> str | None:
    """Return the SQLite file of the URL if it does not exist although its folder does, otherwise None."""
    file = os.path.realpath(unquote(url.path.removeprefix("/")))
    return file if url.scheme == "sqlite" and not os.path.exists(file) and os.path.isdir(os.path.dirname(file)) else None


def operator(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the operator and the reason, as keyword arguments for functions that record actions."""
    return {"by": arguments.by or this_operator(), "reason": arguments.reason}


def ids_of(texts: Iterable[str]) -> list[bytes]:
    """Parse ids, dropping duplicates. Raises ConfigurationError if one is invalid."""
    with reporting(ValueError):
        return list(dict.fromkeys(parse_id(text) for text in texts))


@contextlib.contextmanager
def reporting(*errors: type[Exception], prefix: str = "") -> Iterator[None]:
    """Turn these errors into a ConfigurationError with the same message, after `prefix`."""
    try:
        yield
    except errors as error:
        raise ConfigurationError(f"{prefix}{error}") from error


def filter_of(arguments: argparse.Namespace, default: Iterable[Status] = ()) -> View:
    given = {name: checked(name, getattr(arguments, name, None)) for name in FILTERS}
    statuses = map(Status, given.pop("status") or default)
    return View(statuses=tuple(sorted(set(statuses))), **given)


def checked(name: str, value: Any) -> Any:
    """Return the value of the option with this name, checked and converted. Raises ConfigurationError, naming the option."""
    with reporting(ValueError, prefix=f"--{name}: "):
        return value if value is None or name not in CHECKS else CHECKS[name](value)


def given_filters(arguments: argparse.Namespace) -> list[str]:
    """Return the filter flags that were given. Raises ConfigurationError if ids are given with filters or `--all`."""
    given = {name: getattr(arguments, name) for name in FILTERS}
    flags = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None and value is not False]
    if arguments.ids and (others := [*flags, *["--all"] * arguments.all]):
        raise ConfigurationError(f"{arguments.command} takes ids or filters, not both: leave out {others[0]}, or the ids")
    return flags


async def show_each(
    broker: Broker,
    arguments: argparse.Namespace,
    ids: Sequence[bytes],
    records: Sequence[Record | None],
    document: Callable[[Record], object],
    lines: Callable[[Record], Iterable[str]],
) -> int:
    """Show each job as JSON or as lines, with empty lines between them. An unknown job is shown as null, or named on stderr, and the exit
    code is 4. A flow is not a job, but the message says where it is shown."""
    if arguments.json:
        print_json([None if record is None else document(record) for record in records])
    else:
        for number, (job_id, record) in enumerate(zip(ids, records, strict=True)):
            if number:
                print()
            if record is None:
                is_flow = await broker.admin.flow(job_id, first=0, limit=1)
                shown = f"`taskflow flows {id_text(job_id)}` shows its jobs"
                warn(f"{id_text(job_id)} is a flow: {shown}" if is_flow else f"job {id_text(job_id)} is unknown or no longer kept")
            else:
                print(*lines(record), sep="\n")
    return Exit.NOT_FOUND if None in records else Exit.OK


async def is_known_queue(admin: Admin, name: str | None) -> bool:
    """Return True if the store knows the queue, or if `name` is None. Otherwise print a message to stderr and return False."""
    known = [] if name is None else [queue.name for queue in await admin.queues()]
    if name is None or name in known:
        return True
    warn(f"queue {name!r} has never had a job{suggestion(name, known)}")
    return False


async def report_unknown_job(admin: Admin, name: str | None) -> None:
    """Print a message if no running worker declares a job with this name, and none of the jobs that the store reads has it."""
    if name is None:
        return
    known = {job for worker in await admin.workers() for job in worker.session.jobs}
    found = await admin.page(View(job=name), limit=1)
    if name in known or found.records or (found.stopped_early and not known):
        return
    known.update(record.job for record in (await admin.page(View(), limit=AT_ONCE)).records)
    where = f"among the {found.examined:,} that were read" if found.stopped_early else "in the store"
    warn(f"no job called {name!r} is {where}, and no running worker declares one{suggestion(name, known)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a phrase that suggests the most similar known name, or "" if none is similar."""
    near = nearest(name, known)
    return f"; did you mean {one_line(near)}?" if near else ""
