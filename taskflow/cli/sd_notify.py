"""Implements systemd's notify protocol, sd_notify(3): reports that the worker is ready, stopping or alive."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, MutableMapping
from typing import Final, Self

from taskflow.model.clock import start_thread
from taskflow.model.printable import one_line
from taskflow.worker.events import SessionOpened, WindingDown, WorkerEvent
from taskflow.worker.health import HealthCheck

log: Final = logging.getLogger("taskflow.worker")

SENT_WITHIN: Final = 1.0
AGAIN: Final = 1.0
"""The longest pause, in seconds, before a worker that has failed its health check is checked again."""

_OFF: Final[tuple[str, ...]] = ()


class SystemdNotifier:
    """Sends notifications to systemd from a separate thread, so that a blocked socket delays nothing else.

    `address`   the value of NOTIFY_SOCKET
    `watchdog`  seconds within which systemd expects a keep-alive message; None if it expects none
    `live`      called before each keep-alive message. If the worker is blocked, none is sent, and systemd ends the worker
    """

    def __init__(self, address: str, watchdog: float | None, live: Callable[[], HealthCheck]) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._period = watchdog / 2 if watchdog is not None else None
        self._live = live
        self._messages = queue.SimpleQueue[tuple[str, ...]]()
        self._thread: threading.Thread | None = None
        self._has_failed = False
        self._is_ready = False
        self._is_stopping = False
        self._is_unwell = False
        self._status = "STATUS=starting"

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str], live: Callable[[], HealthCheck]) -> Self | None:
        """Create a notifier from NOTIFY_SOCKET and the watchdog's variables. Return None if there is no usable socket.

        The variables are removed, as sd_notify(3) advises, because programs that jobs start must not send notifications for the worker.
        """
        address, microseconds, pid = (environment.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
        if not address:
            return None
        if address[0] not in "/@":
            log.warning("NOTIFY_SOCKET=%s is neither a path nor an abstract socket: systemd gets no notifications", address)
            return None
        is_watched = microseconds.isascii() and microseconds.isdigit() and int(microseconds) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(microseconds) / 1e6 if is_watched else None, live)

    def note_event(self, event: WorkerEvent) -> None:
        """Report that the worker has started or is winding down. Subscribe this method to the worker's events."""
        match event:
            case SessionOpened(name):
                self.ready(f"working as {name}")
            case WindingDown(running):
                self.stopping(f"winding down: {running} running")
            case _:
                return

    def ready(self, status: str) -> None:
        """Report `status`. The first time, also report that the worker is ready."""
        self._status = f"STATUS={status}"
        self._messages.put((*(["READY=1"] if not self._is_ready else []), self._status))
        self._is_ready = True

    def stopping(self, status: str) -> None:
        self._is_stopping, self._status = True, f"STATUS={status}"
        self._messages.put(("STOPPING=1", self._status))

    def start(self) -> None:
        self._thread = start_thread(self._keep, "taskflow-notify")

    def stop(self) -> None:
        if not self._is_stopping:
            self.stopping("ending")
        self._messages.put(_OFF)
        if self._thread is not None:
            self._thread.join(2 * SENT_WITHIN)

    def _keep(self) -> None:
        keep_alive_at = time.monotonic() if self._period is not None else None
        while True:
            try:
                message = self._messages.get(timeout=None if keep_alive_at is None else max(0.0, keep_alive_at - time.monotonic()))
            except queue.Empty:
                keep_alive_at = time.monotonic() + self._send_keep_alive()
                continue
            if message == _OFF:
                return
            self._send(*message)

    def _send_keep_alive(self) -> float:
        """Send a keep-alive message if the worker is alive. Return the seconds until the next one."""
        found, period = self._live(), self._period or AGAIN
        if not found.is_well:
            self._is_unwell = True
            self._send(f"STATUS={found.why}")
            return min(AGAIN, period)
        self._send("WATCHDOG=1", *([self._status] if self._is_unwell else []))
        self._is_unwell = False
        return period

    def _send(self, *lines: str) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SENT_WITHIN)
                sender.sendto("\n".join(map(one_line, lines)).encode(), self._address)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                log.warning("cannot notify systemd about this worker: NOTIFY_SOCKET: %s", error)
