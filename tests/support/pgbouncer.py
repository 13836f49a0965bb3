"""A real pgbouncer before a Postgres server, with which every transaction may run on another connection."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from signal import SIGQUIT
from typing import Final, Self

from tests.support.binaries import ServerFailed
from tests.support.postgres import PostgresServer, asked, url_of
from tests.support.processes import HOST, OwnServer, ordinary_user

_NAMED: Final = os.environ.get("TASKFLOW_PGBOUNCER", "")
"""Read at once: fixtures take away the settings of the machine that begin so."""

_COMMAND: Final = "pgbouncer"

_SYSTEM_FOLDERS: Final = "/usr/sbin:/usr/local/sbin"
"""Debian's lies in the first, which is not on the PATH of an ordinary user."""

_UP: Final = "process up: PgBouncer"
"""It logs so once it listens."""


@cache
def the_pgbouncer_binary() -> Path:
    """The one of TASKFLOW_PGBOUNCER, or on PATH, or where Debian puts it.

    Raises:
        ServerFailed: this machine has none. It is an error and no reason to skip: a suite that tests nothing must not pass.
    """
    if _NAMED:
        return Path(_NAMED)
    if path := shutil.which(_COMMAND) or shutil.which(_COMMAND, path=_SYSTEM_FOLDERS):
        return Path(path)
    raise ServerFailed("no pgbouncer to test with: apt-get install pgbouncer, or set TASKFLOW_PGBOUNCER to the path of one")


def is_there() -> bool:
    try:
        return the_pgbouncer_binary().exists()
    except ServerFailed:
        return False


class PgBouncer(OwnServer):
    """A pgbouncer of the test's own in transaction mode, on a port that stays the same. It lets everyone in, as the superuser.

    Whatever becomes of the test run, SIGKILL too, the process ends with it. As a context manager it is running inside, and leaves
    nothing behind. Where we are root it runs as an ordinary user. The server before which it stands may come and go.

    Args:
        server: where it connects to.
        max_prepared_statements: how many it keeps for each connection to the server; with 0 it knows none, and a client that
            prepares one finds it missing in the next transaction.
        pool_size: connections to the server, for each database, at most.
        settings: lines of its configuration beside, such as {"query_wait_timeout": "1"}; they win.
    """

    kind = "pgbouncer"

    def __init__(
        self,
        server: PostgresServer,
        *,
        max_prepared_statements: int = 0,
        pool_size: int = 20,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(the_pgbouncer_binary(), user=ordinary_user())
        self._seen = 0
        given = {
            "listen_addr": HOST,
            "listen_port": str(self.port),
            "unix_socket_dir": str(self.folder),
            "auth_type": "any",
            "admin_users": "postgres",
            "pool_mode": "transaction",
            "max_prepared_statements": str(max_prepared_statements),
            "default_pool_size": str(pool_size),
            **(settings or {}),
        }
        databases = f"[databases]\n* = host={HOST} port={server.port} user=postgres\n"
        self._config.write_text(databases + "[pgbouncer]\n" + "".join(f"{name} = {value}\n" for name, value in given.items()))

    @property
    def dsn(self) -> str:
        """The database postgres, by way of this."""
        return self.url()

    def url(self, database: str = "postgres", user: str = "postgres", password: str | None = None) -> str:
        """Where that database is, by way of this."""
        return url_of(self.port, database, user, password)

    def command(self, text: str) -> None:
        """Say that to its admin, such as "PAUSE", "RESUME", "RECONNECT" or "KILL taskflow_1", and return once it has been done.

        Raises:
            asyncpg.PostgresError: as it says.
        """
        asked(self.url("pgbouncer"), lambda connection: connection.execute(text))

    def start(self) -> Self:
        self._seen = len(self.log)
        return super().start()

    def stop(self) -> None:
        """End it at once, and its connections with it: versions differ in what else they would wait for. Nothing where it does not run."""
        self._end(SIGQUIT)

    def restart(self) -> Self:
        """End it unless it is down, and run it again on the same port."""
        self.stop()
        return self.start()

    @property
    def _config(self) -> Path:
        return self.folder / "pgbouncer.ini"

    def _command(self) -> Sequence[str]:
        return [str(self.binary), str(self._config)]

    def _answers(self) -> bool:
        return _UP in self.log[self._seen :]
