"""Finds the process that holds a lock on a store's files, so that an operator does not have to search for it (Linux only).

This module only reads /proc. If a process that uses the store opened and
closed the file beside the log (`-shm`), it would drop its own locks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from taskflow.broker.sqlite.store_file import INDEX, StoreFile

_LOCKS: Final = Path("/proc/locks")
_PROCESSES: Final = Path("/proc")

_STOPPED: Final = "T"
"""The state of a process stopped by a signal (proc_pid_status(5)). A process stopped by a debugger has another state."""

_WRITER: Final = 120
"""The byte of the log's index that a writer locks (https://sqlite.org/walformat.html, section 2.3)."""


@dataclass(frozen=True, slots=True)
class LockOwner:
    """A process that blocks writers. `name` is the kernel's name for it, truncated to 15 characters."""

    pid: int
    name: str
    is_stopped: bool

    def __str__(self) -> str:
        who = f"process {self.pid} ({self.name})"
        if self.pid == os.getpid():
            return f"{who}, which is this process"
        return f"{who}, which is stopped" if self.is_stopped else who


def locked_by(store: StoreFile, *endings: str) -> str:
    """Return the end of an error message, which names the process that
    has held the lock beyond the timeout and says what to do about it."""
    holder = holder_of(store, *endings)
    if holder is not None and holder.is_stopped:
        remedy = f"continue it (kill -CONT {holder.pid}), or kill it (kill -KILL {holder.pid}), and its jobs run elsewhere"
    elif holder is not None and holder.pid == os.getpid():
        remedy = "find the connection with an open transaction on it, and end that sooner"
    else:
        remedy = "find a program with an open transaction on it (a database browser, a backup), and stop it"
    return f"is locked by {holder or 'another process'}, for longer than {store.timeout:g} s: {remedy}"


def holder_of(store: StoreFile, *endings: str) -> LockOwner | None:
    """Return a process that holds an exclusive lock on one of these files, preferably a stopped process, or None if none is found.

    A process outside this container, or one that has just released the lock, is not found.
    """
    files = {found: ending for ending in endings if (found := store.identity(ending)) is not None}
    try:
        holders = [holder for pid in sorted(set(_writers(files))) if (holder := _look(pid)) is not None]
    except (OSError, ValueError):  # another system, or a kernel with another format
        return None
    return max(holders, key=lambda holder: holder.is_stopped, default=None)


def _writers(files: Mapping[tuple[int, int], str]) -> Iterator[int]:
    """Yield the ids of processes that hold an exclusive lock on one of the files.

    Parses lines such as `1: POSIX  ADVISORY  WRITE 4711 fe:00:1234 120 120` (proc_locks(5)).
    A line with `->` describes a process that is waiting for the lock in the line above.
    """
    for line in _LOCKS.read_text().splitlines():
        match line.split():
            case [_, "POSIX" | "FLOCK" | "OFDLCK", _, "WRITE", pid, file, first, last] if (ending := files.get(_file(file))) is not None:
                if int(pid) > 0 and (ending != INDEX or int(first) <= _WRITER <= _number(last)):
                    yield int(pid)


def _file(said: str) -> tuple[int, int]:
    major, minor, inode = said.split(":")
    return os.makedev(int(major, 16), int(minor, 16)), int(inode)


def _number(last: str) -> float:
    return math.inf if last == "EOF" else int(last)


def _look(pid: int) -> LockOwner | None:
    try:
        lines = (_PROCESSES / str(pid) / "status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    known = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return LockOwner(pid, known.get("Name", "?").strip(), known.get("State", "?")[0] == _STOPPED)
