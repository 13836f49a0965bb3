"""Servers of a test's own: they are started on a free port, crashed and suspended at will, and end with the run whatever becomes of it."""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import random
import select
import shutil
import socket
import subprocess
import tempfile
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, Signals, pidfd_send_signal
from typing import ClassVar, Final, Self, TypedDict

from tests.support.binaries import ServerFailed

HOST: Final = "127.0.0.1"

TIMEOUT: Final = 180.0
"""Seconds for a start, an initdb or an orderly end, on a machine with much else to do. What takes this long has hung."""

_POLL: Final = 0.003
"""Seconds between two looks at whether a server has come up, which takes it 0.02 and more."""

_LOG_TAIL: Final = 2_000
"""Characters of a server's log that go into an error."""

_WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS: Final = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

_PORTS: Final = range(15_000 + _WORKER, 32_000, _WORKERS)
"""Below the ports that the kernel gives to those who connect (32768 and up): a client that keeps trying a port of those while
its server is away can be given that very port, and is then connected to itself. Workers that run tests side by side share none."""

_CHANCE: Final = random.SystemRandom()
"""Nobody can seed it: two processes with the same seed would try the same ports."""

_ORDINARY_USERS: Final = ("postgres", "nobody")
"""Whom a server runs as that refuses root. The first that there is: the second is on every Unix."""

_ENOUGH: Final = 1 << 30
"""Bytes that have to be free in memory. A container may give it 64 MB, which a few databases fill."""


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens, and which the kernel gives to nobody that connects."""
    while True:
        port = _CHANCE.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


def ordinary_user() -> str | None:
    """Whom to run as what refuses root; None where we are no root ourselves.

    Raises:
        ServerFailed: we are root, and there is nobody else.
    """
    if os.geteuid() != 0:
        return None
    for name in _ORDINARY_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise ServerFailed(f"this server refuses to run as root, and there is no user {' or '.join(_ORDINARY_USERS)} on this machine")


def new_folder(kind: str, user: str | None = None, under: Path | None = None) -> Path:
    """An empty folder that `user` may write to, in memory unless `under` says where. Whoever asked removes it."""
    folder = Path(tempfile.mkdtemp(prefix=f"taskflow-{kind}-", dir=under or _fast_folder()))
    if user is not None:
        folder.chmod(0o755)
        shutil.chown(folder, user)
    return folder


def run_folder(kind: str, user: str | None = None) -> Path:
    """An empty folder as of `new_folder` that is there until this process ends, and not longer."""
    folder = new_folder(kind, user)
    atexit.register(_release, os.getpid(), folder, Watchdog(folder))
    return folder


def run_as(user: str | None, command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """What that short command came to, run in a folder that every user may enter.

    Raises:
        OSError: it cannot be run by that user.
    """
    return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=TIMEOUT, check=False, **_identity(user))


class OwnServer(ABC):
    """A server on a port and in a folder that stay the same however often it is started.

    Whatever becomes of the test run, SIGKILL too, the process ends with it. As a context manager it is running inside, and leaves
    nothing behind.
    """

    kind: ClassVar[str]
    last_signal: ClassVar[Signals] = SIGKILL
    """What ends it at once with all that it started, where nobody is left to ask."""

    def __init__(self, binary: Path, *, user: str | None = None, under: Path | None = None) -> None:
        self.binary = binary
        self.user = user
        self.folder = new_folder(self.kind, user, under)
        self.port = free_port()
        self._resources = _Resources(self.folder)
        weakref.finalize(self, _clean_up, os.getpid(), self._resources)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.is_running else "stopped"
        return f"<{type(self).__name__} {self.binary.name} on {HOST}:{self.port}, {state}>"

    @property
    def is_running(self) -> bool:
        return self._resources.process is not None and self._resources.process.is_alive()

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def log(self) -> str:
        """All that it has said since it was made."""
        path = self.folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> Self:
        """Run it, and return once it answers.

        Raises:
            ServerFailed: it ended, or answered nothing for 20 seconds; the message has the tail of its log.
        """
        if self.is_running:
            raise RuntimeError(f"{self!r} is running already")
        process = self._resources.process = _WatchedProcess(self._command(), self.folder, self.user, self.last_signal)
        try:
            self._wait_until_up(process)
        except ServerFailed:
            self.kill()
            raise
        return self

    def kill(self) -> None:
        """End it as a crash does. Nothing where it does not run."""
        self._end(SIGKILL)

    def suspend(self) -> None:
        """It does nothing more, though its connections stay and new ones are accepted, until it is resumed. Returns once that is so."""
        self._running().suspend()

    def resume(self) -> None:
        self._running().signal(SIGCONT)

    def remove(self) -> None:
        """End it and leave nothing behind."""
        self._resources.clear()

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """What runs it in the foreground."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the one that was started last is up."""

    def _wait_until_up(self, process: _WatchedProcess) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not self._answers():
            if not process.is_alive():
                raise ServerFailed(f"{self.binary} did not start. Its log ends:\n{self.log[-_LOG_TAIL:]}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self.binary} answers nothing after {TIMEOUT:g} s. Its log ends:\n{self.log[-_LOG_TAIL:]}")
            time.sleep(_POLL)

    def _running(self) -> _WatchedProcess:
        if self._resources.process is None:
            raise RuntimeError(f"{self!r} is not running")
        return self._resources.process

    def _end(self, how: Signals) -> None:
        self._resources.end(how)


class Watchdog:
    """Removes a folder once this process is gone, be it by SIGKILL, after ending the process in it.

    It is a shell at the other end of a pipe. The kernel's own means, PR_SET_PDEATHSIG, would come too early: it goes by the thread
    that started the process, and a thread may well end before the test that it serves.
    """

    def __init__(self, folder: Path, last_signal: Signals = SIGKILL) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "watchdog", str(folder), str(int(last_signal))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath},  # a test may have taken PATH away
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        """That process ends too."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(b"%d\n" % pid)
        self._shell.stdin.flush()

    def dismiss(self) -> None:
        """It leaves, and touches nothing."""
        self._shell.communicate(b"dismissed\n")


_WATCH: Final = """
while read said; do
    [ "$said" = dismissed ] && exit
    pid=$said
done
if [ -n "$pid" ]; then
    kill "-$2" "$pid"
    kill -CONT "$pid" $(cat "/proc/$pid/task/$pid/children")
    turns=0
    while [ -e "/proc/$pid/cwd" ] && [ "$turns" -lt 1000 ]; do
        sleep 0.01
        turns=$((turns + 1))
    done
    kill -9 "$pid"
fi
rm -rf "$1"
"""
"""Until a process has ended, dead ones that nobody has buried not counted: they have no working folder."""


class _Resources:
    """What a server leaves behind: a folder, and a process or none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: _WatchedProcess | None = None

    def end(self, how: Signals) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.end(how)

    def clear(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.end(process.last_signal)
        shutil.rmtree(self.folder, ignore_errors=True)


class _WatchedProcess:
    """A process that ends when this one does, and with its folder when this one is killed."""

    def __init__(self, command: Sequence[str], folder: Path, user: str | None, last_signal: Signals) -> None:
        self.last_signal = last_signal
        self._watchdog = Watchdog(folder, last_signal)
        with (folder / "server.log").open("ab") as log:
            # A session of its own: a Ctrl-C at the terminal is for the tests alone, which may still need their server.
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **_identity(user),
            )
        self.pid = self._process.pid
        self._finalizer = weakref.finalize(self, _kill, os.getpid(), self._process, self._watchdog, last_signal)
        self._watchdog.watch(self.pid)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: Signals) -> None:
        self._process.send_signal(number)

    def suspend(self) -> None:
        self.signal(SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def end(self, how: Signals) -> None:
        _ask_to_end(self._process, how)
        self._finalizer()


def _ask_to_end(process: subprocess.Popen[bytes], how: Signals) -> None:
    process.send_signal(how)
    process.send_signal(SIGCONT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(TIMEOUT)


def _kill(owner: int, process: subprocess.Popen[bytes], watchdog: Watchdog, last_signal: Signals) -> None:
    """Process and watchdog are gone, unless this is a fork of the owner: its children's ends are not its own."""
    if os.getpid() == owner:
        if process.poll() is None:
            _ask_to_end(process, last_signal)
        process.kill()
        process.wait()
        watchdog.dismiss()


def _clean_up(owner: int, resources: _Resources) -> None:
    if os.getpid() == owner:
        resources.clear()


def children_of(parent: int) -> list[int]:
    """The processes that this one has started and that have not ended."""
    found = list[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name before the last bracket may hold anything. State and parent follow it.
            state, its_parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(its_parent) == parent and state not in "ZX":
                found.append(int(folder.name))
    return found


def is_stopped(pid: int) -> bool:
    """Whether that process is suspended, or has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZX"
    except OSError:
        return True


def kill_all(pids: Iterable[int]) -> None:
    """These processes, ours or not, are sent SIGKILL, and have ended on return."""
    with contextlib.ExitStack() as opened:
        handles = [handle for pid in pids if (handle := _handle_of(pid, opened)) is not None]
        for handle in handles:
            with contextlib.suppress(ProcessLookupError):
                pidfd_send_signal(handle, SIGKILL)
        for handle in handles:
            select.select([handle], [], [], TIMEOUT)


def _handle_of(pid: int, opened: contextlib.ExitStack) -> int | None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    opened.callback(os.close, handle)
    return handle


def _release(owner: int, folder: Path, watchdog: Watchdog) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
        watchdog.dismiss()


class _Identity(TypedDict, total=False):
    user: str
    group: int
    extra_groups: list[int]


def _identity(user: str | None) -> _Identity:
    """What makes a subprocess that user's, with none of our groups."""
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def _fast_folder() -> Path | None:
    """A file system in memory where there is one with room: what fsync costs is not the suite's to measure."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free >= _ENOUGH else None
