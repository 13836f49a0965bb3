"""`taskflow limits`: lists limits, and sets their numbers."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from taskflow.app.app import App, default_app
from taskflow.app.limits import WrongLimit, limits
from taskflow.broker.admin import MAX_LISTED, LimitInfo
from taskflow.cli.command import existing_broker, on_store, operator, with_store
from taskflow.cli.modules import import_targets
from taskflow.cli.terminal import room, show, warn
from taskflow.model.errors import ConfigurationError
from taskflow.model.printable import INDENT, MAX_SHOWN, one_line, span, whole

NONE: Final = "no limit holds up a job, and no number was set"


@on_store
async def list_limits(app: App, arguments: argparse.Namespace) -> int:
    broker = await existing_broker(app)
    lists = [await broker.admin.limits(name) for name in dict.fromkeys(arguments.names) or (None,)]
    found = sorted(itertools.chain.from_iterable(lists), key=lambda info: -info.waiting)
    if any(len(each) == MAX_LISTED for each in lists):
        advice = "" if arguments.names else ", even ones at which jobs wait: taskflow limits list NAME searches all"
        warn(f"these are {MAX_LISTED:,} keys, the maximum: there may be more{advice}")
    return show(arguments, map(msgspec.structs.asdict, found), _rows(found, is_detailed=bool(arguments.names)) if found else iter([NONE]))


def _rows(found: Sequence[LimitInfo], *, is_detailed: bool) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("LIMIT", "KEY", "NUMBER", "RUNNING", "WAITING", "NEXT")]
    for info in found:
        number = f"{info.n:,}{'' if info.per is None else f' in {span(info.per)}'}{' (set)' if info.is_set else ''}"
        waiting = f"{info.waiting:,}" if info.waiting < 1_000 else "1,000 or more"
        opens = f"in {span(info.opens_in)}" if info.opens_in else "now"
        held = (f"{info.running:,}", waiting, "") if info.per is None else ("", "", opens)
        rows.append((one_line(info.limit), one_line(info.key), number, held[0], held[1], held[2]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for place, row in enumerate(rows):
        yield one_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), room())
        if place:
            yield from _holders(found[place - 1], is_detailed=is_detailed)


def _holders(info: LimitInfo, *, is_detailed: bool) -> Iterator[str]:
    """Yield a line for each job that holds a slot. Unless the limit was named, yield at most three, and only if jobs are waiting."""
    for job in info.holders if is_detailed else info.holders[: 3 * bool(info.waiting)]:
        state = "running" if job.is_running else "ready"
        yield INDENT + one_line(f"{job.id}  {state}  {job.job}  (queue {job.queue})", room() - len(INDENT))


def set_limit(arguments: argparse.Namespace) -> int:
    if arguments.n != "declared" and whole(arguments.n) is None:
        raise ConfigurationError(f'N is {one_line(arguments.n, MAX_SHOWN)}: expected a whole number, or "declared"')
    default_app().flag(broker=arguments.broker)
    import_targets(arguments.modules)
    return with_store(_set, arguments)


async def _set(app: App, arguments: argparse.Namespace) -> int:
    await existing_broker(app)
    n = None if arguments.n == "declared" else whole(arguments.n)
    try:
        await limits.set(arguments.name, arguments.key, n, **operator(arguments))
    except ValueError as error:
        raise ConfigurationError(error.said if isinstance(error, WrongLimit) else str(error)) from None
    of = f" of {one_line(arguments.key)}" if arguments.key else ""
    document = {"action": "limits.set", "limit": arguments.name, "key": arguments.key, "n": n}
    return show(arguments, document, [f"{one_line(arguments.name)}{of}: {'the declared number' if n is None else f'{n:,}'}"])
