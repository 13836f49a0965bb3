"""`taskflow status | queues | workers`: shows the queues and the workers of a store."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Final

from taskflow.app.app import App
from taskflow.cli.exit_codes import Exit
from taskflow.cli.json_text import print_json
from taskflow.cli.store import existing_broker, with_store
from taskflow.cli.summary import Summary, queue_json, queue_table, worker_json, worker_table


def run(arguments: argparse.Namespace) -> int:
    return with_store(arguments, VIEWS[arguments.command])


async def _status(app: App, arguments: argparse.Namespace) -> int:
    console = existing_broker(app).console
    if arguments.watch is not None:
        from taskflow.cli.watch import watch

        return await watch(partial(Summary.read, app, console), arguments.watch, is_json=arguments.json)
    summary = await Summary.read(app, console)
    if arguments.json:
        print_json(summary.to_json())
        return Exit.OK
    for line in summary.lines():
        print(line)
    return Exit.OK


async def _queues(app: App, arguments: argparse.Namespace) -> int:
    queues = await existing_broker(app).console.queues()
    if arguments.json:
        print_json([queue_json(queue) for queue in queues])
        return Exit.OK
    for line in queue_table(queues):
        print(line)
    return Exit.OK


async def _workers(app: App, arguments: argparse.Namespace) -> int:
    workers = await existing_broker(app).console.workers()
    if arguments.json:
        print_json([worker_json(worker) for worker in workers])
        return Exit.OK
    if not workers:
        print("no worker is running", file=sys.stderr)
    else:
        for line in worker_table(workers):
            print(line)
    return Exit.OK


VIEWS: Final = {"status": _status, "queues": _queues, "workers": _workers}
