"""The user's tables in the store's database: orders, each written together with the jobs of a transaction, and effects."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import psycopg

VARIABLE: Final = "CHAOS_TABLES"
"""The environment variable with the URL of the database; it is empty if the store has no transactions."""

_TABLES: Final = (
    "CREATE TABLE orders (job varchar(40) PRIMARY KEY)",
    "CREATE TABLE effects (job varchar(40) NOT NULL, epoch integer NOT NULL)",
)
_WAITS: Final = 10.0


class Tables:
    """The tables at this URL of a store. Nothing here belongs to taskflow."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_postgres = url.startswith("postgresql")

    def connect(self) -> Any:
        """Return a connection whose transaction begins with the first statement that writes."""
        if self._is_postgres:
            return psycopg.connect(self._url, connect_timeout=5)
        return sqlite3.connect(self._url.removeprefix("sqlite:///").partition("?")[0], timeout=_WAITS, check_same_thread=False)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """Yield a connection in a transaction, which commits at the end of the block, or rolls back if it raises."""
        with closing(self.connect()) as connection, connection:
            yield connection

    def make(self) -> None:
        with self.transaction() as connection:
            for table in _TABLES:
                connection.execute(table)

    def add_order(self, connection: Any, job: str) -> None:
        connection.execute(self._marked("INSERT INTO orders VALUES (?)"), (job,))

    def add_effect(self, connection: Any, job: str, epoch: int) -> None:
        connection.execute(self._marked("INSERT INTO effects VALUES (?, ?)"), (job, epoch))

    def orders(self) -> set[str]:
        with closing(self.connect()) as connection:
            return {job for (job,) in connection.execute("SELECT job FROM orders").fetchall()}

    def effects(self) -> Counter[str]:
        """Return how often each job has taken effect."""
        with closing(self.connect()) as connection:
            return Counter(job for (job,) in connection.execute("SELECT job FROM effects").fetchall())

    def _marked(self, sql: str) -> str:
        return sql.replace("?", "%s") if self._is_postgres else sql


def of_environment() -> Tables:
    return Tables(os.environ[VARIABLE])
