"""Through pgbouncer in transaction mode: every statement may come to another connection of the server."""

from __future__ import annotations

import asyncio
import os

import pytest

from taskflow.broker import topics
from taskflow.broker.postgres import PostgresBroker
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerRefused
from taskflow.model.ids import IdFactory
from tests.stores.one_job import one_job_is_done
from tests.support.pgbouncer import PgBouncer, is_there
from tests.support.postgres import shared_postgres

pytestmark = pytest.mark.skipif(
    not os.environ.get("CI") and not is_there(),
    reason="there is no pgbouncer on this machine: apt-get install pgbouncer (where CI is set, that is a failure)",
)

new_id = IdFactory()


@pytest.mark.parametrize(("prepared", "options"), [(0, "pooled=1"), (100, "pooled=1"), (100, "pooled=0")])
async def test_jobs_are_done_through_a_pooler(prepared: int, options: str) -> None:
    """With its support for prepared statements, and without, when the URL says so."""
    database = shared_postgres().new_database()
    with PgBouncer(shared_postgres(), pool_size=2, max_prepared_statements=prepared) as bouncer:
        broker = connect(f"{bouncer.url(database)}?{options}")
        for _ in range(5):
            await one_job_is_done(broker)
        await broker.close()


async def test_a_pooler_without_prepared_statements_says_what_the_url_lacks() -> None:
    """As soon as a statement meets a connection of the server's that knows it by another name, or not at all."""
    with PgBouncer(shared_postgres(), pool_size=2) as bouncer:
        broker = connect(bouncer.url(shared_postgres().new_database()))
        with pytest.raises(BrokerRefused, match=r"without prepared statements: add pooled=1 to the broker URL"):
            await many_jobs_are_done(broker)
        await broker.close()


async def many_jobs_are_done(broker: Broker) -> None:
    for _ in range(20):
        await asyncio.gather(*(one_job_is_done(broker) for _ in range(4)))


async def test_wake_ups_come_over_a_connection_of_their_own() -> None:
    """Which the URL names, since a pooler loses them in silence."""
    server = shared_postgres()
    database = server.new_database()
    with PgBouncer(server, pool_size=2) as bouncer:
        url = f"{bouncer.url(database)}?pooled=1&listen=127.0.0.1:{server.port}"
        here, there = connect(url), connect(url)
        assert isinstance(here, PostgresBroker)
        with here.listen([topics.queue("mail")]) as nudges:
            await nudges.wait(0.5)  # it listens now
            await there.enqueue([Envelope(id=new_id(), job="work", payload=b"\x01", queue="mail")])
            assert await nudges.wait(5.0)
        await here.close()
        await there.close()
