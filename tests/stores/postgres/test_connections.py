"""Connections are ended by the server, cut and swallowed by the network."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import asyncpg
import pytest

from taskflow import BrokerUnavailable, configure
from taskflow.app.default_app import default_app
from taskflow.broker.postgres import wakeups
from taskflow.broker.postgres.broker import PostgresBroker
from taskflow.broker.postgres.connect import server as server_module
from taskflow.broker.postgres.connect.link import Link
from taskflow.broker.url import connect
from taskflow.worker import fetcher
from taskflow.worker.events import SessionEnded, SessionOpened
from tests.stores.postgres.scene import EARS, Scene, killing, terminate, until
from tests.stores.redis.scene import PATIENCE
from tests.support.postgres import PostgresServer, shared_postgres
from tests.support.proxy import Proxy
from tests.support.servers import HOST

JOBS: Final = 900
"""At least."""

ENDED: Final = 20
"""Connections, at the least."""
HALF_WAY: Final = 60


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with proxy_of(shared_postgres()) as proxy:
        yield proxy


@contextmanager
def proxy_of(server: PostgresServer) -> Iterator[Proxy]:
    with Proxy(HOST, server.port, parse=None) as proxy:
        yield proxy


@pytest.fixture
def _short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them a tenth of what they are, so that a second is longer than every one."""
    defaults: dict[str, Any] = Link.fetch.__kwdefaults__ or {}
    monkeypatch.setitem(defaults, "within", server_module.ANSWER_WITHIN / 10)
    monkeypatch.setattr(server_module, "CONNECT_WITHIN", server_module.CONNECT_WITHIN / 10)
    monkeypatch.setattr(wakeups, "LOOK_EVERY", 0.3)
    execute = asyncpg.Connection.execute

    async def execute_within_less(self: asyncpg.Connection, query: str, *args: Any, timeout: float | None = None) -> str:
        return await execute(self, query, *args, timeout=timeout and timeout / 10)

    monkeypatch.setattr(asyncpg.Connection, "execute", execute_within_less)


# --- what a new one costs ------------------------------------------------------------------------------------------


async def test_a_new_connection_asks_the_server_for_no_types(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the driver would, by a statement that takes longer than all others, for each array among our columns."""
    asked = list[object]()
    introspect = vars(asyncpg.Connection)["_introspect_types"]

    async def note_and_introspect(self: asyncpg.Connection, types: object, timeout: float | None) -> object:
        asked.append(types)
        return await introspect(self, types, timeout)

    monkeypatch.setattr(asyncpg.Connection, "_introspect_types", note_and_introspect)
    async with scene.worker():
        await scene.send(range(30))
        await scene.until_done()
    assert asked == []


async def test_a_statement_goes_where_the_same_was_asked_before(scene: Scene) -> None:
    """The server has its plans there already. Two at one time need two connections, and each stays with its own."""
    broker = connect(scene.straight_url)
    assert isinstance(broker, PostgresBroker)
    link, statements = Link(broker.server), ("SELECT pg_backend_pid()", "SELECT pg_backend_pid() FROM pg_sleep(0.1)")
    first = [rows[0][0] for rows in await asyncio.gather(*map(link.fetch, statements))]
    assert len(set(first)) == 2
    for _ in range(3):
        assert [(await link.fetch(statement))[0][0] for statement in statements] == first
    await link.close()


async def test_a_statement_that_the_server_cancelled_is_sent_again_on_the_same_connection(scene: Scene) -> None:
    """A new one would plan all of it anew, and be cancelled again."""
    scene.postgres.execute("CREATE SEQUENCE turns", scene.database)
    scene.set("statement_timeout", "100")
    broker = connect(scene.straight_url)
    assert isinstance(broker, PostgresBroker)
    link = Link(broker.server)
    [[before]] = await link.fetch("SELECT pg_backend_pid()")
    slow_twice = "SELECT pg_backend_pid(), pg_sleep(CASE WHEN nextval('turns') < 3 THEN 10 ELSE 0 END)"
    [[after, _]] = await link.fetch(slow_twice)
    assert after == before
    await link.close()


async def test_a_statement_that_is_always_cancelled_fails_in_the_end(scene: Scene) -> None:
    scene.set("statement_timeout", "50")
    broker = connect(scene.straight_url)
    assert isinstance(broker, PostgresBroker)
    link = Link(broker.server)
    with pytest.raises(BrokerUnavailable, match="statement timeout"):
        await link.fetch("SELECT pg_sleep(10)")
    await link.close()


# --- ended by the server ------------------------------------------------------------------------------------------


async def test_connections_ended_at_random_lose_and_repeat_nothing(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """By pg_terminate_backend, under two workers."""
    configure(enqueue_timeout=PATIENCE)
    async with scene.worker(), scene.worker(), killing(scene.postgres, scene.database, seed=3) as ended:
        jobs = 0
        while jobs < JOBS or sum(ended) <= ENDED:
            await scene.send(range(jobs, jobs + 15))
            jobs += 15
            await asyncio.sleep(0.01)
        await scene.until_done()
    await scene.assert_each_settled_once()
    with capsys.disabled():
        print(f"\n{sum(ended)} connections ended under {jobs} jobs; runs {scene.runs.total()}, events {dict(await scene.totals())}")


async def test_a_job_enqueued_while_the_ears_are_being_killed_starts_within_a_second(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    async with scene.worker():
        await scene.seconds_to_start(0)
        number_of_ears, waits = len(ears_of(scene)), list[float]()
        async with from_afar(scene):
            for number in range(1, 11):
                await until(lambda: len(ears_of(scene)) == number_of_ears, 5)
                killing_them = asyncio.to_thread(terminate, scene.postgres, scene.database, which=EARS)
                killed, waited = await asyncio.gather(killing_them, scene.seconds_to_start(number))
                assert killed == number_of_ears
                waits.append(waited)
    with capsys.disabled():
        print(f"\nin the moment of a cut {max(waits) * 1000:.0f} ms at worst")
    assert max(waits) < 1


@pytest.mark.parametrize("harm", [terminate, lambda server, _: server.restart("immediate")], ids=["ended", "restarted"])
async def test_once_it_listens_again_a_job_starts_at_once(server: PostgresServer, harm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The job is sent by another broker than the worker's, so that nothing but a notification can tell."""
    async with Scene(server) as scene, scene.worker():
        await scene.seconds_to_start(0)
        number_of_ears = len(ears_of(scene))
        await asyncio.to_thread(harm, server, scene.database)
        await until(lambda: len(ears_of(scene)) == number_of_ears, 10)
        await asyncio.sleep(0.2)
        async with from_afar(scene):
            waits = [await scene.seconds_to_start(number) for number in range(1, 6)]
    with capsys.disabled():
        print(f"\nfrom afar, after the ears came back: {max(waits) * 1000:.0f} ms at worst")
    assert max(waits) < 0.5  # to look again takes the worker 5 s


def ears_of(scene: Scene) -> set[tuple[Any, ...]]:
    """The server's processes behind the listening connections; none while it is away."""
    with contextlib.suppress(OSError, asyncpg.PostgresError):
        return set(scene.postgres.rows(f"SELECT pid FROM pg_stat_activity WHERE {EARS} AND datname = $1", scene.database))
    return set()


@asynccontextmanager
async def from_afar(scene: Scene) -> AsyncIterator[None]:
    """What is sent inside goes by another broker than the workers', so that nothing but a notification can tell them."""
    afar = connect(scene.straight_url)
    with default_app().using(afar):
        await scene.send([-1])
        await scene.until_ran([-1])
        yield
    await afar.close()


@pytest.mark.parametrize("sends", ["note.delay_sync({})", "asyncio.run(send({}))", "asyncio.run(send_many({}))"])
async def test_a_program_that_ends_as_soon_as_it_has_sent_has_told_the_workers(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, sends: str
) -> None:
    """A worker that hears nothing looks for itself after 5 s, or here never."""
    monkeypatch.setattr(fetcher, "LOOK_AGAIN", 3600.0)
    async with scene.worker():
        await scene.seconds_to_start(0)
        async with from_afar(scene):  # the worker's ears are open
            pass
        for number in (1, 2):
            environment = {**os.environ, "TASKFLOW_BROKER": scene.straight_url}
            program = await asyncio.create_subprocess_exec(sys.executable, "-c", _SENDER + sends.format(number), env=environment)
            assert await program.wait() == 0
            await scene.until_ran([number], within=10)


_SENDER: Final = """
import asyncio, taskflow

@taskflow.job(name="tests.stores.redis.note")
async def note(number: int, ballast: bytes = b"") -> None: ...

async def send(number):
    await note.delay(number)

async def send_many(number):
    await taskflow.enqueue([note.bind(number)])

"""


async def test_a_session_that_goes_on_with_a_dropped_function_is_left(scene: Scene) -> None:
    """A migration that comes while a session looks a function up leaves it with one that is gone, for as long as the session lasts."""
    broker = connect(scene.straight_url)
    await asyncio.gather(*(broker.read([bytes(16)]) for _ in range(5)))
    scene.postgres.execute(_FAILS_IN_OLD_SESSIONS, scene.database)

    assert await asyncio.gather(*(broker.read([bytes(16)]) for _ in range(5))) == [[None]] * 5

    await broker.close()


_FAILS_IN_OLD_SESSIONS: Final = """
    CREATE TABLE public.old AS SELECT pid FROM pg_stat_activity WHERE datname = current_database();
    CREATE OR REPLACE FUNCTION taskflow.read(wall bigint, ids bytea[]) RETURNS SETOF taskflow.jobs LANGUAGE plpgsql AS $$
    BEGIN
        IF pg_backend_pid() IN (SELECT pid FROM public.old) THEN
            RAISE EXCEPTION 'cache lookup failed for function 12345' USING ERRCODE = 'XX000';
        END IF;
    END $$;
"""


# --- cut and swallowed by the network -----------------------------------------------------------------------------


async def test_cuts_of_all_connections_lose_and_repeat_nothing(proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the statements have been sent, and nobody knows whether they took effect."""
    configure(enqueue_timeout=PATIENCE)
    cuts = 12
    async with Scene(shared_postgres(), proxy=proxy) as scene, scene.worker():
        await scene.seconds_to_start(-1)
        proxy.latency = 0.002
        for first in range(0, 20 * cuts, 20):
            sending = asyncio.create_task(scene.send(range(first, first + 20)))
            await asyncio.sleep(0.002 + first / 20 * 0.0003)
            await asyncio.to_thread(proxy.cut_all)
            await sending
        await scene.until_done()
        await scene.assert_each_settled_once()
        with capsys.disabled():
            print(f"\n{cuts} cuts of all connections under {len(scene.handles)} jobs; runs {scene.runs.total()}")


@pytest.mark.usefixtures("_short_timeouts")
async def test_a_hole_in_the_network_that_lasts_longer_than_every_timeout(proxy: Proxy) -> None:
    """The session's time to live too: its worker gives itself up, begins another session when the hole is mended, and all is done."""
    configure(enqueue_timeout=PATIENCE)
    async with Scene(shared_postgres(), proxy=proxy) as scene:
        async with scene.worker(ttl=1):
            await scene.send(range(HALF_WAY))
            await scene.until_done()
            await asyncio.to_thread(proxy.blackhole)
            sending = asyncio.create_task(scene.send(range(HALF_WAY, 2 * HALF_WAY)))
            await until(lambda: any(isinstance(event, SessionEnded) for event in scene.events), 20)
            await asyncio.to_thread(proxy.heal)
            await sending
            await scene.until_done()
        await scene.assert_each_settled_once()
        assert sum(isinstance(event, SessionOpened) for event in scene.events) >= 2


@pytest.mark.usefixtures("_short_timeouts")
async def test_ears_that_are_dead_in_silence_are_made_anew(proxy: Proxy) -> None:
    """Old connections carry nothing any more, new ones do: the worker hears of a job as soon as it has noticed."""
    async with Scene(shared_postgres(), proxy=proxy) as scene, scene.worker():
        await scene.seconds_to_start(0)
        dead = ears_of(scene)
        await asyncio.to_thread(proxy.blackhole)
        await asyncio.sleep(0.5)  # a connection that nobody has used meanwhile would have lost nothing
        await asyncio.to_thread(proxy.heal)
        await until(lambda: len(ears_of(scene) - dead) == len(dead), 10)
        async with from_afar(scene):
            assert await scene.seconds_to_start(1) < 0.5


@pytest.mark.usefixtures("_short_timeouts")
async def test_a_server_stopped_for_longer_than_the_timeout_of_a_statement(server: PostgresServer) -> None:
    """SIGSTOP in the midst of work. What is sent meanwhile fails in time; each run that ends meanwhile is told once the server goes on."""
    async with Scene(server) as scene, scene.worker(ttl=20):
        scene.takes = 0.2
        await scene.send(range(HALF_WAY))
        await asyncio.sleep(0.05)
        server.suspend()
        began_at = asyncio.get_running_loop().time()
        configure(enqueue_timeout=0.6)
        with pytest.raises(BrokerUnavailable, match="has been away for"):
            await scene.note.delay(-1)
        assert asyncio.get_running_loop().time() - began_at < 2
        server.resume()
        configure(enqueue_timeout=PATIENCE)
        await scene.send(range(HALF_WAY, 2 * HALF_WAY))
        await scene.until_done()
        assert not [event for event in scene.events if isinstance(event, SessionEnded)]
        assert all(scene.runs[number] == 1 for number in scene.handles)
