"""Supervised workers, their processes, and signals to them."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

from taskflow.worker.children.syscalls import SAME_SIGNAL
from tests.cli.processes import Running, Shell, until

# How Python reacts to a SIGINT before our first line is run: it dies, or fails to load.
PYTHONS_OWN = (-signal.SIGINT, 1)
# It may also lose it: an import before our first line has callbacks in which the interpreter drops every exception.
LOST_BY_PYTHON = re.compile(
    r"^Exception ignored .*(?:_get_module_lock|KeyedRef\.remove).*\n(?:.*\n){0,3}?KeyboardInterrupt:? *$", re.MULTILINE
)


def a_little_later() -> None:
    """Wait, because the process, which may have to wait for a processor, can take two signals in quick succession for one."""
    time.sleep(6 * SAME_SIGNAL)


def workers(shell: Shell, processes: int, *arguments: str) -> Running:
    """Start this many workers, and return their supervisor once they work."""
    started = shell.taskflow("worker", "tasks", "--processes", str(processes), *arguments)
    started.wait_for("working as", times=processes)
    return started


def pids(running: Running) -> list[int]:
    """Return the pids of all workers that it has ever started, in their order."""
    return [int(pid) for pid in re.findall(r"worker (\d+) started", running.said)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def none_is_left(running: Running) -> None:
    """Assert that none of its workers is left. One that is ending at this moment may do so."""
    until(lambda: not any(map(is_alive, pids(running))), running)


ON_A_TERMINAL = "import os, sys; os.execvp('setsid', ['setsid', '--ctty', sys.executable, *sys.argv[1:]])"


IN_A_CONTAINER = "import os, sys; os.execvp('unshare', ['unshare', *sys.argv[1].split(), sys.executable, *sys.argv[2:]])"


def interrupt(running: Running) -> None:
    """Send a SIGINT and wait for the end."""
    running.signal(signal.SIGINT)
    interrupt_again_if_lost(running)


def interrupt_again_if_lost(running: Running) -> None:
    """Wait for the end. If Python lost a SIGINT before our first line, send another, as a user does."""
    until(lambda: running.process.poll() is not None or LOST_BY_PYTHON.search(running.said) is not None, running)
    if running.process.poll() is None:
        running.signal(signal.SIGINT)
