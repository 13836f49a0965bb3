"""Temporary PostgreSQL servers for benchmarks: on a free port and a disk, with the default durability. They end with the benchmark."""

from __future__ import annotations

import asyncio
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Final, Self, TypeVar

import asyncpg

from benchmarks.cost import Cost
from benchmarks.processes import cpu_of_family
from tests.support.postgres import the_postgres_binary
from tests.support.processes import HOST, TIMEOUT, free_port, ordinary_user

T = TypeVar("T")

ON_DISK: Final = Path("/var/tmp")
"""A folder on a disk: its content survives a restart, whereas /tmp may be in memory."""

LOG_FILES: Final = 24
_A_RECORD: Final = "PERFORM pg_logical_emit_message(false, '', '')"  # without a record, there is no file to switch from

# The shell ends the server and removes its folder when the shell's input ends, which happens however this process ends. SIGQUIT also
# ends the server's children.
_WATCH: Final = '"$@" >/dev/null 2>server.log & read _; kill -QUIT $!; wait; cd /; rm -rf -- "$0"'


class PostgresServer:
    """A server that runs inside its block. The program is the first of TASKFLOW_POSTGRES, postgres on PATH, Debian's newest, and a wheel's.

    `under`     the folder, on a disk, in which the server's folder is created
    `settings`  settings of its configuration; fsync and synchronous_commit are on by default
    """

    trip: ClassVar[str] = "transactions/job"

    def __init__(self, *, under: Path | None = None, settings: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self._user = ordinary_user()
        self._folder = tempfile.TemporaryDirectory(prefix="taskflow-benchmark-", dir=under or _a_disk(), ignore_cleanup_errors=True)
        if self._user is not None:
            shutil.chown(self._folder.name, self._user)
        self._data = Path(self._folder.name, "data")
        self._own_transactions = 0
        self._shell: subprocess.Popen[bytes] | None = None
        self._settings = {
            "port": str(self.port),
            "listen_addresses": HOST,
            "unix_socket_directories": self._folder.name,
            "max_connections": "2000",  # for two hundred workers
            **(settings or {}),
        }

    def __enter__(self) -> Self:
        binary = the_postgres_binary().path
        flags = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        self._run([str(binary.with_name("initdb")), "--pgdata", str(self._data), *flags])
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        command = ["/bin/sh", "-c", _WATCH, self._folder.name, str(binary), "-D", str(self._data), *options]
        self._shell = subprocess.Popen(
            command, stdin=subprocess.PIPE, start_new_session=True, cwd=self._folder.name, user=self._user, group=_group(self._user)
        )
        self._wait_until_ready()
        self._age()
        return self

    def __exit__(self, *error: object) -> None:
        if self._shell is not None:
            self._shell.communicate()
        self._folder.cleanup()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{HOST}:{self.port}/postgres?tls=disable"

    @property
    def dsn(self) -> str:
        """The URL in the form that the driver accepts."""
        return dsn_of(self.url)

    @property
    def pid(self) -> int:
        return int(self._status()[0])

    def cost(self) -> Cost:
        """Return the CPU time of all its processes, and the number of transactions that connections have reported.

        A connection reports its transactions when it is closed. Before that, it may report the last ones up to ten seconds late.
        """
        [(told,)] = self.rows("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
        return Cost(cpu_of_family(self.pid), told)

    def told(self) -> int:
        query = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        [(transactions,)] = self.rows(query)
        return int(transactions) - self._own_transactions

    def sent(self) -> int:
        return self.told()

    def rest(self) -> None:
        """Make the server write changed pages to disk now, which it would otherwise do while the tables are drained."""
        self.rows("CHECKPOINT")

    def occupied(self) -> int:
        """Return the size of all tables of the schema, with their indexes, in bytes."""
        [(size,)] = self.rows(
            "SELECT sum(pg_total_relation_size(pg_class.oid))::bigint FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
            "WHERE nspname = 'taskflow' AND relkind = 'r'"
        )
        return int(size)

    def rows(self, query: str, *arguments: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query. Blocks an event loop in which it is called."""

        self._own_transactions += 2  # a connection begins with a separate transaction

        async def ask() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(self.dsn, timeout=TIMEOUT)
            try:
                return [tuple(row) for row in await connection.fetch(query, *arguments)]
            finally:
                await connection.close()

        return _in_a_thread(ask())

    def _age(self) -> None:
        """Give the server log files to recycle, like one that has been running for a while. Creating a file of 16 MiB takes 15 ms, during
        which no transaction commits."""
        fill = f"{_A_RECORD}; PERFORM pg_switch_wal();"
        self.rows(f"DO $$ BEGIN FOR i IN 1 .. {LOG_FILES} LOOP {fill} END LOOP; END $$")
        self.rows("CHECKPOINT")

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(
            command, cwd=self._folder.name, user=self._user, group=_group(self._user), capture_output=True, text=True, timeout=TIMEOUT * 3
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stdout}{done.stderr}")

    def _wait_until_ready(self) -> None:
        """Wait like pg_ctl: the server writes to its status file that it is ready."""
        give_up_at = time.monotonic() + TIMEOUT
        while len(lines := self._status()) <= 7 or lines[7].strip() != "ready":
            if time.monotonic() > give_up_at:
                raise RuntimeError(f"the server did not start: {Path(self._folder.name, 'server.log').read_text()[-2_000:]}")
            time.sleep(0.01)

    def _status(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []


def dsn_of(url: str) -> str:
    """Convert a broker URL to a form that the driver accepts."""
    return url.partition("?")[0] + "?sslmode=disable"


def the_version() -> str:
    """Return the version that the measured server reports."""
    return subprocess.run([the_postgres_binary().path, "--version"], check=True, capture_output=True, text=True).stdout.strip()


def _a_disk() -> Path | None:
    return ON_DISK if ON_DISK.is_dir() else None


def _group(user: str | None) -> int | None:
    return None if user is None else pwd.getpwnam(user).pw_gid


def _in_a_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a separate thread, because the caller may be in an event loop."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, work).result()
