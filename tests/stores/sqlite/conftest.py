from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from taskflow.broker.sqlite import SqliteBroker
from taskflow.broker.sqlite.wakeups import StoreWatch
from tests.stores.sqlite.support import Open


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
async def open_broker(path: Path) -> AsyncIterator[Open]:
    """Creates brokers, on `path` unless told otherwise; all are closed at the end."""
    opened = list[SqliteBroker]()

    def open_one(at: Path = path, **options: Any) -> SqliteBroker:
        opened.append(SqliteBroker(at, **options))
        return opened[-1]

    yield open_one
    for broker in opened:
        await broker.close()


@pytest.fixture
def broker(open_broker: Open) -> SqliteBroker:
    return open_broker()


@pytest.fixture
def only_nudges_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoreWatch, "look", lambda *_, **__: set[str]())


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list of every statement that brokers execute from now on."""
    statements = list[str]()
    original: Callable[..., sqlite3.Connection] = sqlite3.connect

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = original(*args, **options)
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect)
    return statements
