"""`taskflow status | queues | workers`: shows the queues and the workers of a store."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from taskflow.app.app import App
from taskflow.cli.exit_codes import Exit
from taskflow.cli.json_text import print_json
from taskflow.cli.store import existing_broker, with_store
from taskflow.cli.summary import Summary, queue_json, queue_table, worker_json, worker_table


def run(arguments: argparse.Namespace) -> int:
    return with_store(arguments, VIEWS[arguments.command])


async def _status(app: App, arguments: argparse.Namespace) -> int:
    console = (await existing_broker(app)).console
    if arguments.watch is not None:
        from taskflow.cli.watch import watch

        return await watch(partial(Summary.read, app, console), arguments.watch, is_json=arguments.json)
    summary = await Summary.read(app, console)
    return _shown(arguments, summary.to_json(), summary.lines())


async def _queues(app: App, arguments: argparse.Namespace) -> int:
    queues = await (await existing_broker(app)).console.queues()
    return _shown(arguments, [queue_json(queue) for queue in queues], queue_table(queues))


async def _workers(app: App, arguments: argparse.Namespace) -> int:
    workers = await (await existing_broker(app)).console.workers()
    if not workers and not arguments.json:
        print("no worker is running", file=sys.stderr)
    return _shown(arguments, [worker_json(worker) for worker in workers], worker_table(workers) if workers else ())


def _shown(arguments: argparse.Namespace, value: Any, lines: Iterable[str]) -> int:
    if arguments.json:
        print_json(value)
    else:
        for line in lines:
            print(line)
    return Exit.OK


VIEWS: Final = {"status": _status, "queues": _queues, "workers": _workers}
