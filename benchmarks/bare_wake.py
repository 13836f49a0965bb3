"""The bare wake-up between two processes on a SQLite file: one commits a row and sends a datagram; the other reads the row and the time.

Run as a program (`python -m benchmarks.bare_wake FILE SOCKET`), this module is the second process.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from benchmarks import bare_sqlite
from benchmarks.processes import python


def wake_ups(folder: Path, times: int) -> list[float]:
    """Return the seconds from just before the insert to the moment when the other process has read the row."""
    file, address = folder / "bare.db", folder / "wake"
    with closing(bare_sqlite.open_file(file, "FULL")) as connection, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        command = [python(), "-m", "benchmarks.bare_wake", str(file), str(address)]
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
        assert other.stdout is not None
        other.stdout.readline()  # it listens
        taken = [_one(connection, sender, address, other.stdout.readline) for _ in range(times)]
        sender.sendto(b"", str(address))
        other.wait()
        other.stdout.close()
    return taken


def _one(connection: sqlite3.Connection, sender: socket.socket, address: Path, answer: Callable[[], str]) -> float:
    time.sleep(0.02)
    began = time.monotonic()
    connection.execute("INSERT INTO jobs (id, payload) VALUES (?, ?)", (os.urandom(16), b"\x80"))
    sender.sendto(b"!", str(address))
    return float(answer()) - began


def _listen(file: str, address: str) -> None:
    last = 0
    with closing(sqlite3.connect(file, isolation_level=None)) as connection, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        print("listening", flush=True)
        while listener.recv(16):
            [(last, _)] = connection.execute("SELECT seq, payload FROM jobs WHERE state = 0 AND seq > ? LIMIT 1", (last,))
            print(time.monotonic(), flush=True)


if __name__ == "__main__":
    _listen(*sys.argv[1:])
