"""`taskflow worker`: imports the modules and runs jobs until it is asked to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import logging
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import parse_qsl, urlsplit

import anyio
from msgspec.structs import replace

from taskflow.app.app import App, default_app
from taskflow.app.context import running
from taskflow.app.package_conflict import advice_if_mixed
from taskflow.broker.url import DEFAULT_NAMESPACE, masked
from taskflow.cli.exit_codes import Exit
from taskflow.cli.gc_tuning import Collector
from taskflow.cli.health import HealthReport
from taskflow.cli.log_output import logging_to_stderr
from taskflow.cli.modules import TargetFailed, import_targets, is_ours, print_users, require_jobs
from taskflow.cli.reexec import take_broker
from taskflow.cli.signals import AFTER_FORCE, ForcedExit, Signals, end_stalled, show_stacks_when_killed
from taskflow.cli.terminal import span
from taskflow.model.errors import BrokerError, ConfigurationError
from taskflow.model.printable import log_safely, nearest, one_line
from taskflow.model.record import Status
from taskflow.worker.drain import Drain
from taskflow.worker.events import DescriptorsClosed, WorkerEvent
from taskflow.worker.options import QueueChoice, WorkerOptions
from taskflow.worker.registration import report_death
from taskflow.worker.worker import Worker

if TYPE_CHECKING:
    from taskflow.cli.supervisor_socket import SupervisorSocket

log: Final = logging.getLogger("taskflow.worker")

T = TypeVar("T")

MOST_NAMED: Final = 20
"""The most jobs that a worker names when it starts."""


def run(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    show_stacks_when_killed()
    line: SupervisorSocket | None = arguments.line
    with (
        logging_to_stderr(arguments.log_level, arguments.log_format, _add_ids, has_pid=line is not None),
        ForcedExit() as forced_exit,
        HealthReport(arguments, line) as health_report,
    ):
        signals = Signals(forced_exit, grace=options.grace, stop_timeout=options.stop_timeout)
        if (advice := advice_if_mixed()) is not None:
            log.error(advice)
        app = default_app()
        app.flag(broker=take_broker(arguments.broker))
        try:
            import_targets(arguments.modules, all_submodules=arguments.all_submodules)
        except TargetFailed:
            return signals.code if signals.has_come else Exit.USAGE
        require_jobs(app.registry, arguments.modules, all_submodules=arguments.all_submodules)
        signals.begin()
        _announce(app, options)
        if line is not None:
            line.say("loaded")
        return _run_to_exit(
            WorkerRun(app, options, signals, forced_exit, health_report, arguments.collector, line, is_draining=arguments.drain)
        )


def _options(arguments: argparse.Namespace) -> WorkerOptions:
    try:
        queues = QueueChoice() if arguments.queues is None else QueueChoice.parse(arguments.queues)
    except ValueError as error:
        raise ConfigurationError(f"{arguments.settings.get('queues', '--queues')}: {error}") from error
    names = ("concurrency", "grace", "ttl", "start_timeout", "drain_horizon", "stall_limit")
    given = {name: getattr(arguments, name) for name in names}
    return WorkerOptions(queues=queues, modules=tuple(arguments.modules), on_stall_limit=end_stalled, **given)


def _add_ids(record: logging.LogRecord) -> bool:
    """Add the running job's name, id, attempt and queue to a log record. This is a `logging` filter that lets every record pass."""
    context = running.get()
    if context is not None and not hasattr(record, "job_id"):
        record.job, record.job_id, record.attempt, record.queue = context.job_name, context.job_id, context.attempt, context.queue
        record.is_inside = True
    return True


def _announce(app: App, options: WorkerOptions) -> None:
    app.broker()  # raises for a wrong URL
    url = app.broker_url()
    log.info("broker %s, namespace %s", masked(url), dict(parse_qsl(urlsplit(url).query)).get("namespace", DEFAULT_NAMESPACE))
    log.info("queues: %s; concurrency: %d", options.queues, options.concurrency)
    names = [job.name for job in app.registry]
    log.info("modules: %s; %s", ", ".join(options.modules), _counted(len(names), "job"))
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    log.info("jobs: %s%s", ", ".join(names[:MOST_NAMED]), more)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s'[: count != 1]}"


def _run_to_exit(run: WorkerRun) -> int:
    try:
        with asyncio.Runner(loop_factory=_fastest_loop()) as runner:
            return _run_through(runner.get_loop(), run.work())
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if not run.has_ended:  # the event loop has failed
            run.note_event(DescriptorsClosed(str(error)))
        if isinstance(error, asyncio.CancelledError):
            log.error("the worker has wound down, because code that it called cancelled its task")
            return Exit.FAILED
        if is_ours(error):
            raise
        print_users(error)  # also for the application's lifespan, which may raise SystemExit
        return Exit.FAILED


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop factory, or None if uvloop (the extra `fast`) is not installed."""
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        return None
    return factory


def _run_through(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run the loop until `work` ends, even if a job stops the loop before that.

    A job may call `loop.stop()`. It may also raise SystemExit or KeyboardInterrupt in a task or callback, and
    asyncio lets these escape from the loop. For code that awaits such a task, this is still an ordinary failure.
    """
    task = OwnTask(work, loop=loop)
    while True:
        try:
            return loop.run_until_complete(task)
        except (RuntimeError, SystemExit, KeyboardInterrupt) as stopped:
            if task.done() or loop.is_closed():
                raise
            raised = f"a task started by a job has raised {type(stopped).__name__} through"
            who = "a job has stopped (loop.stop())" if isinstance(stopped, RuntimeError) else raised
            log_safely(log.error, "%s the worker's event loop; restarting it", who)


class OwnTask(asyncio.Task[T]):
    """A task that belongs to the command. Jobs cannot cancel it, even by cancelling all tasks.

    Code outside jobs can cancel it, for example a task group in the application's lifespan when one of its tasks has failed.
    """

    _told_of = ""

    def cancel(self, msg: Any | None = None) -> bool:
        context = running.get()
        if context is not None and asyncio.current_task(self.get_loop()) is not None:
            if context.job_id != self._told_of:  # a job may try in a loop
                self._told_of = context.job_id
                log_safely(log.error, "a job tried to cancel a task of the worker; the task continues")
            return False
        return super().cancel(msg)


def _create_own(work: Coroutine[Any, Any, T]) -> OwnTask[T]:
    return OwnTask(work, loop=asyncio.get_running_loop())


class WorkerRun:
    """Runs a worker from its start to its exit. `line` is its socket to the supervisor, or None."""

    def __init__(
        self,
        app: App,
        options: WorkerOptions,
        signals: Signals,
        forced_exit: ForcedExit,
        health_report: HealthReport,
        collector: Collector,
        line: SupervisorSocket | None,
        *,
        is_draining: bool,
    ) -> None:
        self.has_ended = False
        self._app = app
        lines = () if line is None else (line,)
        self._options = replace(options, subscribers=(*options.subscribers, health_report.note_event, self.note_event, *lines))
        self._signals = signals
        self._forced_exit = forced_exit
        self._health_report = health_report
        self._collector = collector
        self._line = line
        self._is_draining = is_draining

    def note_event(self, event: WorkerEvent) -> None:
        """End the process if the worker is broken, for example because a job has closed its file
        descriptors. Otherwise, it could write to other files that have reused their numbers."""
        if isinstance(event, DescriptorsClosed):
            log.critical("this worker exits now (%s); its jobs run elsewhere after %g s without a heartbeat", event.why, self._options.ttl)
            os._exit(Exit.FORCED)

    async def work(self) -> int:
        worker, death_reporter, began = Worker(options=self._options), DeathReporter(self._app), time.monotonic()
        self._health_report.show(worker.health)
        code: int = Exit.FAILED  # unless the work ends without an error
        is_drained = False
        try:
            async with AsyncExitStack() as stack:
                if not await self._signals.start(self._start(worker, stack)):
                    code = self._signals.code
                    return code
                if self._line is not None:
                    death_reporter.begin(self._line)
                is_drained = await self._until_stop(worker)
                if not is_drained and self._line is not None:
                    self._line.say("leaving")  # sent whatever the reason is
            death_reporter.end()
            tally, took = worker.tally, time.monotonic() - began
            worked_for = span(took) if took >= 1 else f"{took:.1f} s"
            counts = f"{_counted(tally.runs, 'run')}, {_counted(tally.ended, 'job')} ended, {tally.failed:,} failed"
            log_safely(log.info, "worked for %s: %s", worked_for, counts)
            if self._is_draining and (self._line is None or (self._line.is_first and not self._line.is_leaving)):
                await self._print_remaining_jobs()
            code = self._code(worker, is_drained=is_drained)
        finally:
            with anyio.move_on_after(self._options.stop_timeout, shield=True):
                await self._app.close()
            self.has_ended = True
            # Next, Python ends the tasks and threads that jobs have left behind, and these may not cooperate.
            self._forced_exit.exit_with(code, AFTER_FORCE if worker.has_forced else self._options.stop_timeout)
        if self._line is not None:  # before Python shuts down, because a signal during the shutdown would change the exit status
            self._line.say(f"{'drained' if is_drained else 'ended'} {code:d}")
        return code

    def _code(self, worker: Worker, *, is_drained: bool) -> int:
        if worker.has_forced:
            return Exit.FORCED
        is_replaced = self._line is not None and self._line.is_leaving  # another worker takes its place
        if self._is_draining and not (is_drained or is_replaced):
            return self._signals.code
        return Exit.FAILED if self._is_draining and (worker.tally.failed or worker.tally.set_aside) else Exit.OK

    async def _start(self, worker: Worker, stack: AsyncExitStack) -> None:
        await stack.enter_async_context(worker)
        with contextlib.suppress(BrokerError):  # the broker is unavailable again, and this is only a hint
            await self._warn_of_unknown_queues()
        self._collector.settle()

    async def _until_stop(self, worker: Worker) -> bool:
        """Wait for a signal, for drained queues or for retirement. Return True if the queues are drained."""
        drained = _create_own(worker.drained()) if self._is_draining else None
        waits: list[asyncio.Task[Any]] = [_create_own(self._signals.wait(worker))]
        if drained is not None:
            waits.append(drained)
        if self._line is not None:
            waits.append(_create_own(_retire(worker, self._line)))
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for wait in done:
            wait.result()
        return drained in done

    async def _warn_of_unknown_queues(self) -> None:
        """Warn about queues in `--queues` that no imported job uses and the store does not know.
        They may be used later, but usually they are typos."""
        if not self._options.queues.names:
            return
        known = {queue for job in self._app.registry for queue in job.queues}
        known |= {queue.name for queue in await self._app.broker().console.queues()}
        for name in self._options.queues.names:
            if name not in known:
                near = nearest(name, known)
                hint = f"; did you mean {near}?" if near else ""
                log.warning("queue %s is unknown: it never had a job, and no job here names it%s", name, hint)

    async def _print_remaining_jobs(self) -> None:
        drain = Drain(self._app.broker(), self._app.registry, self._options)
        for queue in await drain.queues():
            parked = await drain.parked(queue)
            left = {status: queue.counts.get(status, 0) for status in (Status.HELD, Status.SCHEDULED, Status.READY, Status.RUNNING)}
            left[Status.SCHEDULED] = max(0, left[Status.SCHEDULED] - parked.total())
            counts = [f"{count:,} {status}" for status, count in left.items() if count]
            if parked:
                named = ", ".join(f"{count:,} {one_line(name)}" for name, count in sorted(parked.items()))
                counts.append(f"{parked.total():,} parked for a worker that knows more: {named}")
            if counts:
                print(f"left in {one_line(queue.name)}{' (paused)' if queue.is_paused else ''}: {', '.join(counts)}")


class DeathReporter:
    """Reports to the broker the worker deaths that the supervisor has noticed. It
    does so in separate tasks, because the broker may be slow."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._loop = asyncio.get_running_loop()
        self._reports: dict[bytes, asyncio.Task[None]] = {}

    def begin(self, line: SupervisorSocket) -> None:
        def note(session: bytes, cause: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: other workers report the death
                self._loop.call_soon_threadsafe(self._report, line, session, cause)

        line.on_deaths(note)

    def end(self) -> None:
        for report in self._reports.values():
            report.cancel()

    def _report(self, line: SupervisorSocket, session: bytes, cause: str) -> None:
        if session not in self._reports:
            self._reports[session] = task = _create_own(self._report_one(line, session, cause))
            task.add_done_callback(lambda _: self._reports.pop(session, None))

    async def _report_one(self, line: SupervisorSocket, session: bytes, cause: str) -> None:
        if await report_death(self._app.broker(), session, cause):
            line.say(f"told {session.hex()}")


async def _retire(worker: Worker, line: SupervisorSocket) -> None:
    """Wait until this worker must retire, then let its runs finish, even those
    that exceed the grace time. Another worker takes its place."""
    await line.retired()
    await worker.finish()
