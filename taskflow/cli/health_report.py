"""Reports the health of a process to health probes, systemd and its supervisor."""

from __future__ import annotations

import argparse
import logging
import os
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from taskflow.cli.fleet import CHECK_EVERY, REPORT_EVERY, Fleet, report_line
from taskflow.cli.sd_notify import SystemdNotifier
from taskflow.model.clock import start_thread
from taskflow.worker.events import WorkerEvent
from taskflow.worker.exit_status import ExitStatus
from taskflow.worker.health import HealthCheck, WorkerHealth

if TYPE_CHECKING:
    from taskflow.cli.health_server import HealthServer
    from taskflow.cli.supervisor_socket import SupervisorSocket

log: Final = logging.getLogger("taskflow.worker")

_STARTING: Final = "the worker has not started yet"


class HealthReport:
    """A context manager that reports a worker's health. Until `show` is called, the worker is reported as starting: live, but not ready.

    If there is a `line` to a supervisor, the worker reports over it, and the supervisor answers the probes.
    """

    def __init__(self, arguments: argparse.Namespace, line: SupervisorSocket | None = None) -> None:
        self._health: WorkerHealth | Fleet | None = None
        self._line = line
        self._ending = threading.Event()
        self._server: HealthServer | None = None
        if arguments.health_port is not None and line is None:
            asks = {"/live": self._live, "/ready": self._ready}
            from taskflow.cli.health_server import HealthServer, listener  # imported here, because most workers do not need it

            self._server = HealthServer(listener(arguments.health_host, arguments.health_port), asks)
        self.notifier = SystemdNotifier.from_environment(os.environ, self._live) if line is None else None

    def __enter__(self) -> Self:
        if self._server is not None:
            self._server.start()
            log.info("health: %s/live and /ready", self._server.url)
        if self.notifier is not None:
            self.notifier.start()
        if self._line is not None:
            start_thread(self._tell_supervisor, "taskflow-health-report")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.set()
        if self.notifier is not None:
            self.notifier.stop()
        if self._server is not None:
            self._server.stop()

    def show(self, health: WorkerHealth | Fleet) -> None:
        self._health = health

    def note_event(self, event: WorkerEvent) -> None:
        """Pass an event to the systemd notifier. Subscribe this method to the worker's events."""
        if self.notifier is not None:
            self.notifier.note_event(event)

    def _tell_supervisor(self) -> None:
        last, reported_at = (False, False), float("-inf")
        while self._line is not None and not self._ending.wait(CHECK_EVERY):
            live, ready, now = self._live(), self._ready(), time.monotonic()
            if (live.is_well, ready.is_well) != last or now >= reported_at + REPORT_EVERY:
                last, reported_at = (live.is_well, ready.is_well), now
                self._line.say(report_line(live, ready))

    def _live(self) -> HealthCheck:
        return self._health.live() if self._health is not None else HealthCheck(True, _STARTING)

    def _ready(self) -> HealthCheck:
        return self._health.ready() if self._health is not None else HealthCheck(False, _STARTING)


class FleetHealthReport(HealthReport):
    """A context manager that reports the health of all of a supervisor's workers."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        self._fleet = Fleet()
        self.show(self._fleet)

    def note(self, pid: int, news: str | ExitStatus) -> None:
        """Record a worker's report, or its end."""
        had_worked = self._fleet.has_worked
        self._fleet.note(pid, news)
        if self.notifier is not None and self._fleet.has_worked and not had_worked:
            self.notifier.ready("workers work")

    def stop(self) -> None:
        if self.notifier is not None:
            self.notifier.stopping("winding down")
