"""What a schema consists of, and psql, for which scripts are written."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Final

import pytest

from tests.support.postgres import PostgresServer, postgres_binaries


def psql(url: str, script: str) -> str:
    """Return what psql prints. Raises CalledProcessError."""
    beside = os.pathsep.join(str(found.path.parent) for found in postgres_binaries())
    program = shutil.which("psql") or shutil.which("psql", path=beside)
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("there is no psql on this machine: apt-get install postgresql-client")
        pytest.skip("there is no psql on this machine: apt-get install postgresql-client (where CI is set, that is a failure)")
    command = [program, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", url]
    ran = subprocess.run(command, input=script, check=True, capture_output=True, text=True, env={**os.environ, "PGCLIENTENCODING": "UTF8"})
    return ran.stdout.strip()


CATALOG: Final = {
    "columns": "SELECT relname, attname, attnum, format_type(atttypid, atttypmod), attnotnull, attidentity, attcollation, "
    "pg_get_expr(adbin, adrelid) FROM pg_attribute JOIN ours ON ours.oid = attrelid AND relkind IN ('r', 'v', 'S') "
    "LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE attnum > 0 AND NOT attisdropped",
    "relations": "SELECT relname, relkind, reloptions FROM ours WHERE relkind <> 't'",
    "indexes": "SELECT pg_get_indexdef(indexrelid) FROM pg_index JOIN ours ON ours.oid = indrelid",
    "constraints": "SELECT relname, conname, pg_get_constraintdef(pg_constraint.oid) FROM pg_constraint JOIN ours ON ours.oid = conrelid",
    "functions": "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = $1::regnamespace",
    "triggers": "SELECT pg_get_triggerdef(pg_trigger.oid) FROM pg_trigger JOIN ours ON ours.oid = tgrelid WHERE NOT tgisinternal",
    "types": "SELECT typname, conname, pg_get_constraintdef(pg_constraint.oid) FROM pg_type JOIN pg_constraint ON contypid = pg_type.oid "
    "WHERE typnamespace = $1::regnamespace",
    "views": "SELECT relname, pg_get_viewdef(oid) FROM ours WHERE relkind = 'v'",
}
OURS: Final = "WITH ours AS (SELECT * FROM pg_class WHERE relnamespace = $1::regnamespace)"


def catalog(server: PostgresServer, database: str) -> dict[str, list[str]]:
    """Return the parts of the schema, without the numbers by which the server knows them."""
    return {part: sorted(map(str, server.rows(f"{OURS} {query}", "taskflow", database=database))) for part, query in CATALOG.items()}
