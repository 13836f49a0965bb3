"""The start of a child's process, at the level of the system."""

from __future__ import annotations

import pytest

from tests.cli.processes import Shell

AMONG_FORKS = """
import os, signal, socket, threading, time, warnings
from taskflow.worker.children.syscalls import spawn

warnings.simplefilter("ignore")  # of forks beside threads, as jobs make them
connection, _ = socket.socketpair()
is_over = threading.Event()
forked = []

def fork():
    # Each lives to the end, and has all that was open at its moment.
    while not is_over.is_set() and len(forked) < 300:
        pid = os.fork()
        if not pid:
            time.sleep(3600)
            os._exit(0)
        forked.append(pid)

forking = threading.Thread(target=fork)
forking.start()
for _ in range(30):
    assert spawn(["/bin/sleep", "0"], connection=connection.fileno(), stdout=1, stderr=2).wait() == 0
print("none was waited for", flush=True)
is_over.set()
forking.join()
for pid in forked:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""

WITHOUT_STREAMS = """
import os, socket
ours, theirs = os.pipe()
for stream in (0, 1):
    os.close(stream)
from taskflow.worker.children.syscalls import spawn
(read, write), (connection, other) = os.pipe(), socket.socketpair()
says = "import os, socket; os.write(2, b'errors'); os.write(1, b'output'); socket.socket(fileno=3).send(os.read(0, 1) + b'connection')"
import sys
process = spawn([sys.executable, "-c", says], connection=connection.fileno(), stdout=write, stderr=theirs)
assert process.wait() == 0
os.write(2, b" ".join([os.read(read, 99), os.read(ours, 99), other.recv(99)]))
"""


@pytest.mark.parametrize(
    ("script", "said"), [(AMONG_FORKS, "none was waited for\n"), (WITHOUT_STREAMS, "output errors connection")], ids=["forks", "streams"]
)
def test_it_waits_for_no_fork_and_the_child_has_its_descriptors_whatever_the_workers_are(shell: Shell, script: str, said: str) -> None:
    """A process that a job forks at that moment has all open descriptors; a service's worker may have no stdin and no stdout."""
    assert shell.run("-c", script) == said
