"""Middleware that uses Django's connection while it stamps calls, inside `atomic()`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from taskflow import EnqueueCall, EnqueueFailed, Middleware, configure, enqueue_sync, job, run_sync
from taskflow.app.app import default_app
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from tests.support.listing import listed
from tests.transactions.handles import TABLE, Django, driven

CALLS = 2_500


@job(name="tests.django.stamped")
def stamped(n: int) -> int:
    return n


class Noting(Middleware):
    """Counts the rows at each batch, and writes one with that number."""

    def __init__(self, user: Django) -> None:
        self._user = user

    def stamp(self, calls: Sequence[EnqueueCall]) -> None:
        number = driven(self._user.number("SELECT count(*) FROM orders"))
        driven(self._user.execute(f"INSERT INTO orders VALUES ({number})"))
        for call in calls:
            call.headers["note"] = str(number)


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Django]:
    user = Django(str(tmp_path / "queue.db"), "sqlite3")
    driven(user.open())
    driven(user.execute(TABLE))
    yield user
    driven(user.close())


@pytest.fixture(params=["memory://", "sqlite:///jobs.db", "sqlite:///queue.db?shared=1"], ids=["memory", "another file", "the same file"])
def broker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: Django) -> Iterator[Broker]:
    monkeypatch.chdir(tmp_path)
    broker = connect(request.param)
    with default_app().using(broker):
        run_sync(broker.read([bytes(16)]))  # creates the tables, which an open transaction would prevent
        configure(middleware=[Noting(user)])
        yield broker
    run_sync(broker.close())


def headers_of(broker: Broker) -> list[str]:
    return sorted(record.headers["note"] for record in run_sync(listed(broker.admin)))


def test_it_joins_the_callers_transaction(broker: Broker, user: Django) -> None:
    """It runs in the caller's thread, and therefore on the caller's connection."""
    connection = user.connection if "queue.db" in repr(broker) else None
    with user.atomic():
        driven(user.execute("INSERT INTO orders VALUES (0)"))  # the transaction holds the lock for writing from here on
        stamped.options(connection=connection).delay_sync(1)
        enqueue_sync((stamped.bind(n) for n in range(CALLS)), connection=connection)
    assert driven(user.number("SELECT count(*) FROM orders")) == 5
    assert headers_of(broker) == ["1"] + ["2"] * 1_000 + ["3"] * 1_000 + ["4"] * 500


def test_an_error_of_django_reaches_the_caller_and_nothing_is_sent(broker: Broker, user: Django) -> None:
    from django.db import IntegrityError

    connection = user.connection if "queue.db" in repr(broker) else None
    driven(user.execute("INSERT INTO orders VALUES (1)"))
    with pytest.raises(IntegrityError), user.atomic():
        stamped.options(connection=connection).delay_sync(1)
    with pytest.raises(EnqueueFailed, match="IntegrityError") as failed, user.atomic():
        enqueue_sync((stamped.bind(n) for n in range(10)), connection=connection)
    assert isinstance(failed.value.__cause__, IntegrityError)
    assert headers_of(broker) == []
