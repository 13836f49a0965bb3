"""Reports a process's health to health probes, systemd and its supervisor."""

from __future__ import annotations

import argparse
import base64
import contextlib
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from taskflow.app.events import Event
from taskflow.model.clock import start_thread
from taskflow.model.printable import one_line
from taskflow.worker.children.syscalls import ExitStatus
from taskflow.worker.events import SessionOpened, WindingDown
from taskflow.worker.health import HealthCheck, WorkerHealth

if TYPE_CHECKING:
    from taskflow.cli.health_server import HealthServer, Page
    from taskflow.cli.supervise import SupervisorSocket
    from taskflow.worker.measuring import WorkerFacts

log: Final = logging.getLogger("taskflow.worker")

CHECK_INTERVAL: Final = 0.2
REPORT_INTERVAL: Final = 1.0  # seconds between two reports to a supervisor; a change is reported at once
SILENCE_TIMEOUT: Final = 10.0  # seconds without a report after which a worker is presumed dead, or blocked in C code
SEND_TIMEOUT: Final = 1.0
RECHECK_INTERVAL: Final = 1.0  # maximum seconds before a worker that has failed its health check is checked again

FACTS_INTERVAL: Final = 5.0  # seconds between two reports of what a worker has counted
MAX_PART: Final = 1_500  # maximum characters of packed counts per line
PARTS_AT_ONCE: Final = 16  # the number of lines sent before a pause, so that other reports still fit into the socket's buffer
PARTS_PAUSE: Final = 0.05
MAX_ENDED: Final = 50  # maximum number of ended workers' reports that wait to be added up

_STARTING: Final = "the worker has not started yet"


class HealthReport:
    """Reports a worker's health to its supervisor or, without one, to probes and systemd. Until `show` is called, the worker counts as
    live but not ready."""

    def __init__(self, arguments: argparse.Namespace, supervisor: SupervisorSocket | None = None) -> None:
        self._health: WorkerHealth | Fleet | None = None
        self._supervisor = supervisor
        self.is_served = arguments.health_port is not None
        self.metrics: Callable[[], Page | None] | None = None
        """Returns the page of metrics for probes, or None."""
        self.facts: Callable[[], bytes] | None = None
        """Returns the packed counts, which a supervisor combines into metrics."""
        self.backlog: Page | None = None
        self._ending = threading.Event()
        self._server: HealthServer | None = None
        if arguments.health_port is not None and supervisor is None:
            from taskflow.cli.health_server import HealthServer, listener  # imported here, because most workers do not need it

            asks = {"/live": self._live, "/ready": self._ready}
            pages = {"/metrics": self._metrics, "/scale": self._scale}
            self._server = HealthServer(listener(arguments.health_host, arguments.health_port), asks, pages)
        self.notifier = SystemdNotifier.from_environment(os.environ, self._live) if supervisor is None else None

    def __enter__(self) -> Self:
        if self._server is not None:
            self._server.start()
            log.info("health: %s/live and /ready", self._server.url)
        if self.notifier is not None:
            self.notifier.start()
        if self._supervisor is not None:
            self._teller = start_thread(self._tell_supervisor, "taskflow-health-report")
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        if self._supervisor is not None:
            self._teller.join(SEND_TIMEOUT)
        if self.notifier is not None:
            self.notifier.stop()
        if self._server is not None:
            self._server.stop()

    def show(self, health: WorkerHealth | Fleet) -> None:
        self._health = health

    def on_event(self, event: Event) -> None:
        """Notify systemd when the worker has started or is winding down. Subscribe this method to the worker's events."""
        if self.notifier is not None:
            match event:
                case SessionOpened(name):
                    self.notifier.ready(f"working as {name}")
                case WindingDown(running):
                    self.notifier.stopping(f"winding down: {running} running")

    def _tell_supervisor(self) -> None:
        last, reported_at, facts_at = (False, False), float("-inf"), float("-inf")
        while self._supervisor is not None and not self._ending.wait(CHECK_INTERVAL):
            live, ready, now = self._live(), self._ready(), time.monotonic()
            if (live.is_well, ready.is_well) != last or now >= reported_at + REPORT_INTERVAL:
                last, reported_at = (live.is_well, ready.is_well), now
                self._supervisor.say(report_line(live, ready))
            if now >= facts_at + FACTS_INTERVAL:
                facts_at = now
                self._tell_facts()
        self._tell_facts()  # sends the last counts

    def _tell_facts(self) -> None:
        if self.facts is not None and self._supervisor is not None:
            for number, line in enumerate(fact_lines(self.facts(), self.backlog)):
                if number and number % PARTS_AT_ONCE == 0:
                    time.sleep(PARTS_PAUSE)
                if not self._supervisor.say(line):  # the supervisor isn't reading
                    break

    def _metrics(self) -> Page | None:
        return None if self.metrics is None else self.metrics()

    def _scale(self) -> Page | None:
        return self.backlog

    def _live(self) -> HealthCheck:
        return self._health.live() if self._health is not None else HealthCheck(True, _STARTING)

    def _ready(self) -> HealthCheck:
        return self._health.ready() if self._health is not None else HealthCheck(False, _STARTING)


class FleetHealthReport(HealthReport):
    """A context manager that reports the combined health of a supervisor's workers."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        self._fleet = Fleet()
        self.show(self._fleet)
        self.metrics = self._fleet.metrics

    def note(self, pid: int, news: str | ExitStatus) -> None:
        had_worked = self._fleet.has_worked
        self._fleet.note(pid, news)
        if self.notifier is not None and self._fleet.has_worked and not had_worked:
            self.notifier.ready("workers work")

    def _scale(self) -> Page | None:
        return self._fleet.backlog

    def stop(self) -> None:
        if self.notifier is not None:
            self.notifier.stopping("winding down")


def report_line(live: HealthCheck, ready: HealthCheck) -> str:
    """Return the line with which a worker reports its health to its supervisor."""
    return f"health {live.is_well:d} {ready.is_well:d} {live.why if not live.is_well else ready.why}"


def fact_lines(facts: bytes, backlog: Page | None) -> Iterator[str]:
    """Yield the lines in which a worker reports its counts and the backlog. The counts may take several lines. Each includes its
    own number and the number of lines, because some may be lost."""
    text = base64.b64encode(facts).decode()
    parts = [text[at : at + MAX_PART] for at in range(0, len(text), MAX_PART)]
    for number, part in enumerate(parts):
        yield f"facts {number} {len(parts)} {part}"
    if backlog is not None:
        yield f"backlog {backlog[1].decode()}"


class WorkerReport(NamedTuple):
    at: float
    is_live: bool
    is_ready: bool
    why: str


class Fleet:
    """The combined health of all workers. It's good as long as one worker is healthy: the supervisor replaces the others, and a failed
    probe would end the supervisor and all runs. The supervisor's thread writes, and the thread that answers probes reads."""

    def __init__(self) -> None:
        self._workers: dict[int, WorkerReport] = {}
        self._facts: dict[int, bytes] = {}
        self._parts: dict[int, list[str]] = {}
        self._ended: list[bytes] = []
        self._lock = threading.Lock()  # guards `_facts` and `_ended`
        self.backlog: Page | None = None
        self.has_worked = False

    def note(self, pid: int, news: str | ExitStatus) -> None:
        if isinstance(news, ExitStatus):
            self._workers.pop(pid, None)
            self._parts.pop(pid, None)
            with self._lock:
                if (facts := self._facts.pop(pid, None)) is not None:
                    self._ended.append(facts)
                    if len(self._ended) > MAX_ENDED:
                        self._add_up_ended()
            return
        match news.split(" ", 3):
            case ["health", live, ready, why]:
                self._workers[pid] = WorkerReport(time.monotonic(), live == "1", ready == "1", why)
            case ["session", _]:
                self.has_worked = True
            case ["facts", number, count, part]:
                parts = self._parts.setdefault(pid, [])
                with self._lock, contextlib.suppress(ValueError):  # a job has written to one of taskflow's file descriptors
                    del parts[int(number) :]
                    if len(parts) == int(number):  # otherwise a line was lost
                        parts.append(part)
                    if len(parts) == int(count):
                        self._facts[pid] = base64.b64decode("".join(parts))
            case ["backlog", found]:
                self.backlog = ("application/json", found.encode() + b"\n")

    def metrics(self) -> Page | None:
        """Return the metrics of all workers, including the counts of ended ones; None if no worker has reported any."""
        if not self._facts and not self._ended:
            return None
        from taskflow.telemetry.prometheus import CONTENT_TYPE, page_of
        from taskflow.worker.measuring import unpack_facts

        with self._lock:
            ended, living = self._add_up_ended(), list(self._facts.values())
        return CONTENT_TYPE, page_of([*map(unpack_facts, living), ended])

    def _add_up_ended(self) -> WorkerFacts:
        from taskflow.worker.measuring import WorkerFacts, pack_facts, unpack_facts

        total = WorkerFacts(measures=b"")
        for facts in self._ended:
            total = total.plus(unpack_facts(facts).ended())
        self._ended[:] = [pack_facts(total)]
        return total

    def live(self) -> HealthCheck:
        return self._check("alive", "a worker is alive", lambda worker: worker.is_live, if_none=True)

    def ready(self) -> HealthCheck:
        well = "the broker answers a worker's heartbeats, claims and settlements"
        return self._check("ready", well, lambda worker: worker.is_live and worker.is_ready, if_none=False)

    def _check(self, word: str, well: str, is_well: Callable[[WorkerReport], bool], *, if_none: bool) -> HealthCheck:
        workers, now = list(self._workers.values()), time.monotonic()
        for number, worker in enumerate(workers):
            if (silence := now - worker.at) >= SILENCE_TIMEOUT:
                workers[number] = WorkerReport(worker.at, False, False, f"it has been silent for {silence:.0f} s")
        live, ready = (sum(worker.is_live for worker in workers), sum(worker.is_live and worker.is_ready for worker in workers))
        facts: dict[str, float | int | str | None] = {"workers": len(workers), "live": live, "ready": ready}
        if not workers:
            return HealthCheck(if_none, "no worker has started yet", facts)
        if any(map(is_well, workers)):
            return HealthCheck(True, well, facts)
        return HealthCheck(False, f"no worker is {word}: {workers[0].why}", facts)


class SystemdNotifier:
    """Sends notifications to systemd (sd_notify(3)) from a separate thread, so that a blocked socket delays nothing else."""

    def __init__(self, address: str, watchdog: float | None, live: Callable[[], HealthCheck]) -> None:
        """Send to `address`. If `watchdog`, systemd's time limit in seconds, is given, also send a keep-alive every `watchdog / 2` seconds
        while the check `live` succeeds."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._interval = watchdog / 2 if watchdog is not None else None
        self._live = live
        self._messages = queue.SimpleQueue[tuple[str, ...] | None]()  # None ends the thread
        self._has_failed = self._is_ready = self._is_stopping = self._is_unwell = False
        self._status = "STATUS=starting"

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str], live: Callable[[], HealthCheck]) -> Self | None:
        """Create a notifier from NOTIFY_SOCKET and the watchdog's variables, or return None if there is no usable socket. The variables are
        removed, as sd_notify(3) advises, because programs that jobs start must not send notifications for the worker."""
        address, microseconds, pid = (environment.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
        if not address:
            return None
        if address[0] not in "/@":
            log.warning("NOTIFY_SOCKET=%s is neither a path nor an abstract socket: systemd gets no notifications", address)
            return None
        is_watched = microseconds.isascii() and microseconds.isdigit() and int(microseconds) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(microseconds) / 1e6 if is_watched else None, live)

    def ready(self, status: str) -> None:
        """Report `status`. The first time, also report that the worker is ready."""
        self._status = f"STATUS={status}"
        self._messages.put((self._status,) if self._is_ready else ("READY=1", self._status))
        self._is_ready = True

    def stopping(self, status: str) -> None:
        self._is_stopping, self._status = True, f"STATUS={status}"
        self._messages.put(("STOPPING=1", self._status))

    def start(self) -> None:
        self._thread = start_thread(self._send_messages, "taskflow-notify")

    def stop(self) -> None:
        if not self._is_stopping:
            self.stopping("ending")
        self._messages.put(None)
        self._thread.join(2 * SEND_TIMEOUT)

    def _send_messages(self) -> None:
        keep_alive_at = time.monotonic() if self._interval is not None else None
        while True:
            try:
                message = self._messages.get(timeout=None if keep_alive_at is None else max(0.0, keep_alive_at - time.monotonic()))
            except queue.Empty:
                keep_alive_at = time.monotonic() + self._send_keep_alive()
                continue
            if message is None:
                return
            self._send(*message)

    def _send_keep_alive(self) -> float:
        """Send a keep-alive message if the worker is alive, otherwise the problem. Return the seconds until the next check."""
        found, interval = self._live(), self._interval or RECHECK_INTERVAL
        if not found.is_well:
            self._is_unwell = True
            self._send(f"STATUS={found.why}")
            return min(RECHECK_INTERVAL, interval)
        self._send("WATCHDOG=1", *([self._status] if self._is_unwell else []))
        self._is_unwell = False
        return interval

    def _send(self, *lines: str) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SEND_TIMEOUT)
                sender.sendto("\n".join(map(one_line, lines)).encode(), self._address)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                log.warning("cannot notify systemd about this worker: NOTIFY_SOCKET: %s", error)
