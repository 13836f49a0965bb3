"""The version of the schema after this one: inside `next_version()` taskflow has a second migration, and other functions."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from unittest.mock import patch

from taskflow.broker.migrations import Migrations
from taskflow.broker.postgres import migrations, sql_files
from tests.support.postgres import PostgresServer

VERSION: Final = migrations.VERSION
NEXT: Final = VERSION + 1

DESCRIPTION: Final = "Jobs have a note."

_MIGRATION: Final = f"""\
-- {NEXT}: {DESCRIPTION}

CREATE DOMAIN @.note AS text CHECK (octet_length(VALUE) < 1000);
ALTER TABLE @.jobs ADD COLUMN note @.note;
ALTER TABLE @.jobs DROP CONSTRAINT a_header_is_possible, ADD CONSTRAINT a_header_is_possible CHECK (status BETWEEN S.HELD AND 8);
DROP INDEX @.jobs_expiring;
CREATE INDEX jobs_expiring ON @.jobs (expires_at, id, note) WHERE status < S.RUNNING AND expires_at IS NOT NULL;
UPDATE @.jobs SET note = 'old';
"""

_FUNCTIONS: Final = """\
CREATE FUNCTION @.noted_jobs() RETURNS SETOF @.jobs LANGUAGE sql AS 'SELECT * FROM @.jobs WHERE note IS NOT NULL';
"""

_RESULT_OF_PROMOTE: Final = "OUT checks_marks boolean, OUT wakeups text"

_THIS: Final = migrations.script(migrations.MIGRATIONS.after(0, "schema"), "taskflow")


def of_this_version(server: PostgresServer) -> str:
    """Return the name of a new database with a schema of this version, also inside `next_version`."""
    return server.new_database(_template(server))


@cache
def _template(server: PostgresServer) -> str:
    """Make the schema once: to copy it takes the server a third of the time."""
    database = server.new_database()
    server.execute(without_meta_commands(_THIS), database)
    return database


def without_meta_commands(script: str) -> str:
    """Return the script without the lines that only psql understands."""
    return re.sub(r"(?m)^\\set .*$", "", script)


@contextmanager
def next_version() -> Iterator[None]:
    """A column, a type and a changed index more; a function is new, one is gone, and the result of a third has changed.

    Brokers that have used their schema before work on as those of this version: they do not look at it again.
    """
    with TemporaryDirectory() as folder:
        sql = Path(shutil.copytree(sql_files.FOLDER, Path(folder) / "sql", ignore=shutil.ignore_patterns("*.py", "__pycache__")))
        (sql / "schema" / f"{NEXT}.sql").write_text(_MIGRATION)
        (sql / "notes.sql").write_text(_FUNCTIONS)
        for file in sql.glob("*.sql"):
            file.write_text(re.sub(r"@\.topics_of\b", "@.topics_for", file.read_text()))
        hot = (sql / "hot.sql").read_text()
        assert hot.count(_RESULT_OF_PROMOTE) == 1
        (sql / "hot.sql").write_text(hot.replace(_RESULT_OF_PROMOTE, f"OUT notes integer, {_RESULT_OF_PROMOTE}"))
        found = Migrations(sql / "schema")
        with (
            patch.object(sql_files, "FOLDER", sql),
            patch.object(migrations, "MIGRATIONS", found),
            patch.object(migrations, "VERSION", found.newest),
        ):
            yield


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
