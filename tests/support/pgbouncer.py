"""A real pgbouncer in front of a Postgres server, with which every transaction may run on another connection."""

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
"""Read at import, because fixtures remove the machine's settings with this prefix."""

_COMMAND: Final = "pgbouncer"

_SYSTEM_FOLDERS: Final = "/usr/sbin:/usr/local/sbin"
"""The folders to search. Debian's pgbouncer is in the first, which is not on an ordinary user's PATH."""

_UP: Final = "process up: PgBouncer"
"""The line that it logs once it is listening."""


@cache
def the_pgbouncer_binary() -> Path:
    """Return the program named by TASKFLOW_PGBOUNCER, on PATH, or where Debian installs it.

    Raises:
        ServerFailed: this machine has none. This is an error and not a reason to skip: a suite that tests nothing must not pass.
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
    """A temporary pgbouncer in transaction mode, on a port that stays the same. It admits everyone as the superuser.

    The process always ends with the test run, even after SIGKILL. As a context manager, it runs inside the block and leaves nothing
    behind. If the tests run as root, it runs as an ordinary user. Its server may stop and start.

    Args:
        server: the server that it connects to.
        max_prepared_statements: how many it keeps for each connection to the server; with 0 it keeps none, and a client that
            prepares a statement does not find it in the next transaction.
        pool_size: the maximum number of connections to the server for each database.
        settings: additional settings, which take precedence, such as {"query_wait_timeout": "1"}.
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
        """The URL of the database postgres through this pgbouncer."""
        return self.url()

    def url(self, database: str = "postgres", user: str = "postgres", password: str | None = None) -> str:
        """Return the URL of a database through this pgbouncer."""
        return url_of(self.port, database, user, password)

    def command(self, text: str) -> None:
        """Send a command to the admin console, such as "PAUSE", "RESUME", "RECONNECT" or "KILL taskflow_1", and return once it is done.

        Raises:
            asyncpg.PostgresError: the error of the console.
        """
        asked(self.url("pgbouncer"), lambda connection: connection.execute(text))

    def start(self) -> Self:
        self._seen = len(self.log)
        return super().start()

    def stop(self) -> None:
        """End it and its connections at once, because versions differ in what else they wait for. Does nothing if it is not running."""
        self._end(SIGQUIT)

    def restart(self) -> Self:
        """End it unless it is down, and start it again on the same port."""
        self.stop()
        return self.start()

    @property
    def _config(self) -> Path:
        return self.folder / "pgbouncer.ini"

    def _command(self) -> Sequence[str]:
        return [str(self.binary), str(self._config)]

    def _answers(self) -> bool:
        return _UP in self.log[self._seen :]
