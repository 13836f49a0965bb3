"""`taskflow worker`: imports the modules and runs jobs until it is asked to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import parse_qsl, urlsplit

import anyio
from msgspec.structs import replace

from taskflow.app.app import App, default_app
from taskflow.app.context import running
from taskflow.app.events import Event
from taskflow.app.package_conflict import advice_if_mixed
from taskflow.broker.url import DEFAULT_NAMESPACE, masked
from taskflow.cli.exit_codes import Exit
from taskflow.cli.health import HealthReport
from taskflow.cli.log_output import logging_to_stderr
from taskflow.cli.modules import TargetFailed, import_jobs, is_ours, print_users
from taskflow.cli.signals import FORCED_EXIT_TIMEOUT, ForcedExit, Signals, end_stalled, show_stacks_when_killed
from taskflow.cli.startup import Collector, take_broker
from taskflow.model.errors import BrokerError, ConfigurationError
from taskflow.model.printable import log_safely, nearest, one_line, span
from taskflow.model.record import Status
from taskflow.worker.events import DescriptorsClosed, RunEnded, SessionOpened, WaitingForBroker
from taskflow.worker.options import QueueChoice, WorkerOptions
from taskflow.worker.registration import report_death
from taskflow.worker.worker import Drain, Worker

if TYPE_CHECKING:
    from taskflow.cli.health_server import Page
    from taskflow.cli.supervise import SupervisorSocket

log: Final = logging.getLogger("taskflow.worker")

T = TypeVar("T")

BACKLOG_INTERVAL: Final = 10.0  # seconds between two checks of the queues for `/scale`
MAX_NAMED: Final = 20  # maximum number of jobs that a worker lists when it starts


def run(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    show_stacks_when_killed()
    supervisor: SupervisorSocket | None = arguments.supervisor
    add_fields = LogFields()
    with (
        logging_to_stderr(arguments.log_level, arguments.log_format, add_fields, has_pid=supervisor is not None),
        ForcedExit() as forced_exit,
        HealthReport(arguments, supervisor) as health_report,
    ):
        signals = Signals(forced_exit, grace=options.grace, stop_timeout=options.stop_timeout)
        if (advice := advice_if_mixed()) is not None:
            log.error(advice)
        app = default_app()
        app.flag(broker=take_broker(arguments.broker))
        try:
            import_jobs(app.registry, arguments)
        except TargetFailed:
            if signals.has_come:
                return signals.code
            raise
        signals.begin()
        _announce(app, options)
        if supervisor is not None:
            supervisor.say("loaded")
        return _run_to_exit(
            WorkerRun(app, options, signals, forced_exit, health_report, add_fields, arguments.collector, supervisor, arguments.drain)
        )


def _options(arguments: argparse.Namespace) -> WorkerOptions:
    try:
        queues = QueueChoice() if arguments.queues is None else QueueChoice.parse(arguments.queues)
    except ValueError as error:
        raise ConfigurationError(f"{arguments.settings.get('queues', '--queues')}: {error}") from error
    names = ("concurrency", "grace", "ttl", "start_timeout", "drain_horizon", "stall_limit")
    given = {name: getattr(arguments, name) for name in names}
    return WorkerOptions(queues=queues, modules=tuple(arguments.modules), on_stall_limit=end_stalled, **given)


class LogFields:
    """A `logging` filter that lets every record pass, and adds the worker's name, the running job and the current span."""

    worker: str | None = None

    def __call__(self, record: logging.LogRecord) -> bool:
        context = running.get()
        if context is not None and not hasattr(record, "job_id"):
            record.job, record.job_id, record.attempt, record.queue = context.job_name, context.job_id, context.attempt, context.queue
            record.is_inside = True
        if self.worker is not None and not hasattr(record, "worker"):
            record.worker = self.worker
        # If a span can exist, the application or its driver has imported this module.
        current_span = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
        if current_span is not None and (span := current_span().get_span_context()).is_valid and not hasattr(record, "trace_id"):
            record.trace_id, record.span_id = f"{span.trace_id:032x}", f"{span.span_id:016x}"
        return True


def _announce(app: App, options: WorkerOptions) -> None:
    app.broker()  # raises for a wrong URL
    url = app.broker_url()
    log.info("broker %s, namespace %s", masked(url), dict(parse_qsl(urlsplit(url).query)).get("namespace", DEFAULT_NAMESPACE))
    log.info("queues: %s; concurrency: %d", options.queues, options.concurrency)
    names = [job.name for job in app.registry]
    log.info("modules: %s; %s", ", ".join(options.modules), _counted(len(names), "job"))
    more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    log.info("jobs: %s%s", ", ".join(names[:MAX_NAMED]), more)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s'[: count != 1]}"


def _run_to_exit(run: WorkerRun) -> int:
    new_loop = None
    with contextlib.suppress(ImportError):  # the extra `fast` is not installed
        new_loop = importlib.import_module("uvloop").new_event_loop
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return _run_through(runner.get_loop(), run.work())
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if not run.has_ended:  # the event loop has failed
            run.on_event(DescriptorsClosed(str(error)))
        if isinstance(error, asyncio.CancelledError):
            log.error("the worker wound down because the application's code cancelled its task")
            return Exit.FAILED
        if is_ours(error):
            raise
        print_users(error)  # includes errors of the application's lifespan, which may raise SystemExit
        return Exit.FAILED


def _run_through(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run the loop until `work` ends, even if a job stops it, or a job's task raises SystemExit or KeyboardInterrupt through it."""
    task = OwnTask(work, loop=loop)
    while True:
        try:
            return loop.run_until_complete(task)
        except (RuntimeError, SystemExit, KeyboardInterrupt) as stopped:
            if task.done() or loop.is_closed():
                raise
            raised = f"a task started by a job has raised {type(stopped).__name__} through"
            who = "a job has called stop() on" if isinstance(stopped, RuntimeError) else raised
            log_safely(log.error, "%s the worker's event loop; restarting it", who)


class OwnTask(asyncio.Task[T]):
    """A task that belongs to the command. Jobs cannot cancel it, even by cancelling all tasks, but the application's lifespan can."""

    _logged_job = ""

    def cancel(self, msg: Any | None = None) -> bool:
        context = running.get()
        if context is not None and asyncio.current_task(self.get_loop()) is not None:
            if context.job_id != self._logged_job:  # a job may try this in a loop
                self._logged_job = context.job_id
                log_safely(log.error, "a job tried to cancel a task of the worker; the task continues")
            return False
        return super().cancel(msg)


def _create_own(work: Coroutine[Any, Any, T]) -> OwnTask[T]:
    return OwnTask(work, loop=asyncio.get_running_loop())


@dataclass
class WorkerRun:
    """Runs a worker from its start to its exit. `supervisor` is the socket to the supervisor, if there is one."""

    app: App
    options: WorkerOptions
    signals: Signals
    forced_exit: ForcedExit
    health_report: HealthReport
    log_fields: LogFields
    collector: Collector
    supervisor: SupervisorSocket | None
    is_draining: bool
    has_ended: bool = False

    def say(self, words: str) -> None:
        if self.supervisor is not None:
            self.supervisor.say(words)

    def on_event(self, event: Event) -> None:
        match event:
            case DescriptorsClosed(why):  # further writes could reach other files that have reused the descriptors' numbers
                log.critical("this worker exits now (%s); its jobs run elsewhere after %g s without a heartbeat", why, self.options.ttl)
                os._exit(Exit.FORCED)
            case RunEnded() if self.supervisor is not None:
                self.supervisor.count_run()
            case WaitingForBroker():
                self.say("waiting")
            case SessionOpened(name, session):
                self.log_fields.worker = name
                self.say(f"session {session.hex()}")

    async def work(self) -> int:
        subscribers = (*self.options.subscribers, self.health_report.on_event, self.on_event)
        worker, began = Worker(options=replace(self.options, subscribers=subscribers)), time.monotonic()
        self.health_report.show(worker.health)
        code: int = Exit.FAILED  # unless the work ends without an error
        is_drained = False
        try:
            async with AsyncExitStack() as stack:
                page = next((each.page for each in self.app.settings.telemetry if each.page is not None), None)
                if page is not None and self.health_report.is_served:
                    self._show_metrics(worker, page, stack)
                if self.supervisor is not None:
                    stack.callback(_create_own(self._report_deaths(self.supervisor)).cancel)
                if not await self.signals.start(self._start(worker, stack)):
                    code = self.signals.code
                    return code
                is_drained = await self._until_stop(worker)
                if not is_drained:
                    self.say("leaving")  # whatever the reason is
            tally, took = worker.tally, time.monotonic() - began
            worked_for = span(took) if took >= 1 else f"{took:.1f} s"
            counts = f"{_counted(tally.runs, 'run')}, {_counted(tally.ended, 'job')} ended, {tally.failed:,} failed"
            log_safely(log.info, "worked for %s: %s", worked_for, counts)
            if self.is_draining and (self.supervisor is None or (self.supervisor.is_first and not self.supervisor.is_leaving)):
                await self._print_remaining_jobs()
            code = self._code(worker, is_drained=is_drained)
        finally:
            with anyio.move_on_after(self.options.stop_timeout, shield=True):
                await self.app.close()
            self.has_ended = True
            # Next, Python ends the tasks and threads that jobs have left behind, which may not stop.
            self.forced_exit.end_within(FORCED_EXIT_TIMEOUT if worker.has_forced else self.options.stop_timeout, code)
        # Sent before Python shuts down, because a signal during the shutdown would change the exit status.
        self.say(f"{'drained' if is_drained else 'ended'} {code:d}")
        return code

    def _show_metrics(self, worker: Worker, page: Callable[[], Page], stack: AsyncExitStack) -> None:
        """Provide the metrics and the backlog that the health port or the supervisor serves."""
        from taskflow.worker.measuring import pack_facts

        self.health_report.metrics = page
        if self.supervisor is not None:
            self.health_report.facts = lambda: b"" if (facts := worker.facts()) is None else pack_facts(facts)
        if self.supervisor is None or self.supervisor.is_first:
            stack.callback(_create_own(self._watch_backlog()).cancel)

    async def _watch_backlog(self) -> None:
        """Refresh the data for autoscalers: the number of ready and running jobs in this worker's queues, and the age of the oldest ready
        job."""
        while True:
            with contextlib.suppress(BrokerError):
                own = [
                    queue for queue in await self.app.broker().admin.queues() if queue.name in (self.options.queues.names or [queue.name])
                ]
                backlog = sum(queue.counts[Status.READY] + queue.counts[Status.RUNNING] for queue in own)
                oldest = max((queue.oldest_ready_for or 0.0 for queue in own), default=0.0)
                found = {"backlog": backlog, "oldest_ready_seconds": round(max(0.0, oldest), 3)}
                self.health_report.backlog = ("application/json", json.dumps(found, separators=(",", ":")).encode())
            await asyncio.sleep(BACKLOG_INTERVAL)

    def _code(self, worker: Worker, *, is_drained: bool) -> int:
        if worker.has_forced:
            return Exit.FORCED
        is_replaced = self.supervisor is not None and self.supervisor.is_leaving  # another worker takes its place
        if self.is_draining and not (is_drained or is_replaced):
            return self.signals.code
        return Exit.FAILED if self.is_draining and (worker.tally.failed or worker.tally.set_aside) else Exit.OK

    async def _start(self, worker: Worker, stack: AsyncExitStack) -> None:
        await stack.enter_async_context(worker)
        with contextlib.suppress(BrokerError):  # the broker is unavailable again, and this is only a hint
            await self._warn_of_unknown_queues()
        self.collector.settle()

    async def _until_stop(self, worker: Worker) -> bool:
        """Wait for a signal, for drained queues or for retirement. Return True if the queues are drained."""
        drained = [_create_own(worker.drained())] if self.is_draining else []
        waits: list[asyncio.Task[Any]] = [_create_own(self.signals.wait(worker)), *drained]
        if self.supervisor is not None:
            waits.append(_create_own(_retire(worker, self.supervisor)))
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for wait in done:
            wait.result()
        return not done.isdisjoint(drained)

    async def _report_deaths(self, supervisor: SupervisorSocket) -> None:
        """Report to the broker the deaths that the supervisor has noticed. The supervisor repeats deaths that aren't confirmed."""
        loop, has_come = asyncio.get_running_loop(), asyncio.Event()
        supervisor.on_death = lambda: loop.call_soon_threadsafe(has_come.set)
        while True:
            while supervisor.deaths:
                session, cause = supervisor.deaths.popleft()
                if await report_death(self.app.broker(), session, cause):
                    supervisor.say(f"reported {session.hex()}")
            has_come.clear()
            await has_come.wait()

    async def _warn_of_unknown_queues(self) -> None:
        """Warn about queues in `--queues` that no imported job uses and the store does not know. Usually, their names are misspelled."""
        if not self.options.queues.names:
            return
        known = {queue for job in self.app.registry for queue in job.queues}
        known |= {queue.name for queue in await self.app.broker().admin.queues()}
        for name in self.options.queues.names:
            if name not in known:
                hint = f"; did you mean {near}?" if (near := nearest(name, known)) else ""
                log.warning("queue %s is unknown: it has never had a job, and no job here names it%s", name, hint)

    async def _print_remaining_jobs(self) -> None:
        drain = Drain(self.app.broker(), self.app.registry, self.options)
        for queue in await drain.queues():
            parked = await drain.parked(queue)
            left = {status: queue.counts.get(status, 0) for status in (Status.HELD, Status.SCHEDULED, Status.READY, Status.RUNNING)}
            left[Status.SCHEDULED] = max(0, left[Status.SCHEDULED] - parked.total())
            counts = [f"{count:,} {status}" for status, count in left.items() if count]
            if parked:
                named = ", ".join(f"{count:,} {one_line(name)}" for name, count in sorted(parked.items()))
                counts.append(f"{parked.total():,} parked until a worker can run them: {named}")
            if counts:
                print(f"left in {one_line(queue.name)}{' (paused)' if queue.is_paused else ''}: {', '.join(counts)}")


async def _retire(worker: Worker, supervisor: SupervisorSocket) -> None:
    """Wait until this worker must retire, then let its runs finish, even if they take longer than the grace period."""
    await asyncio.shield(asyncio.wrap_future(supervisor.retired))
    await worker.finish()
