"""No broker works with tables that it does not know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from taskflow.broker.sqlite.tables import VERSION
from taskflow.model.errors import BrokerRefused, BrokerUnavailable
from taskflow.model.session import Beat
from tests.stores.sqlite.support import Open, an_envelope, connected, envelopes, locked, registered, succeeded


@pytest.mark.parametrize("verb", ["claim", "settle", "beat", "enqueue", "read"])
async def test_a_worker_is_refused_by_each_verb_once_its_tables_are_of_a_newer_version(open_broker: Open, path: Path, verb: str) -> None:
    """By the first call after the change, on a connection that has run the same statements before. It changes nothing: a worker of the
    newer version takes over the leases when the session has lapsed."""
    broker = open_broker()
    session = await registered(broker)
    await broker.enqueue(envelopes(20))
    leases = await broker.claim(session.id, 1, [], 10)
    verbs: dict[str, Callable[[int], Awaitable[object]]] = {
        "claim": lambda request: broker.claim(session.id, request, [], 1),
        "settle": lambda request: broker.settle([succeeded(leases[request])]),
        "beat": lambda _: broker.beat(Beat(session=session.id)),
        "enqueue": lambda _: broker.enqueue([an_envelope()]),
        "read": lambda _: broker.read([b"0" * 16]),
    }
    for request in range(2, 5):
        await verbs[verb](request)
    with connected(path) as stranger:
        stranger.execute("ALTER TABLE taskflow_jobs ADD COLUMN sender TEXT")
        stranger.execute("UPDATE taskflow_meta SET value = value + 1 WHERE name = 'version'")
        jobs = stranger.execute("SELECT * FROM taskflow_jobs").fetchall()

        with pytest.raises(BrokerRefused, match=f"table version {VERSION + 1}, this one knows {VERSION}"):
            await verbs[verb](5)
        assert stranger.execute("SELECT * FROM taskflow_jobs").fetchall() == jobs


async def test_tables_of_another_taskflow_with_the_same_version_are_refused(open_broker: Open, path: Path) -> None:
    await open_broker().enqueue([an_envelope()])
    with connected(path) as stranger:
        stranger.execute("UPDATE taskflow_meta SET value = value + 1 WHERE name = 'digest'")
    with pytest.raises(BrokerRefused, match="was made by a taskflow with other tables"):
        await open_broker().enqueue([an_envelope()])


async def test_a_lock_that_is_held_for_long_is_named(open_broker: Open, path: Path) -> None:
    with connected(path) as stranger:
        stranger.execute("PRAGMA journal_mode=WAL")
    with locked(path), pytest.raises(BrokerUnavailable, match="is locked by"):
        await open_broker(timeout=0.2).migrate()
