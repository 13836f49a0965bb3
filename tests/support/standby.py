"""A real standby of a Postgres server, which follows it and can take its place."""

from __future__ import annotations

import time
from typing import Final

from tests.support.binaries import ServerFailed
from tests.support.postgres import PostgresServer
from tests.support.processes import HOST, TIMEOUT

_SYNCHRONOUS: Final = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"


class Standby(PostgresServer):
    """A copy of a running server, that one may read from. As a context manager it is running inside, and leaves nothing behind."""

    def __init__(self, primary: PostgresServer) -> None:
        self._primary = primary
        super().__init__(primary.binary, fsync=False)

    def promote(self) -> None:
        """It is a primary when this returns."""
        self.execute("SELECT pg_promote()")

    def be_waited_for(self) -> None:
        """From now on the primary acknowledges nothing that is not here: nothing acknowledged is lost with it."""
        self._primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self._primary.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + TIMEOUT
        while not self._primary.rows(_SYNCHRONOUS):
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self!r} does not follow {self._primary!r}. Its log ends:\n{self.log[-2_000:]}")
            time.sleep(0.02)

    def _fill(self) -> None:
        source = f"host={HOST} port={self._primary.port} user=postgres"
        options = ["--wal-method=stream", "--checkpoint=fast", "--write-recovery-conf", "--no-sync"]
        self._run(self.binary.with_name("pg_basebackup"), "--pgdata", self.data, "--dbname", source, *options)
