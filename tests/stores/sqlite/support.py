"""What the tests of the SQLite broker share."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from taskflow.broker.protocol import Broker
from taskflow.broker.sqlite import SqliteBroker
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.ids import IdFactory
from taskflow.model.session import Session
from taskflow.model.verdict import Settlement, Succeeded

_an_id = IdFactory()

NOBODY = 65_534


class Open(Protocol):
    def __call__(self, at: Path = ..., **options: Any) -> SqliteBroker: ...


def an_envelope(**fields: Any) -> Envelope:
    return Envelope(**{"id": _an_id(), "job": "work", "payload": b"payload", **fields})


def envelopes(number: int, **fields: Any) -> list[Envelope]:
    return [an_envelope(**fields) for _ in range(number)]


def a_session(name: str = "worker", **fields: Any) -> Session:
    return Session(id=os.urandom(16), name=name, **fields)


async def registered(broker: Broker) -> Session:
    session = a_session()
    await broker.register(session)
    return session


def succeeded(lease: Lease) -> Settlement:
    return Settlement(id=lease.envelope.id, epoch=lease.epoch, claim=lease.claim, verdict=Succeeded(b"result"))


@contextmanager
def connected(path: Path, **options: Any) -> Iterator[sqlite3.Connection]:
    """A stranger's connection."""
    connection = sqlite3.connect(path, isolation_level=None, **options)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody holds the write lock."""
    with connected(path, check_same_thread=False) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def another_that_holds(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process has the write lock, until it is killed."""
    script = """
        import sqlite3, sys, time
        sqlite3.connect(sys.argv[1], isolation_level=None).execute("BEGIN IMMEDIATE")
        print("ready", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def run_script(script: str, *arguments: object, timeout: float = 30, **options: Any) -> str:
    """What the script prints, in a Python of its own, which must end well and say nothing on stderr."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    said: str = run.stdout
    return said


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
import asyncio, os, sys
from taskflow.broker.sqlite import SqliteBroker
from taskflow.model.errors import BrokerRefused
from tests.stores.sqlite.support import an_envelope

async def use(broker):
{}

async def use_or_say_why_not(path):
    broker = SqliteBroker(path)
    try:
        await use(broker)
    except BrokerRefused as refused:
        print(refused)
    await broker.close()

asyncio.run(use_or_say_why_not(sys.argv[2]))  # loads all that it needs: another user may not read it where it lies
print("as the other:")
os.setgid(int(sys.argv[1])), os.setuid(int(sys.argv[1]))
for path in sys.argv[3:]:
    asyncio.run(use_or_say_why_not(path))
"""


def used_by_nobody(own: Path, use: str, *paths: Path) -> str:
    """Return what another user prints who uses stores so. They take an own one first. Coverage could not write what it measures of them."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    script = _USES.format(textwrap.indent(textwrap.dedent(use), "    "))
    return run_script(script, NOBODY, own, *paths, env=environment).partition("as the other:\n")[2]


def files(path: Path) -> list[str]:
    """Return the names of the files by which senders find listeners."""
    folder = path.with_name(path.name + "-wake")
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []
