"""A real standby of a Postgres server, which follows the server and can replace it."""

from __future__ import annotations

import time
from typing import Final

from tests.support.binaries import ServerFailed
from tests.support.postgres import PostgresServer
from tests.support.processes import HOST, TIMEOUT

_SYNCHRONOUS: Final = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"


class Standby(PostgresServer):
    """A copy of a running server that allows reads. As a context manager, it runs inside the block and leaves nothing behind."""

    def __init__(self, primary: PostgresServer) -> None:
        self._primary = primary
        super().__init__(primary.binary, fsync=False)

    def promote(self) -> None:
        """Promote it. It is a primary when this returns."""
        self.execute("SELECT pg_promote()")

    def be_waited_for(self) -> None:
        """Make the primary acknowledge only what has arrived here, so that no acknowledged change is lost with the primary."""
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
