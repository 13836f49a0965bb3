"""Poolers in transaction mode. Where notifications get lost, waiters poll once a second, and the log says so."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from taskflow.app.app import default_app
from taskflow.broker import topics
from taskflow.broker.postgres import listen_connection, wakeups
from taskflow.broker.protocol import Broker
from taskflow.broker.url import connect
from taskflow.model.errors import BrokerRefused
from tests.stores.jobs import an_envelope
from tests.stores.postgres.counts import counting
from tests.stores.postgres.scene import Scene
from tests.stores.scene import one_job_is_done
from tests.support.pgbouncer import PgBouncer, is_there
from tests.support.postgres import shared_postgres
from tests.support.processes import HOST
from tests.support.proxy import Proxy
from tests.support.waiting import until

POLLED_TIMEOUT: Final = 2.5
"""Seconds: twice the longest pause between two polls. Without polling a worker checks again after 5."""

pooled = pytest.mark.skipif(
    not os.environ.get("CI") and not is_there(),
    reason="there is no pgbouncer on this machine: apt-get install pgbouncer (where CI is set, that is a failure)",
)


@pytest.fixture
def bouncer() -> Iterator[PgBouncer]:
    with PgBouncer(shared_postgres(), pool_size=4) as bouncer:
        yield bouncer


@pytest.fixture
def _loss_is_found_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notification that takes longer than this counts as lost. Only for tests that lose them: on a busy machine one may take as long."""
    monkeypatch.setattr(listen_connection, "HEARD_TIMEOUT", 0.5)


loses = pytest.mark.usefixtures("_loss_is_found_soon")


@asynccontextmanager
async def worker_at(scene: Scene, url: str) -> AsyncIterator[None]:
    """Let a worker run for the scene by way of `url`. Jobs are sent directly: the worker learns of them from the server, or not at all."""
    broker = connect(url)
    with default_app().using(broker):
        async with scene.worker(ttl=20):
            straight = connect(scene.straight_url)
            with default_app().using(straight):
                await scene.seconds_to_start(-1)
                yield
            await straight.close()
    await broker.close()


async def assert_hears_of_jobs(scene: Scene) -> None:
    """Assert that the worker starts jobs without a poll. Otherwise it would poll only every 5 s."""
    polls: list[list[str]] = []

    async def polled(_listener: wakeups.PostgresListener, topics: list[str]) -> None:
        polls.append(topics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wakeups.PostgresListener, "_poll", polled)
        waits = [await scene.seconds_to_start(number) for number in range(10, 15)]
    assert polls == []
    assert max(waits) < 4, waits


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING and record.name == "taskflow"]


@pooled
@loses
async def test_a_worker_behind_a_pooler_that_loses_notifications_says_so_once_and_polls(
    scene: Scene, bouncer: PgBouncer, caplog: pytest.LogCaptureFixture
) -> None:
    """About once a second, for all that wait in the process together. The doctor says so too."""
    async with worker_at(scene, f"{bouncer.url(scene.database)}?pooled=1"):
        await until(lambda: warnings(caplog), 10)
        waits = [await scene.seconds_to_start(number) for number in range(5)]
        with counting() as asked:
            await asyncio.sleep(6)
    assert max(waits) < POLLED_TIMEOUT, waits
    assert 4 <= asked["look_for"] <= 9, asked
    besides = asked.total() - 3 * max(asked["promote"], asked["fade"]) - asked["look_for"]
    assert besides < 14, asked  # what an idle worker asks anyway: claims and beats
    [said] = warnings(caplog)
    assert f"PostgreSQL at 127.0.0.1:{bouncer.port} loses notifications" in said
    assert "listen=host:5432" in said
    level, says = await wake_ups(f"{bouncer.url(scene.database)}?pooled=1")
    assert level == "note"
    assert "listen=host:5432" in says


@pooled
async def test_a_pooler_beside_which_it_listens_is_no_reason_to_poll(
    scene: Scene, bouncer: PgBouncer, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{bouncer.url(scene.database)}?pooled=1&listen={HOST}:{scene.postgres.port}"
    async with worker_at(scene, url):
        await assert_hears_of_jobs(scene)
    assert warnings(caplog) == []
    assert await wake_ups(url) == await wake_ups(scene.straight_url) == ("ok", "notifications arrive")


@pooled
async def test_all_that_one_waits_for_is_looked_for(bouncer: PgBouncer) -> None:
    """A waiter for which nothing is found is not woken."""
    database = shared_postgres().new_database()
    here, there = connect(f"{bouncer.url(database)}?pooled=1"), connect(shared_postgres().url(database))
    job = an_envelope(queue="elsewhere", after=3600.0)
    await there.enqueue([job])
    wanted: dict[str, Callable[[], Awaitable[object]]] = {
        topics.ANY_QUEUE: lambda: there.enqueue([an_envelope()]),
        topics.queue("mail"): lambda: there.enqueue([an_envelope(queue="mail")]),
        topics.job(job.id): lambda: there.cancel([job.id]),
        topics.DUE: lambda: there.enqueue([an_envelope(after=60.0)]),
    }
    for topic, act in wanted.items():
        with here.listen([topic]) as nudges:
            assert not await nudges.wait(1.6), topic
            await act()
            assert await nudges.wait(POLLED_TIMEOUT), topic
    await here.close()
    await there.close()


async def test_a_wrong_place_to_listen_at_is_named_and_jobs_are_polled_until_one_can_listen_there(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "taskflow")
    with Proxy(HOST, scene.postgres.port, parse=None) as proxy:
        proxy.refuse()
        async with worker_at(scene, f"{scene.straight_url}?listen={HOST}:{proxy.port}"):
            await until(lambda: warnings(caplog), 20)
            waits = [await scene.seconds_to_start(number) for number in range(4)]
            assert max(waits) < POLLED_TIMEOUT, waits
            await asyncio.to_thread(proxy.listen_again)
            await until(lambda: "notifications arrive again" in caplog.text, 20)
            await assert_hears_of_jobs(scene)
    [said] = warnings(caplog)
    assert f"PostgreSQL at 127.0.0.1:{proxy.port} (listen= in the broker URL) accepts no listening connection" in said


async def wake_ups(url: str) -> tuple[str, str]:
    """Return the finding's level and text."""
    broker: Broker = connect(url)
    [finding] = [finding for finding in await broker.admin.examine() if finding.topic == "wake-ups"]
    await broker.close()
    return finding.level, finding.says


@pooled
@pytest.mark.parametrize(("prepared", "options"), [(0, "pooled=1"), (100, "pooled=1"), (100, "pooled=0")])
async def test_jobs_are_done_through_a_pooler(prepared: int, options: str) -> None:
    """This works with its support for prepared statements, and without, when the URL says so."""
    database = shared_postgres().new_database()
    with PgBouncer(shared_postgres(), pool_size=2, max_prepared_statements=prepared) as bouncer:
        broker = connect(f"{bouncer.url(database)}?{options}")
        for _ in range(5):
            await one_job_is_done(broker)
        await broker.close()


@pooled
async def test_a_pooler_without_prepared_statements_says_what_the_url_lacks() -> None:
    """The error comes as soon as a statement meets a server's connection that knows it by another name, or not at all."""
    with PgBouncer(shared_postgres(), pool_size=2) as bouncer:
        broker = connect(bouncer.url(shared_postgres().new_database()))
        with pytest.raises(BrokerRefused, match=r"that lacks prepared statements: add pooled=1 to the broker URL"):
            await asyncio.gather(*(one_job_is_done(broker) for _ in range(40)))
        await broker.close()
