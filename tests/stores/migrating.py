"""The stores whose tables have a version, for the suite of migrations. Each driver has

run_again            what a script says on tables that are there already
nowhere              returns the URL of a store that is not there yet
of_the_next_version  returns the URL of a new store whose tables say that they are of the next version
shape                returns what the tables are, without what they hold
run                  runs a script on the store, or raises ScriptFailed
"""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import asyncpg
import pytest

from taskflow.broker.migrations import Migration, Upgrade
from taskflow.broker.postgres.schema import VERSION
from taskflow.broker.sqlite import tables
from taskflow.broker.sqlite.statements import Statements
from tests.stores.postgres import versions as postgres
from tests.stores.sqlite.support import connected
from tests.support.postgres import shared_postgres


class ScriptFailed(Exception):
    pass


class SqliteDriver:
    name = "sqlite"
    run_again = "already exists"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def nowhere(self) -> str:
        return f"sqlite:///{self._folder}/{next(self._numbers)}.db"

    def of_the_next_version(self) -> str:
        self.run(
            url := self.nowhere(),
            tables.script(Upgrade(place="tables", version=0, migrations=(Migration(VERSION, ""),)), Statements("taskflow")),
        )
        self.run(url, "UPDATE taskflow_meta SET value = value + 1 WHERE name = 'version';")
        return url

    def shape(self, url: str) -> list[tuple[str, str]]:
        with connected(_path(url)) as connection:
            return connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()

    def run(self, url: str, script: str) -> None:
        with connected(_path(url)) as connection:
            try:
                connection.executescript(script.replace(".bail on\n", ""))
            except sqlite3.Error as error:
                raise ScriptFailed(str(error)) from error


def _path(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///").partition("?")[0])


class PostgresDriver:
    name = "postgres"
    run_again = "let `taskflow migrate --sql` print this script again"

    def __init__(self, _: Path) -> None:
        """It needs no folder."""

    def nowhere(self) -> str:
        return shared_postgres().url(shared_postgres().new_database())

    def of_the_next_version(self) -> str:
        database = postgres.of_this_version(shared_postgres())
        shared_postgres().execute("UPDATE taskflow.meta SET value = value + 1 WHERE name = 'version'", database)
        return shared_postgres().url(database)

    def shape(self, url: str) -> dict[str, list[str]]:
        return postgres.catalog(shared_postgres(), _database(url))

    def run(self, url: str, script: str) -> None:
        try:
            shared_postgres().execute(postgres.without_meta_commands(script), _database(url))
        except asyncpg.PostgresError as error:
            raise ScriptFailed(str(error)) from error


class PsqlDriver(PostgresDriver):
    """Runs scripts by psql, for which they are written."""

    name = "postgres-psql"

    def run(self, url: str, script: str) -> None:
        psql = shutil.which("psql") or shared_postgres().binary.with_name("psql")
        if not Path(psql).exists():
            if os.environ.get("CI"):
                pytest.fail("there is no psql on this machine: apt-get install postgresql-client")
            pytest.skip("there is no psql on this machine: apt-get install postgresql-client (where CI is set, that is a failure)")
        command = [psql, "--no-psqlrc", "--quiet", shared_postgres().url(_database(url))]
        ran = subprocess.run(command, input=script, text=True, capture_output=True, check=False)
        if ran.returncode:
            raise ScriptFailed(ran.stderr)


def _database(url: str) -> str:
    return url.rpartition("/")[2].partition("?")[0]


MigratingDriver = SqliteDriver | PostgresDriver
