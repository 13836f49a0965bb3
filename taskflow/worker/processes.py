"""Starts and reaps worker processes for the supervisor, reads their reports, and waits for signals.

This module imports neither an event loop nor the application, so that the supervisor needs little more memory than Python itself."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from taskflow.worker.children.syscalls import ExitStatus, OutOfMemory, resident_memory, spawn_in_session
from taskflow.worker.supervisor import Supervisor, SupervisorOptions

SUPERVISED: Final = "TASKFLOW_SUPERVISED"
"""The environment variable that leads a worker to its supervisor: the
descriptor of the socket between them, the supervisor's pid, and the worker's slot."""

RETIRE: Final = b"retire\n"
"""The supervisor's message that asks a worker to retire. The other message is ``died
SESSION CAUSE``: the worker reports the death to the broker and answers ``reported SESSION``."""

MEMORY_INTERVAL: Final = 1.0
MAX_LINE_LENGTH: Final = 4096
READ_AT_ONCE: Final = 4096

REPORT_INTERVAL: Final = 5.0
DEATH_TTL: Final = 300.0  # seconds after which a death is no longer reported, because by then the session has lapsed anyway
CHANGED: Final = 0  # sent in place of a signal number when files have changed. No signal has this number.
FileWatch = Callable[[Callable[[], None]], None]
"""Starts watching files, and calls its argument from a separate thread when they have changed."""


def supervise(
    options: SupervisorOptions,
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    watch: FileWatch | None = None,
    on_news: Callable[[int, str | ExitStatus], None] = lambda pid, news: None,
    on_stop: Callable[[], None] = lambda: None,
) -> int:
    """Keep the workers running until all have ended for good, and return the exit code. Each worker is a process that runs `command`
    with `environment` (default: that of this process). When a worker crashes, another running worker or the next one reports its death to
    the broker. `watch` starts a file watch: when files change, the workers are replaced. `on_news` receives each report or exit status
    with the process's pid, and `on_stop` is called when the supervisor is asked to stop."""
    with SignalPipe() as signals, Processes(command, signals, environment) as processes:
        if watch is not None:
            watch(signals.record_change)
        supervisor = Supervisor(options, processes)
        measure_at = 0.0 if options.max_memory is not None else float("inf")
        while True:
            timeout = supervisor.act()
            if supervisor.code is not None:
                return supervisor.code
            processes.wait(min(timeout, max(0.0, measure_at - time.monotonic())))
            for pid, said in processes.news():
                on_news(pid, said)
                if isinstance(said, ExitStatus):
                    supervisor.ended(pid, said)
                else:
                    supervisor.record_report(pid, said)
            for number in signals.take():
                if number in (signal.SIGTERM, signal.SIGINT):
                    supervisor.stop(number)
                    on_stop()
                elif number == signal.SIGHUP:
                    supervisor.hang_up() if signals.has_lost_terminal() else supervisor.roll()
                elif number == CHANGED:
                    supervisor.reload()
            if time.monotonic() >= measure_at:
                measure_at = time.monotonic() + MEMORY_INTERVAL
                for pid in processes.pids():
                    supervisor.record_memory(pid, resident_memory(pid))


class Processes:
    """Starts worker processes, each in a separate POSIX session that a terminal's Ctrl-C does not reach, and talks to them."""

    def __init__(self, command: Sequence[str], signals: SignalPipe, environment: Mapping[str, str] | None = None) -> None:
        self._command = list(command)
        self._environment = os.environ if environment is None else environment
        self._selector = selectors.DefaultSelector()
        self._selector.register(signals, selectors.EVENT_READ)
        self._sockets: dict[int, WorkerSocket] = {}
        self._out_of_memory = OutOfMemory()
        self._deaths: dict[str, tuple[bytes, float]] = {}  # for each session, the message to send and when the death was recorded
        self._remind_at = 0.0

    def start(self, slot: int) -> int:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.set_inheritable(True)
            environment = {**self._environment, SUPERVISED: f"{theirs.fileno()} {os.getpid()} {slot}"}
            try:
                pid = spawn_in_session(self._command, environment)
            except BaseException:
                ours.close()
                raise
        self._sockets[pid] = worker_socket = WorkerSocket(ours)
        self._selector.register(worker_socket, selectors.EVENT_READ)
        return pid

    def signal(self, pid: int, number: int) -> None:
        if pid in self._sockets:  # not reaped yet, so no other process can have its pid
            os.kill(pid, number)

    def retire(self, pid: int) -> bool:
        return pid in self._sockets and self._sockets[pid].say(RETIRE)

    def record_death(self, session: bytes, cause: str) -> None:
        """Make the workers that have a session report the death to the broker, until one has done so. Repeated reports do no harm."""
        self._deaths[session.hex()] = f"died {session.hex()} {cause}\n".encode(), time.monotonic()
        self._remind()

    def pids(self) -> list[int]:
        return list(self._sockets)

    def wait(self, timeout: float) -> None:
        """Wait for a report, the end of a process or a signal, for at most `timeout` seconds. Also repeat reports of deaths when due."""
        self._selector.select(timeout)
        now = time.monotonic()
        self._out_of_memory.check(now)
        if now >= self._remind_at:
            self._deaths = {session: death for session, death in self._deaths.items() if now < death[1] + DEATH_TTL}
            self._remind()

    def news(self) -> Iterator[tuple[int, str | ExitStatus]]:
        """Yield each report or exit status with its process's pid. A worker's exit status comes last. As process 1, also reap orphans."""
        for pid, worker_socket in self._sockets.items():
            for line in worker_socket.take():
                self._record_line(worker_socket, line)
                yield pid, line
            if worker_socket.is_closed:
                self._unregister(worker_socket)  # otherwise its end would wake the loop again and again
        while (reaped := _reap()) is not None:
            pid, status = reaped
            if (worker := self._sockets.pop(pid, None)) is not None:
                yield from ((pid, line) for line in worker.take())
                self._unregister(worker)
                worker.close()
            yield pid, self._out_of_memory.exit_status(status)

    def _record_line(self, worker_socket: WorkerSocket, line: str) -> None:
        match line.split():
            case ["session", _]:
                worker_socket.has_session = True
                self._say_deaths(worker_socket)
            case ["reported", session]:
                self._deaths.pop(session, None)

    def _remind(self) -> None:
        self._remind_at = time.monotonic() + REPORT_INTERVAL
        for worker_socket in self._sockets.values():
            if worker_socket.has_session:
                self._say_deaths(worker_socket)

    def _say_deaths(self, worker_socket: WorkerSocket) -> None:
        for words, _ in self._deaths.values():
            worker_socket.say(words)

    def _unregister(self, worker_socket: WorkerSocket) -> None:
        if worker_socket in self._selector.get_map():
            self._selector.unregister(worker_socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the sockets. If a bug has left workers running, they notice the closed sockets and exit."""
        self._selector.close()
        for worker_socket in self._sockets.values():
            worker_socket.close()


def _reap() -> tuple[int, int] | None:
    """Reap a child process that has ended. Return its pid and status, or None if there is none."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


class WorkerSocket:
    def __init__(self, end: socket.socket) -> None:
        self.is_closed = False
        self.has_session = False
        self._end = end
        self._end.setblocking(False)
        self._rest = b""

    def fileno(self) -> int:
        return self._end.fileno()

    def take(self) -> list[str]:
        """Return the lines that have arrived, without waiting."""
        lines = list[bytes]()
        while not self.is_closed:
            try:
                chunk = self._end.recv(MAX_LINE_LENGTH)
            except BlockingIOError:
                break
            except OSError:  # the other end closed it with unread data
                chunk = b""
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            lines += whole
            self.is_closed = not chunk or len(self._rest) > MAX_LINE_LENGTH * 16
        return [line.decode("ascii", "replace") for line in lines]

    def say(self, word: bytes) -> bool:
        """Send a message. Return False if it could not be sent."""
        try:
            return self._end.send(word) == len(word)
        except OSError:
            return False

    def close(self) -> None:
        self._end.close()


class SignalPipe:
    """Turns signals and file changes into bytes in a pipe. The signal handlers do nothing, so they interrupt nothing."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._before: dict[int, Any] = {}
        self._had_terminal = _has_terminal()

    def fileno(self) -> int:
        return self._reader

    def take(self) -> bytes:
        """Return the bytes that have arrived since the last call, in order. Each is a signal number or CHANGED."""
        try:
            return os.read(self._reader, READ_AT_ONCE)
        except BlockingIOError:
            return b""

    def record_change(self) -> None:
        """Record that files have changed. May be called from any thread."""
        os.write(self._writer, bytes([CHANGED]))

    def has_lost_terminal(self) -> bool:
        """Return True if the terminal in which this process was started is gone. A SIGHUP then reports this, and asks for no restart."""
        return self._had_terminal and not _has_terminal()

    def __enter__(self) -> Self:
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # under nohup, SIGHUP stays ignored
                self._before[number] = signal.signal(number, lambda number, frame: None)  # Python writes the number into the pipe
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
