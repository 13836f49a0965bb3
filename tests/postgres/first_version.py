"""Databases as the first version of the schema left them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from taskflow.broker.postgres import texts
from tests.support.postgres import PostgresServer

VERSION_1: Final = Path(__file__).with_name("version_1") / "schema.sql"


def of_version_1(server: PostgresServer, schema: str = "taskflow") -> str:
    """The name of a new database with a schema of that version."""
    database = server.new_database()
    server.execute(f'CREATE SCHEMA "{schema}"; ' + texts.placed(VERSION_1.read_text(), schema), database)
    return database
