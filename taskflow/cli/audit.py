"""`taskflow audit`: lists what operators did."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from taskflow.app.app import App
from taskflow.cli.exit_codes import Exit
from taskflow.cli.json_text import print_json
from taskflow.cli.store import existing_broker, with_store
from taskflow.cli.terminal import room
from taskflow.cli.time_format import span
from taskflow.model.audit import Act, ActRecord
from taskflow.model.printable import INDENT, one_line
from taskflow.model.stored_values import LATEST

MOST: Final = 10_000
"""The maximum number of acts in one list, which is how many a store keeps."""


def run(arguments: argparse.Namespace) -> int:
    return with_store(arguments, _audit)


async def _audit(app: App, arguments: argparse.Namespace) -> int:
    before = None if arguments.before is None else min(arguments.before, LATEST)
    records = await (await existing_broker(app)).console.acts(before=before, limit=min(arguments.limit, MOST))
    if arguments.json:
        print_json([_json(record) for record in records])
        return Exit.OK
    if not records:
        print("no act of an operator is recorded", file=sys.stderr)
    for line in _table(records):
        print(line)
    if len(records) == arguments.limit:
        print(f"there may be more: --before {records[-1].number}", file=sys.stderr)
    return Exit.OK


def _table(records: list[ActRecord]) -> Iterator[str]:
    """Yield a header, and lines for each act: when, how many it affected, what and who. The reason has a separate line."""
    if not records:
        return
    now, width = datetime.now(UTC), room()
    verbs = max(len("ACT"), *(len(one_line(record.act.verb, 24)) for record in records))
    yield f"{'AGO':>6}  {'ACT':{verbs}}  {'COUNT':>9}  BY, WHAT"
    for record in records:
        act = record.act
        ago = span((now - record.at).total_seconds())
        line = f"{ago:>6}  {one_line(act.verb, 24):{verbs}}  {act.affected:>9,}  {act.by}: {_what(act)}"
        yield one_line(line, width).rstrip()
        for remark in (act.reason and f"reason: {act.reason}", act.stopped and f"stopped early: {act.stopped}"):
            if remark:
                yield f"{INDENT}{one_line(remark, width - len(INDENT))}"


def _what(act: Act) -> str:
    conditions = " ".join(f"{name}={value}" for name, value in act.which.items())
    more = f" and {act.named - len(act.names):,} more" if act.named > len(act.names) else ""
    return " ".join(filter(None, [", ".join(act.names) + more, conditions]))


def _json(record: ActRecord) -> dict[str, Any]:
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
