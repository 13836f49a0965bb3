"""`taskflow metrics`: shows how often each kind of event has happened in each queue."""

from __future__ import annotations

import argparse
import sys

from taskflow.app.app import App
from taskflow.cli.exit_codes import Exit
from taskflow.cli.json_text import print_json
from taskflow.cli.store import existing_broker, with_store
from taskflow.cli.terminal import room
from taskflow.model.printable import INDENT, one_line


def run(arguments: argparse.Namespace) -> int:
    return with_store(arguments, _metrics)


async def _metrics(app: App, arguments: argparse.Namespace) -> int:
    totals = (await (await existing_broker(app)).console.metrics()).totals
    if arguments.json:
        print_json({"totals": totals})
        return Exit.OK
    if not totals:
        print("no job has been sent yet", file=sys.stderr)
    width = room()
    for queue, events in sorted(totals.items()):
        print(one_line(queue, width))
        numbers = [f"{number:,}" for number in events.values()]
        most = max(map(len, numbers), default=0)
        for event, number in zip(events, numbers, strict=True):
            print(one_line(f"{INDENT}{number:>{most}}  {event}", width))
    return Exit.OK
