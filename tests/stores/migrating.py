"""The stores whose tables have a version, for the suite of migrations. Each driver has

run_again            what a script says on tables that are there already
nowhere              returns the URL of a store that is not there yet
of_the_next_version  returns the URL of a new store whose tables say that they are of the next version
shape                returns what the tables are, without what they hold
run                  runs a script on the store, or raises ScriptFailed
"""

from __future__ import annotations

import itertools
import sqlite3
import subprocess
from pathlib import Path

from taskflow.broker.migrations import Migration, Upgrade
from taskflow.broker.postgres.schema import VERSION
from taskflow.broker.sqlite import tables
from taskflow.broker.sqlite.statements import Statements
from tests.stores.postgres import versions as postgres
from tests.stores.sqlite.support import connected
from tests.support.postgres import of_this_version, shared_postgres

NEXT_VERSION = "UPDATE {}meta SET value = value + 1 WHERE name = 'version'"


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
        upgrade = Upgrade(place="tables", version=0, migrations=(Migration(VERSION, ""),))
        self.run(url := self.nowhere(), tables.script(upgrade, Statements("taskflow")))
        self.run(url, NEXT_VERSION.format("taskflow_"))
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
    """Runs scripts by psql, for which they are written."""

    name = "postgres"
    run_again = "let `taskflow migrate --sql` print a new script"

    def __init__(self, _: Path) -> None:
        """It needs no folder."""

    def nowhere(self) -> str:
        return shared_postgres().url(shared_postgres().new_database())

    def of_the_next_version(self) -> str:
        database = of_this_version(shared_postgres())
        shared_postgres().execute(NEXT_VERSION.format("taskflow."), database)
        return shared_postgres().url(database)

    def shape(self, url: str) -> dict[str, list[str]]:
        return postgres.catalog(shared_postgres(), _database(url))

    def run(self, url: str, script: str) -> None:
        try:
            postgres.psql(shared_postgres().url(_database(url)), script)
        except subprocess.CalledProcessError as error:
            raise ScriptFailed(error.stderr) from error


def _database(url: str) -> str:
    return url.rpartition("/")[2].partition("?")[0]


MigratingDriver = SqliteDriver | PostgresDriver
