"""A standby takes the primary's place, at another address. The broker URL names both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from taskflow import BrokerUnavailable, configure
from taskflow.app.app import default_app
from taskflow.broker.protocol import Added, Broker
from taskflow.broker.url import connect
from taskflow.model.errors import BrokerRefused
from tests.stores.jobs import an_envelope
from tests.stores.postgres.scene import Scene, terminate
from tests.stores.scene import TIMEOUT, elapsed_since
from tests.support.postgres import PostgresServer, shared_postgres
from tests.support.processes import HOST, free_port
from tests.support.proxy import Proxy
from tests.support.standby import Standby

MANY = 300


@pytest.fixture
def standby(server: PostgresServer) -> Iterator[Standby]:
    with Standby(server) as standby:
        yield standby


def url_of_all(database: str, *ports: int) -> str:
    return f"postgresql://postgres@{','.join(f'{HOST}:{port}' for port in ports)}/{database}"


class SceneOfTwo(Scene):
    """All of it knows both addresses, the looks at the store too."""

    def __init__(self, first: PostgresServer, second: PostgresServer, *, database: str | None = None) -> None:
        super().__init__(first, database=database)
        self.straight_url = url_of_all(self.database, first.port, second.port)
        self._broker = connect(self.straight_url)

    async def check_wake_ups(self, numbers: range) -> None:
        """The jobs that another broker sends start soon: nothing but a notification tells of them."""
        afar = connect(self.straight_url)
        with default_app().using(afar):
            await self.seconds_to_start(numbers.start)
            waits = [await self.seconds_to_start(number) for number in numbers[1:]]
        await afar.close()
        assert max(waits) < 2.0, waits  # to look again takes the worker 5 s


async def one_is_added(broker: Broker) -> float:
    began_at, envelope = time.monotonic(), an_envelope()
    assert await broker.enqueue([envelope]) == [Added(envelope.id)]
    return elapsed_since(began_at)


@pytest.mark.parametrize("is_dead", [True, False], ids=["dies", "turns read-only"])
async def test_a_primary_that_is_replaced_under_load_loses_and_repeats_nothing(
    server: PostgresServer, standby: Standby, is_dead: bool
) -> None:
    """Its standby is synchronous, as it has to be for that. Sessions and leases survive with the rest, and wake-ups come as before.
    Connections to a primary that turns read-only live on, and every write on them fails: the listener leaves it too."""
    configure(enqueue_timeout=TIMEOUT)
    standby.be_waited_for()
    async with SceneOfTwo(server, standby) as scene:
        scene.takes = 0.02
        async with scene.worker(ttl=20), scene.worker(ttl=20):
            sending = asyncio.create_task(scene.keep_sending(range(MANY), ahead=MANY // 4))
            await scene.until_ran([40])
            assert not sending.done()
            if is_dead:
                await asyncio.to_thread(server.stop, "immediate")
            else:
                server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
                server.execute("SELECT pg_reload_conf()")
            await asyncio.to_thread(standby.promote)
            await sending
            await scene.until_done()
            await scene.check_wake_ups(range(MANY, MANY + 6))
            await scene.until_done()
        await scene.assert_each_settled_once()
    assert not scene.has_lost_a_session


async def test_a_standby_at_the_first_address_is_passed_over_and_standbys_alone_are_waited_for(
    server: PostgresServer, standby: Standby
) -> None:
    """One of them may be promoted any moment."""
    async with SceneOfTwo(standby, server, database=server.new_database()) as scene, scene.worker():
        await scene.send(range(20))
        await scene.until_done()
        await scene.check_wake_ups(range(20, 24))
    nobody = free_port()
    broker = connect(url_of_all("postgres", standby.port, nobody))
    with pytest.raises(BrokerUnavailable, match=rf"127.0.0.1:{standby.port} is read-only") as told:
        await one_is_added(broker)
    assert f"127.0.0.1:{nobody} says:" in str(told.value)
    await asyncio.to_thread(standby.promote)
    await one_is_added(broker)
    await broker.close()


async def test_an_address_that_is_dead_in_silence_costs_a_part_of_the_timeout_and_once() -> None:
    """Each new connection would wait for it again. What all refuse is refused."""
    server = shared_postgres()
    database = server.new_database()
    with Proxy(HOST, server.port, parse=None) as proxy:
        await asyncio.to_thread(proxy.blackhole)
        broker = connect(url_of_all(database, proxy.port, server.port))
        first = await one_is_added(broker)
        terminate(server, database)
        second = await one_is_added(broker)
        await broker.close()
    assert 0.3 < first < 2.5
    assert second < 0.3
    broker = connect(url_of_all("nowhere", server.port, server.port))
    with pytest.raises(BrokerRefused, match='database "nowhere" does not exist'):
        await one_is_added(broker)
    await broker.close()
