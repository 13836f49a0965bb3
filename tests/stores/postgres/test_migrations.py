"""Schemas that are there already, that are not there yet, or that have gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from taskflow.broker.postgres import PostgresBroker
from taskflow.broker.postgres.schema import VERSION
from taskflow.broker.protocol import Added
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerRefused
from taskflow.model.ids import IdFactory
from tests.stores.postgres import digest
from tests.support.postgres import shared_postgres

new_id = IdFactory()


@asynccontextmanager
async def a_broker(url: str) -> AsyncIterator[PostgresBroker]:
    broker = connect(url)
    assert isinstance(broker, PostgresBroker)
    try:
        yield broker
    finally:
        await broker.close()


def an_envelope(**fields: Any) -> Envelope:
    return Envelope(**{"id": new_id(), "job": "work", "payload": b"\x01payload", **fields})


async def test_a_schema_that_was_made_for_us_needs_no_right_to_make_one() -> None:
    server = shared_postgres()
    database = server.new_database()
    role = f"app_{database}"
    server.execute(f"CREATE ROLE {role} LOGIN; CREATE SCHEMA taskflow AUTHORIZATION {role}", database)
    async with a_broker(server.url(database, role)) as broker:
        assert [type(answer) for answer in await broker.enqueue([an_envelope()])] == [Added]


async def test_a_schema_that_has_gone_is_made_anew() -> None:
    """By a broker that had looked at it."""
    server = shared_postgres()
    database = server.new_database()
    async with a_broker(server.url(database)) as broker:
        await broker.enqueue([an_envelope()])
        server.execute("DROP SCHEMA taskflow CASCADE", database)
        assert [type(answer) for answer in await broker.enqueue([an_envelope()])] == [Added]


async def test_somebody_elses_table_meta_is_refused() -> None:
    server = shared_postgres()
    database = server.new_database()
    server.execute("CREATE SCHEMA taskflow; CREATE TABLE taskflow.meta (name text, value text)", database)
    async with a_broker(server.url(database)) as broker:
        with pytest.raises(
            BrokerRefused, match=r"'taskflow' of PostgreSQL at .* has a table meta without a version: it belongs to another program"
        ):
            await broker.enqueue([an_envelope()])


def test_sql_that_changes_makes_a_new_version() -> None:
    """A schema of the same version that is there already would never get the change."""
    pinned, now = digest.pinned(), digest.digests()
    changed = sorted(part for part in {*pinned, *now} - {"version"} if pinned.get(part) != now.get(part))

    assert not changed, (
        f"the SQL of {', '.join(changed)} is not what is pinned for version {pinned.get('version')}; a word or a rule's default may be "
        f"what has changed. Schemas that exist get it by a new version alone. While {VERSION} is not released: {digest.COMMAND}. Once it "
        f"is: write a migration, and raise VERSION in taskflow/broker/postgres/schema.py, then: {digest.COMMAND}"
    )
