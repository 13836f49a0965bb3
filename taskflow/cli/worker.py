"""`taskflow worker`: import the modules, work until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
from collections.abc import Callable
from typing import Any, Final

from taskflow.app.app import App
from taskflow.app.current import default_app
from taskflow.broker.url import masked
from taskflow.cli.exits import Exit
from taskflow.cli.logs import set_up
from taskflow.cli.modules import TargetFailed, import_targets
from taskflow.model.errors import ConfigurationError
from taskflow.model.record import Status
from taskflow.worker.options import WorkerOptions
from taskflow.worker.queues import QueueChoice
from taskflow.worker.worker import Worker

log: Final = logging.getLogger("taskflow.worker")


def run(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    set_up(arguments.log_level, arguments.log_format)
    app = default_app()
    app.flag(broker=arguments.broker)
    try:
        import_targets(arguments.modules, all_submodules=arguments.all_submodules)
    except TargetFailed:
        return Exit.USAGE
    if not len(app.registry):
        raise ConfigurationError(f"{', '.join(arguments.modules)} declares no job: decorate a function with @job")
    _announce(app, options)
    with asyncio.Runner(loop_factory=_fastest_loop()) as runner:
        return runner.run(_work(app, options, is_draining=arguments.drain))


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where the extra `fast` is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _options(arguments: argparse.Namespace) -> WorkerOptions:
    try:
        queues = QueueChoice.parse(arguments.queues) if arguments.queues else QueueChoice()
    except ValueError as error:
        raise ConfigurationError(f"--queues: {error}") from error
    return WorkerOptions(queues=queues, concurrency=arguments.concurrency, grace=arguments.grace, drain_horizon=arguments.drain_horizon)


def _announce(app: App, options: WorkerOptions) -> None:
    log.info("broker %s", masked(app.broker_url()))
    log.info("queues: %s; %d jobs at one time", options.queues, options.concurrency)
    log.info("jobs: %s", ", ".join(job.name for job in app.registry))


async def _work(app: App, options: WorkerOptions, *, is_draining: bool) -> int:
    worker = Worker(app=app, options=options)
    signals = Signals(worker)
    try:
        async with worker:
            await _until_told(signals, worker, is_draining=is_draining)
            if is_draining:
                await _tell_what_is_left(app, options)
    finally:
        await app.close()
    if worker.has_forced:
        return Exit.FORCED
    return Exit.FAILED if is_draining and worker.tally.failed else Exit.OK


async def _until_told(signals: Signals, worker: Worker, *, is_draining: bool) -> None:
    waits: list[asyncio.Task[Any]] = [asyncio.create_task(signals.stopped.wait())]
    if is_draining:
        waits.append(asyncio.create_task(worker.drained()))
    done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for wait in done:
        wait.result()


async def _tell_what_is_left(app: App, options: WorkerOptions) -> None:
    for queue in await app.broker().console.queues():
        if options.queues.names and queue.name not in options.queues.names:
            continue
        left = {status: queue.counts.get(status, 0) for status in (Status.HELD, Status.SCHEDULED, Status.READY, Status.RUNNING)}
        if any(left.values()):
            log.info("left in %s: %s", queue.name, ", ".join(f"{count} {status}" for status, count in left.items() if count))


class Signals:
    """SIGTERM and SIGINT: the first winds down, the second cancels what runs now, the third ends the process at once.

    The handlers only set events: an exception at any bytecode would be worse than the signal.
    """

    def __init__(self, worker: Worker) -> None:
        self.stopped = asyncio.Event()
        self._worker = worker
        self._count = 0
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._heed, number)

    def _heed(self, number: signal.Signals) -> None:
        self._count += 1
        if self._count == 1:
            log.info("%s: winding down; once more cancels what runs, a third time ends at once", number.name)
            self.stopped.set()
        elif self._count == 2:
            log.warning("%s again: cancelling what runs", number.name)
            self._worker.hurry()
        else:
            os._exit(128 + number)
