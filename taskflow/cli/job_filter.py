"""Creates a `View` from the options that several commands share, and checks ids and filters."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from taskflow.app.bulk_actions import check_error, header_of
from taskflow.broker.console import Console, View
from taskflow.broker.paging import AT_ONCE
from taskflow.model.envelope import check_job_name, check_queue
from taskflow.model.errors import ConfigurationError
from taskflow.model.ids import parse_id
from taskflow.model.job_schema import check_tag
from taskflow.model.printable import nearest, one_line
from taskflow.model.record import Status

T = TypeVar("T")

FILTERS: Final = ("queue", "job", "tag", "status", "error", "header", "created_before", "ended_before", "poison")


def filter_of(arguments: argparse.Namespace, default: Iterable[Status] = ()) -> View:
    statuses = [Status(status) for status in arguments.status] if arguments.status else default
    return View(
        queue=queue_of(arguments.queue),
        job=_checked("--job", check_job_name, arguments.job),
        tag=_checked("--tag", check_tag, arguments.tag),
        statuses=tuple(sorted(set(statuses))),
        error=_checked("--error", check_error, getattr(arguments, "error", None)),
        header=_checked("--header", header_of, getattr(arguments, "header", None)),
        created_before=getattr(arguments, "created_before", None),
        ended_before=arguments.ended_before,
        poison=arguments.poison,
    )


def queue_of(name: str | None) -> str | None:
    return _checked("--queue", check_queue, name)


def _checked(flag: str, check: Callable[[str], T], value: str | None) -> T | None:
    try:
        return None if value is None else check(value)
    except ValueError as error:
        raise ConfigurationError(f"{flag}: {error}") from error


def ids_or_filters(arguments: argparse.Namespace) -> None:
    """Raise ConfigurationError if both ids and filters are given, because one of them would be silently ignored."""
    if arguments.ids and (flags := [*_filters(arguments), *["--all"] * arguments.all]):
        raise ConfigurationError(f"{arguments.command} takes ids or filters, not both: leave out {flags[0]}, or the ids")


def all_or_filters(arguments: argparse.Namespace) -> None:
    """Require a filter, or `--all` for all jobs, so that a forgotten filter or an empty shell variable does not affect every job."""
    filters = _filters(arguments)
    if filters and arguments.all:
        raise ConfigurationError(f"{arguments.command} takes filters or --all, not both: leave out {filters[0]}, or --all")
    if not filters and not arguments.all:
        raise ConfigurationError(f"{arguments.command} needs to know which jobs: ids, filters or --all")


def _filters(arguments: argparse.Namespace) -> list[str]:
    """Return the filter flags that were given on the command line."""
    given = {name: getattr(arguments, name) for name in FILTERS}
    return [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None and value is not False]


def ids_of(texts: Iterable[str]) -> list[bytes]:
    """Parse ids, dropping duplicates. Raises ConfigurationError for text that is not an id."""
    try:
        return list(dict.fromkeys(parse_id(text) for text in texts))
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


async def is_known_queue(console: Console, name: str | None) -> bool:
    """Return True if the store knows the queue, or if `name` is None. Otherwise print
    a message with a suggestion to stderr, and return False."""
    if name is None:
        return True
    known = [queue.name for queue in await console.queues()]
    if name in known:
        return True
    print(f"taskflow: no job has ever been in queue {name!r}{suggestion(name, known)}", file=sys.stderr)
    return False


async def note_unknown_job(console: Console, name: str | None) -> None:
    """If nothing was found for a job's name, and neither a running worker nor the first jobs of the store have that
    name, print a message to stderr, with a suggestion. Stores have no index of names."""
    if name is None:
        return
    known = {job for worker in await console.workers() for job in worker.session.jobs}
    found = await console.page(View(job=name), limit=1)
    if name in known or found.records or (found.stopped_early and not known):
        return
    known.update(record.job for record in (await console.page(View(), limit=AT_ONCE)).records)
    where = f"among the {found.examined:,} that were looked at" if found.stopped_early else "in the store"
    print(f"taskflow: no job called {name!r} is {where}, and no running worker declares one{suggestion(name, known)}", file=sys.stderr)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return words that name the most similar known name, or nothing if none is similar."""
    near = nearest(name, known)
    return f"; did you mean {one_line(near)}?" if near else ""
