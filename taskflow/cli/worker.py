"""`taskflow worker`: import the modules, work until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import signal
import sys
import traceback
from typing import Any, Final

from taskflow.app.app import App
from taskflow.app.current import default_app
from taskflow.broker.url import masked
from taskflow.cli.exits import Exit
from taskflow.model.errors import ConfigurationError
from taskflow.worker.queues import QueueChoice
from taskflow.worker.worker import Worker, WorkerOptions

log: Final = logging.getLogger("taskflow.worker")


def run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=arguments.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s  %(message)s", stream=sys.stderr)
    app = default_app()
    app.flag(broker=arguments.broker)
    try:
        queues = QueueChoice.parse(arguments.queues) if arguments.queues else QueueChoice()
    except ValueError as error:
        raise ConfigurationError(f"--queues: {error}") from error
    if not _import_all(arguments.modules):
        return Exit.USAGE
    if not len(app.registry):
        raise ConfigurationError(f"{', '.join(arguments.modules)} declares no job: decorate a function with @job")
    options = WorkerOptions(queues=queues, concurrency=arguments.concurrency, grace=arguments.grace, drain_horizon=arguments.drain_horizon)
    _announce(app, options)
    return asyncio.run(_work(app, options, is_draining=arguments.drain))


async def _work(app: App, options: WorkerOptions, *, is_draining: bool) -> int:
    stopped = _stop_signals()
    worker = Worker(app=app, options=options)
    try:
        async with worker:
            waits: list[asyncio.Task[Any]] = [asyncio.create_task(stopped.wait())]
            if is_draining:
                waits.append(asyncio.create_task(worker.drained()))
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            log.info("winding down")
    finally:
        await app.close()
    return Exit.FAILED if is_draining and worker.tally.failed else Exit.OK


def _stop_signals() -> asyncio.Event:
    """Set at the first SIGTERM or SIGINT; at the third the process ends at once."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    counts = {signal.SIGTERM: 0, signal.SIGINT: 0}

    def heed(number: signal.Signals) -> None:
        counts[number] += 1
        stopped.set()
        if sum(counts.values()) >= 3:
            os._exit(128 + number)

    for number in counts:
        loop.add_signal_handler(number, heed, number)
    return stopped


def _import_all(modules: list[str]) -> bool:
    """The current folder stands first on the path. A module's own error is shown as its author would see it."""
    sys.path.insert(0, os.getcwd())
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            frames = error.__traceback__
            while frames is not None and (
                frames.tb_frame.f_code.co_filename == __file__ or "importlib" in frames.tb_frame.f_code.co_filename
            ):
                frames = frames.tb_next
            if frames is not None:
                traceback.print_exception(type(error), error, frames)
            print(f"taskflow: {module} cannot be imported: {type(error).__name__}: {error}", file=sys.stderr)
            return False
    return True


def _announce(app: App, options: WorkerOptions) -> None:
    log.info("broker %s", masked(app.broker_url()))
    log.info("queues: %s; %d at a time", options.queues, options.concurrency)
    log.info("jobs: %s", ", ".join(job.name for job in app.registry))
