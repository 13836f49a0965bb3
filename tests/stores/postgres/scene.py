"""The scene of every store on a PostgreSQL server, and faults of its connections and databases."""

from __future__ import annotations

import json
from typing import Any, Final

import asyncpg

from taskflow import JobHandle
from tests.stores import scene
from tests.stores.scene import NOTE
from tests.support.postgres import PostgresServer, of_this_version
from tests.support.proxy import Proxy

LISTENS: Final = "(query LIKE 'LISTEN%' OR query = 'SELECT 1')"
"""A condition on pg_stat_activity for a listening connection, which runs one of these when it is checked."""


class Scene(scene.Scene):
    """An application in a new database of `server` with our schema, unless `database` names one; through `proxy` where there is one."""

    def __init__(self, server: PostgresServer, *, proxy: Proxy | None = None, database: str | None = None) -> None:
        self.postgres = server
        self.database = database or of_this_version(server)
        far = proxy.url("postgresql", credentials="postgres", path=f"/{self.database}") if proxy is not None else None
        super().__init__(server.url(self.database), far)

    async def assert_each_settled_once(self) -> None:
        """No job was added more than once either."""
        await super().assert_each_settled_once()
        assert (await self.totals())["enqueue"] == len(self.handles)

    def set(self, setting: str, value: str | None) -> None:
        """Change a setting for all later connections to the database, and end the others. None restores the default."""
        change = f"RESET {setting}" if value is None else f"SET {setting} = {value}"
        self.postgres.execute(f"ALTER DATABASE {self.database} {change}")
        terminate(self.postgres, self.database)


def terminate(server: PostgresServer, database: str, *, which: str = "true", most: int = 1_000) -> int:
    """End this many of the database's connections, at random, and return their number."""
    [(ended,)] = server.rows(
        "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity "
        f"WHERE datname = $1 AND backend_type = 'client backend' AND {which} ORDER BY random() LIMIT $2) AS chosen",
        database,
        most,
    )
    return int(ended)


async def send(sql: asyncpg.Connection, options: str = "", **arguments: Any) -> JobHandle[Any]:
    """Send the scene's job, with `options` as written in SQL."""
    job_id = await sql.fetchval(
        f"SELECT taskflow.enqueue('{NOTE}', $1::jsonb{options and ', ' + options})", json.dumps({"number": 1, **arguments})
    )
    return JobHandle.of(str(job_id))
