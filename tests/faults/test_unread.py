"""The log's pipe is full, because its reader has stopped: every writer waits for ever."""

from __future__ import annotations

import os
import re
import signal

from taskflow.cli.exit_codes import Exit
from tests.cli.processes import Running, Shell
from tests.cli.supervised import a_little_later, is_alive
from tests.support.processes import children_of

TASKS = """
from taskflow import job

@job
async def work() -> None: ...
"""

# Reads until the worker works, and then stops. It opens the pipe again, because the worker's own descriptor has to block.
UNREAD = """
import fcntl, os, subprocess, sys
reader, writer = os.pipe()
fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
worker = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=writer, stderr=writer)
said = b""
while b"working as" not in said:
    said += os.read(reader, 4096)
filler = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK)
try:
    while True:
        os.write(filler, b" ")
except BlockingIOError:
    print("full", flush=True)
code = worker.wait()
print(f"ended with {code}", flush=True)
"""


def unread(shell: Shell, *flags: str) -> Running:
    """Return a worker that works, and whose log is full."""
    return shell.start("-c", UNREAD, "-m", "taskflow", "worker", "tasks", "--grace", "0.1", *flags)


def test_a_worker_ends_even_if_its_output_is_not_read(shell: Shell) -> None:
    """It ends by itself or by its supervisor; after one signal, by force once its time is over, and after three at once. None of it is
    left."""
    ways = [((), 1, Exit.FORCED), (("--processes", "1"), 1, Exit.FORCED), (("--processes", "1"), 3, 128 + signal.SIGTERM)]
    shell.write("tasks.py", TASKS)
    started = [unread(shell, *flags) for flags, _, _ in ways]
    told: list[int] = []
    for running, (_, times, _) in zip(started, ways, strict=True):
        running.wait_for("full")
        [worker] = children_of(running.process.pid)
        told += [worker, *children_of(worker)]
        for _ in range(times):
            os.kill(worker, signal.SIGTERM)
            a_little_later()
    for running, (_, _, code) in zip(started, ways, strict=True):
        running.wait_for("ended with")
        assert re.search(rf"ended with {code:d}\b", running.said), running.said
    assert not [pid for pid in told if is_alive(pid)]
