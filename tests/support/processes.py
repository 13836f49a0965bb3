"""Temporary servers for tests: they start on a free port, can be crashed and suspended, and always end with the test run."""

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
"""Seconds for a start, an initdb or a shutdown on a busy machine. Whatever takes longer is considered stuck."""

_POLL: Final = 0.003
"""Seconds between two checks whether a server has started, which takes at least 0.02 s."""

_LOG_TAIL: Final = 2_000
"""The number of characters of a server's log that an error includes."""

_WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS: Final = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

_PORTS: Final = range(15_000 + _WORKER, 32_000, _WORKERS)
"""The ports are below the kernel's ephemeral range (32768 and up): a client that keeps connecting to such a port while its server is down
can be given that very port, and would connect to itself. Parallel test workers use different ports."""

_CHANCE: Final = random.SystemRandom()
"""A generator that cannot be seeded: two processes with the same seed would try the same ports."""

_ORDINARY_USERS: Final = ("postgres", "nobody")
"""The users to run a server as that refuses root. The first one that exists is used; the second exists on every Unix."""

_ENOUGH: Final = 1 << 30
"""Bytes that must be free in memory. A container may provide 64 MB, which a few databases fill."""


def free_port() -> int:
    """Return a port of 127.0.0.1 on which no program is listening, and which the kernel does not assign to connecting programs."""
    while True:
        port = _CHANCE.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


def ordinary_user() -> str | None:
    """Return the user to run programs as that refuse root, or None if this process is not root.

    Raises:
        ServerFailed: this process is root, and there is no other user.
    """
    if os.geteuid() != 0:
        return None
    for name in _ORDINARY_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise ServerFailed(f"this server refuses to run as root, and there is no user {' or '.join(_ORDINARY_USERS)} on this machine")


def new_folder(kind: str, user: str | None = None, under: Path | None = None) -> Path:
    """Create an empty folder that `user` may write to, in memory unless `under` is given. The caller removes it."""
    folder = Path(tempfile.mkdtemp(prefix=f"taskflow-{kind}-", dir=under or _fast_folder()))
    if user is not None:
        folder.chmod(0o755)
        shutil.chown(folder, user)
    return folder


def run_folder(kind: str, user: str | None = None) -> Path:
    """Create an empty folder like `new_folder` that exists until this process ends."""
    folder = new_folder(kind, user)
    atexit.register(_release, os.getpid(), folder, Watchdog(folder))
    return folder


def run_as(user: str | None, command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """Run a short command in a folder that every user may enter, and return the completed process.

    Raises:
        OSError: the user cannot run it.
    """
    return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=TIMEOUT, check=False, **_identity(user))


class OwnServer(ABC):
    """A temporary server, on a port and in a folder that stay the same when it is restarted.

    The process always ends with the test run, even after SIGKILL. As a context manager, it runs inside the block and leaves nothing
    behind.
    """

    kind: ClassVar[str]
    last_signal: ClassVar[Signals] = SIGKILL
    """The signal that ends the process at once, with everything that it started, if no clean shutdown is possible."""

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
        """Return its complete log."""
        path = self.folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> Self:
        """Start it, and return once it answers.

        Raises:
            ServerFailed: it ended, or did not answer in time. The message contains the end of its log.
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
        """End it as in a crash. Does nothing if it is not running."""
        self._end(SIGKILL)

    def suspend(self) -> None:
        """Suspend it: connections stay open and new ones are accepted, but nothing else happens until `resume`. Returns once it is
        suspended."""
        self._running().suspend()

    def resume(self) -> None:
        self._running().signal(SIGCONT)

    def remove(self) -> None:
        """End it and remove its files."""
        self._resources.clear()

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """Return the command that runs it in the foreground."""

    @abstractmethod
    def _answers(self) -> bool:
        """Return True if the process that was started last is ready."""

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
    """Ends a process and removes its folder once this process is gone, even after SIGKILL.

    It is a shell at the other end of a pipe. The kernel's PR_SET_PDEATHSIG would act too early: it depends on the thread that started
    the process, and a thread may end before the test that it serves.
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
        """Also end this process."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(b"%d\n" % pid)
        self._shell.stdin.flush()

    def dismiss(self) -> None:
        """End the watchdog, which then touches nothing."""
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
"""Waits until a process has ended. Zombies count as ended: they have no working folder."""


class _Resources:
    """The resources of a server: a folder, and a process if it is running."""

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
    """A process that ends when this one does. If this process is killed, its folder is removed too."""

    def __init__(self, command: Sequence[str], folder: Path, user: str | None, last_signal: Signals) -> None:
        self.last_signal = last_signal
        self._watchdog = Watchdog(folder, last_signal)
        with (folder / "server.log").open("ab") as log:
            # In a separate session, because a Ctrl-C at the terminal must reach only the tests, which may still need their server.
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
    """End the process and the watchdog, unless this is a fork of the owner, whose children do not belong to the fork."""
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
    """Return the running child processes of this process."""
    found = list[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name before the last bracket may contain any characters. The state and the parent follow it.
            state, its_parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(its_parent) == parent and state not in "ZX":
                found.append(int(folder.name))
    return found


def is_stopped(pid: int) -> bool:
    """Return True if the process is suspended or has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZX"
    except OSError:
        return True


def kill_all(pids: Iterable[int]) -> None:
    """Send SIGKILL to these processes, and return once they have ended."""
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
    """Return the options that make a subprocess run as this user, without any of our groups."""
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def _fast_folder() -> Path | None:
    """Return an in-memory file system with enough room, or None. The suite doesn't measure fsync."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free >= _ENOUGH else None
