"""The schema makes itself, once, whoever comes first."""

from __future__ import annotations

import asyncio

import pytest

from taskflow.broker.postgres.migrations import VERSION
from taskflow.broker.protocol import Added
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerRefused
from taskflow.model.ids import IdFactory
from tests.support.postgres import shared_postgres

new_id = IdFactory()


def an_envelope() -> Envelope:
    return Envelope(id=new_id(), job="work", payload=b"\x01payload")


async def test_twenty_that_come_at_once_make_one_schema() -> None:
    """None of them fails, and none finds half of it."""
    url = shared_postgres().url(shared_postgres().new_database())
    brokers = [connect(url) for _ in range(20)]

    answers = await asyncio.gather(*(broker.enqueue([an_envelope()]) for broker in brokers))

    assert all(isinstance(answer, Added) for [answer] in answers)
    [queue] = await brokers[0].console.queues()
    assert sum(queue.counts.values()) == 20
    for broker in brokers:
        await broker.close()


async def test_a_newer_schema_is_refused() -> None:
    server = shared_postgres()
    database = server.new_database()
    broker = connect(server.url(database))
    await broker.enqueue([an_envelope()])
    await broker.close()
    server.execute("UPDATE taskflow.meta SET value = 99 WHERE name = 'version'", database=database)
    broker = connect(server.url(database))

    with pytest.raises(BrokerRefused, match=f"of version 99, this taskflow knows {VERSION}: update it"):
        await broker.enqueue([an_envelope()])
    await broker.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"database": "nowhere"}, 'database "nowhere" does not exist'),
        ({"user": "nobody"}, 'role "nobody" does not exist'),
    ],
)
async def test_what_is_wrong_with_the_url_is_said(change: dict[str, str], says: str) -> None:
    broker = connect(shared_postgres().url(**change))

    with pytest.raises(BrokerRefused, match=says):
        await broker.enqueue([an_envelope()])
    await broker.close()
