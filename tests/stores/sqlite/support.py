"""What the tests of the SQLite broker share."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from taskflow.broker.sqlite import SqliteBroker

NOBODY: Final = 65_534
_ROOT: Final = Path(__file__).parents[3]

_PRELUDE: Final = """
import asyncio, os, sqlite3, sys, threading, time, warnings
from taskflow.broker.sqlite import SqliteBroker
from taskflow.model.errors import BrokerRefused, BrokerUnavailable, StoreFull
from tests.stores.jobs import an_envelope, envelopes, registered
from tests.support.verdicts import succeeded

warnings.simplefilter("ignore", DeprecationWarning)  # that forking with threads has its dangers
broker = SqliteBroker(sys.argv[1])
"""
"""The beginning of each script. Its first argument is the path of a store."""


class Open(Protocol):
    def __call__(self, at: Path = ..., **options: Any) -> SqliteBroker: ...


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Hold the write lock, as another program."""
    with connected(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def started(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run the script in a separate Python, which is killed at the end."""
    command = [sys.executable, "-c", _PRELUDE + textwrap.dedent(script), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def run_script(script: str, *arguments: object, within: Sequence[str] = (), **options: Any) -> str:
    """Return the script's output in a separate Python, which must succeed without further output. `within` is a program to run it in."""
    command = [*within, sys.executable, "-c", _PRELUDE + textwrap.dedent(script), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=_ROOT, **options)
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    return str(run.stdout)


@contextmanager
def shared_folder(mode: int) -> Iterator[Path]:
    """A folder that other users may enter. They may not enter pytest's own."""
    folder = Path("/tmp") / f"taskflow-{os.getpid()}-{os.urandom(4).hex()}"
    folder.mkdir()
    folder.chmod(mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


_USES: Final = """
async def use(broker):
{}

async def use_or_say_why_not(path):
    broker = SqliteBroker(path)
    try:
        await use(broker)
    except BrokerRefused as refused:
        print(refused)
    await broker.close()

asyncio.run(use_or_say_why_not(sys.argv[1]))  # loads all that it needs: another user may not read it where it lies
print("as the other:")
os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[2]))
for path in sys.argv[3:]:
    asyncio.run(use_or_say_why_not(path))
"""


def used_by_nobody(own: Path, use: str, *paths: Path) -> str:
    """Return the output of another user who uses stores this way, first an own one. Coverage could not write its data as that user."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    script = _USES.format(textwrap.indent(textwrap.dedent(use), "    "))
    return run_script(script, own, NOBODY, *paths, env=environment).partition("as the other:\n")[2]


def wake_files(path: Path) -> list[str]:
    folder = path.with_name(path.name + "-wake")
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []
