"""What the world outside is told of a worker's process while it lives: those who probe it, and systemd."""

from __future__ import annotations

import argparse
import logging
import os
from types import TracebackType
from typing import Final, Self

from taskflow.cli.health import HealthServer, listener
from taskflow.cli.notify import Notifier
from taskflow.worker.events import Event
from taskflow.worker.vitals import Finding, Vitals

log: Final = logging.getLogger("taskflow.worker")

_STARTING: Final = "it has not started yet"


class Outside:
    """A context manager around all of the worker's life. Before `show` it is a worker that starts: alive, and not ready."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._vitals: Vitals | None = None
        self._server: HealthServer | None = None
        if arguments.health_port is not None:
            asks = {"/live": self._live, "/ready": self._ready}
            self._server = HealthServer(listener(arguments.health_host, arguments.health_port), asks)
        self._notifier = Notifier.from_environment(os.environ, self._live)

    def __enter__(self) -> Self:
        if self._server is not None:
            self._server.start()
            log.info("health: %s/live and /ready", self._server.url)
        if self._notifier is not None:
            self._notifier.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._notifier is not None:
            self._notifier.stop()
        if self._server is not None:
            self._server.stop()

    def show(self, vitals: Vitals) -> None:
        self._vitals = vitals

    def heed(self, event: Event) -> None:
        """Subscribe this to the worker's events."""
        if self._notifier is not None:
            self._notifier.heed(event)

    def _live(self) -> Finding:
        return self._vitals.live() if self._vitals is not None else Finding(True, _STARTING)

    def _ready(self) -> Finding:
        return self._vitals.ready() if self._vitals is not None else Finding(False, _STARTING)
