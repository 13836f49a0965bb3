"""Middleware that uses Django's ORM while it stamps calls, inside `atomic()`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from taskflow import EnqueueCall, EnqueueFailed, Middleware, configure, enqueue_sync, job, run_sync
from taskflow.app.app import default_app
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from tests.support.listing import listed

CALLS = 2_500


@job(name="tests.django.stamped")
def stamped(n: int) -> int:
    return n


class Database:
    """A database of Django's on SQLite, with one model."""

    def __init__(self, path: Path) -> None:
        import django
        from django.conf import settings

        if not settings.configured:
            settings.configure()
        django.setup()
        from django.db import connections, models

        databases: Any = connections.databases
        self.alias = f"stamps{len(databases)}"
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path), "OPTIONS": {"timeout": 0.5}}
        databases[self.alias] = connections.configure_settings({"default": database})["default"]
        self.connection = connections[self.alias]
        meta = type("Meta", (), {"app_label": self.alias})
        fields = {"__module__": __name__, "Meta": meta, "number": models.IntegerField(unique=True)}
        self.model: Any = type("Note", (models.Model,), fields)
        with self.connection.schema_editor() as editor:
            editor.create_model(self.model)

    def atomic(self) -> Any:
        from django.db import transaction

        return transaction.atomic(using=self.alias)

    @property
    def notes(self) -> Any:
        return self.model.objects.using(self.alias)


class Noting(Middleware):
    """Writes a row for each batch, and reads one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def stamp(self, calls: Sequence[EnqueueCall]) -> None:
        number = self._database.notes.count()
        self._database.notes.create(number=number)
        for call in calls:
            call.headers["note"] = str(number)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "queue.db")
    yield database
    database.connection.close()


@pytest.fixture(params=["memory", "another file", "the same file"])
def broker(request: pytest.FixtureRequest, tmp_path: Path, database: Database) -> Iterator[Broker]:
    urls = {
        "memory": "memory://",
        "another file": f"sqlite:///{tmp_path / 'jobs.db'}",
        "the same file": f"sqlite:///{tmp_path / 'queue.db'}?shared=1",
    }
    broker = connect(urls[request.param])
    with default_app().using(broker):
        run_sync(broker.read([bytes(16)]))  # creates the tables, which an open transaction would keep it from
        configure(middleware=[Noting(database)])
        yield broker
    run_sync(broker.close())


def sends_within(broker: Broker, database: Database) -> bool:
    return str(database.connection.settings_dict["NAME"]) in repr(broker)


def headers_of(broker: Broker) -> list[str]:
    records = run_sync(listed(broker.console))
    return sorted(record.headers["note"] for record in records)


def test_it_joins_the_callers_transaction(broker: Broker, database: Database) -> None:
    """It runs in the thread, and so on the connection, of the caller."""
    connection = database.connection if sends_within(broker, database) else None
    with database.atomic():
        database.notes.create(number=0)  # the transaction holds the lock for writing from here on
        stamped.options(connection=connection).delay_sync(1)
        enqueue_sync((stamped.bind(n) for n in range(CALLS)), connection=connection)
    assert database.notes.count() == 5
    assert headers_of(broker) == ["1"] + ["2"] * 1_000 + ["3"] * 1_000 + ["4"] * 500


def test_what_the_orm_raises_reaches_the_caller_and_nothing_is_sent(broker: Broker, database: Database) -> None:
    from django.db import IntegrityError

    connection = database.connection if sends_within(broker, database) else None
    with database.atomic():
        database.notes.create(number=1)
    with pytest.raises(IntegrityError), database.atomic():
        stamped.options(connection=connection).delay_sync(1)
    with pytest.raises(EnqueueFailed, match="IntegrityError") as failed, database.atomic():
        enqueue_sync((stamped.bind(n) for n in range(10)), connection=connection)
    assert isinstance(failed.value.__cause__, IntegrityError)
    assert headers_of(broker) == []


def test_a_rollback_takes_back_what_the_stamp_wrote(broker: Broker, database: Database) -> None:
    connection = database.connection if sends_within(broker, database) else None
    with database.atomic():
        stamped.options(connection=connection).delay_sync(1)
        database.connection.set_rollback(True)
    assert database.notes.count() == 0
    assert headers_of(broker) == ([] if connection else ["0"])
