"""A server without room or connections, with inconvenient settings, or whose process dies, and its standby."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from signal import SIGKILL
from typing import Final

import asyncpg
import pytest

from taskflow import BrokerUnavailable, Status, StoreFull, configure
from taskflow.app.app import default_app
from taskflow.broker.protocol import Added, Broker
from taskflow.broker.url import connect
from taskflow.model.errors import BrokerRefused
from taskflow.model.verdict import Settled
from tests.stores.jobs import an_envelope, envelopes, record_of, registered
from tests.stores.postgres.counts import SESSION, Store
from tests.stores.postgres.scene import Scene, terminate
from tests.stores.scene import TIMEOUT, elapsed_since
from tests.support.postgres import PostgresServer, shared_postgres
from tests.support.processes import HOST, free_port, new_folder
from tests.support.proxy import Proxy
from tests.support.standby import Standby
from tests.support.verdicts import failed
from tests.support.waiting import until

BALLAST: Final = os.urandom(20_000)
"""Bytes that cannot be compressed."""


@pytest.fixture
def small_disk(server: PostgresServer) -> Iterator[Path]:
    """A disk in memory, for the server's user: 24 MB, of which an empty database takes eight. Mounting it requires root."""
    folder = new_folder("disk", server.user)
    mount = ["mount", "-t", "tmpfs", "-o", "size=24000000,mode=0777", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        shutil.rmtree(folder)
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        server.stop("immediate")
        subprocess.run(["umount", folder], check=True)
        shutil.rmtree(folder)


async def test_a_full_disk_loses_nothing(server: PostgresServer, small_disk: Path) -> None:
    """While it is full nothing can be sent; the worker stays, and settles its runs when there is room."""
    reserve, data = small_disk / "reserve", small_disk / "data"
    reserve.write_bytes(bytes(6_000_000))
    data.mkdir()
    shutil.chown(data, server.user) if server.user else None
    server.execute(f"CREATE TABLESPACE small LOCATION '{data}'")
    server.execute("CREATE DATABASE small TABLESPACE small")
    async with Scene(server, database="small") as scene:
        async with scene.worker(ttl=20):
            await scene.send(range(10))
            await scene.until_done()
            scene.takes = 0.5
            configure(enqueue_timeout=TIMEOUT)
            sent = await scene.fill(BALLAST)
            with pytest.raises(StoreFull, match="has no room: could not extend file"):
                await scene.note.delay(-1, BALLAST)
            await asyncio.sleep(1)
            reserve.unlink()
            scene.takes = 0.0
            await scene.until_done()
            await scene.send(range(sent, sent + 20))
            await scene.until_done()
        await scene.assert_each_settled_once()
    assert not scene.has_lost_a_session


_NO_ROOM: Final = """
    CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
    END
    $$;
    CREATE TRIGGER no_room BEFORE INSERT OR UPDATE ON taskflow.{} FOR EACH STATEMENT EXECUTE FUNCTION no_room()
"""


@pytest.mark.parametrize("table", ["jobs", "sessions"])
async def test_no_room_for_any_write_ends_no_session(scene: Scene, table: str) -> None:
    """Calls that are sent meanwhile are refused; the worker keeps its session and its leases."""

    async def are_running() -> bool:
        return await scene.waiting() == {"running": 20}

    async with scene.worker(ttl=3):
        scene.takes = 0.5
        await scene.send(range(20))
        await until(are_running)
        await asyncio.to_thread(scene.postgres.execute, _NO_ROOM.format(table), scene.database)
        if table == "jobs":
            with pytest.raises(StoreFull):
                await scene.note.delay(-1)
        await asyncio.sleep(1)
        await asyncio.to_thread(scene.postgres.execute, f"DROP TRIGGER no_room ON taskflow.{table}", scene.database)
        await scene.until_done()
    await scene.assert_each_settled_once()
    assert not scene.has_lost_a_session
    assert scene.runs.total() == 20


MANY: Final = 100


async def test_a_backend_that_crashes_takes_all_connections_with_it_and_no_job(server: PostgresServer) -> None:
    """SIGKILL of one process, as the kernel does when memory runs out: the server ends all others and recovers by itself."""
    async with Scene(server) as scene:
        async with scene.worker(ttl=20):
            sending = asyncio.create_task(scene.keep_sending(range(MANY), by=2, ahead=MANY // 4))
            await scene.until_ran([20])
            [(pid,)] = server.rows("SELECT pid FROM pg_stat_activity WHERE datname = $1 LIMIT 1", scene.database)
            os.kill(pid, SIGKILL)
            await sending
            await scene.until_done()
        await scene.assert_each_settled_once()
        assert scene.runs.total() == MANY


async def test_no_connection_to_be_had_for_a_while() -> None:
    """Other programs have them all: senders wait, and runs that end meanwhile are settled once there is one again."""
    settings = {"max_connections": "14", "superuser_reserved_connections": "0"}
    with PostgresServer(fsync=False, settings=settings) as server:
        async with Scene(server) as scene, scene.worker(ttl=20):
            await scene.send([0])
            await scene.until_done()
            terminate(server, scene.database)
            others = list[asyncpg.Connection]()
            with contextlib.suppress(asyncpg.TooManyConnectionsError):
                while True:
                    others.append(await asyncpg.connect(server.url(), ssl=False))
            assert len(others) > 5
            sending = asyncio.create_task(scene.send(range(1, 20)))
            await asyncio.sleep(0.3)
            for connection in others:
                await connection.close()
            await sending
            await scene.until_done()
            await scene.assert_each_settled_once()


ODD: Final = [
    ("statement_timeout", "'20ms'"),
    ("idle_in_transaction_session_timeout", "'1ms'"),
    ("idle_session_timeout", "'100ms'"),
    ("default_transaction_isolation", "'repeatable read'"),
    ("default_transaction_isolation", "'serializable'"),
]


@pytest.mark.parametrize(("setting", "value"), ODD)
async def test_odd_settings_lose_and_repeat_nothing(scene: Scene, setting: str, value: str) -> None:
    """They also apply while the schema is created."""

    async def again_and_again(what: Callable[[], Awaitable[object]]) -> None:
        """Repeat until it succeeds: no other code resends a read of the store, or a worker's first registration."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                with contextlib.suppress(BrokerUnavailable):
                    await what()
                    return

    configure(enqueue_timeout=TIMEOUT)
    scene.set(setting, value)
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await again_and_again(lambda: stack.enter_async_context(scene.worker()))
        await asyncio.gather(*(scene.keep_sending(range(first, first + MANY // 4)) for first in range(0, MANY, MANY // 4)))
        await asyncio.sleep(0.2)
        await scene.send(range(MANY, MANY + 20))
        await again_and_again(scene.until_done)
    scene.set(setting, None)  # reads by the test itself may take longer
    await scene.assert_each_settled_once()


HOUR: Final = 3600.0


@pytest.mark.parametrize("wrong_by", [HOUR, -HOUR], ids=["fast", "slow"])
async def test_a_worker_whose_clock_is_off_by_an_hour(scene: Scene, monkeypatch: pytest.MonkeyPatch, wrong_by: float) -> None:
    """So may a sender's clock be: only the server's counts. Later jobs come later, and one that expires in a minute does not expire now."""
    right, right_in_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: right() + wrong_by)
    monkeypatch.setattr(time, "time_ns", lambda: right_in_ns() + int(wrong_by * 1e9))
    async with scene.worker():
        began_at = time.monotonic()
        soon = datetime.fromtimestamp(right(), UTC) + timedelta(seconds=0.3)
        note = scene.note
        given = note.options(after=0.3), note.options(at=soon), note.options(expires=60), note.options(after=HOUR / 2)
        scene.handles.update({number: await options.delay(number) for number, options in enumerate(given)})
        for number in (0, 1):
            await scene.until_ran([number])
            assert elapsed_since(began_at) >= 0.3
        await scene.until_done([0, 1, 2])
        await asyncio.sleep(1)  # until it has beaten
        await default_app().broker().upkeep(10)  # its session is not taken for dead
        assert await scene.told([3]) == {Status.SCHEDULED.value: 1}
        [record] = await scene.records([2])
        assert record is not None
        assert abs(record.created_at.timestamp() - right()) < 60
    totals = await scene.totals()
    assert (totals["succeed"], totals["crash"]) == (3, 0)
    assert not scene.has_lost_a_session


async def test_standard_conforming_strings_may_be_off(store: Store, stranger: asyncpg.Connection) -> None:
    """A database with standard_conforming_strings off, and a pooler that keeps it so: failures and crashes are written."""
    database = await stranger.fetchval("SELECT current_database()")
    await stranger.execute(f"ALTER DATABASE {database} SET standard_conforming_strings = off")
    broker = connect(f"{store.url}?pooled=1")
    await broker.enqueue(jobs := envelopes(2))
    first, second = await broker.claim(SESSION, 1, [], 10)
    assert await broker.settle([failed(first)]) == [Settled.OK]
    await registered(broker)  # whose beat shows that there was no outage
    away = round(HOUR * 1_000_000)
    await stranger.execute("UPDATE taskflow.sessions SET beat_at = beat_at - $1, lapses_at = lapses_at - $1 WHERE id = $2", away, SESSION)
    for _ in range(2):
        await broker.upkeep(10)
    assert [lease.envelope.id for lease in (first, second)] == [job.id for job in jobs]
    assert (await record_of(broker, jobs[0])).status is Status.FAILED
    assert len((await record_of(broker, jobs[1])).errors) == 1
    await broker.close()


LOAD = 300


@pytest.fixture
def standby(server: PostgresServer) -> Iterator[Standby]:
    with Standby(server) as standby:
        yield standby


def url_of_all(database: str, *ports: int) -> str:
    return f"postgresql://postgres@{','.join(f'{HOST}:{port}' for port in ports)}/{database}"


class SceneOfTwo(Scene):
    """All of it knows both addresses, including the reads of the store."""

    def __init__(self, first: PostgresServer, second: PostgresServer, *, database: str | None = None) -> None:
        super().__init__(first, database=database)
        self.straight_url = url_of_all(self.database, first.port, second.port)
        self._broker = connect(self.straight_url)

    async def check_wake_ups(self, numbers: range) -> None:
        """The jobs that another broker sends start soon, which only a notification can cause."""
        afar = connect(self.straight_url)
        with default_app().using(afar):
            await self.seconds_to_start(numbers.start)
            waits = [await self.seconds_to_start(number) for number in numbers[1:]]
        await afar.close()
        assert max(waits) < 2.0, waits  # a poll would come after 5 s


async def one_is_added(broker: Broker) -> float:
    began_at, envelope = time.monotonic(), an_envelope()
    assert await broker.enqueue([envelope]) == [Added(envelope.id)]
    return elapsed_since(began_at)


@pytest.mark.parametrize("is_dead", [True, False], ids=["dies", "turns read-only"])
async def test_a_primary_that_is_replaced_under_load_loses_and_repeats_nothing(
    server: PostgresServer, standby: Standby, is_dead: bool
) -> None:
    """Its standby is synchronous, which this requires. Sessions and leases survive with the other data, and wake-ups arrive as before.
    Connections to a primary that turns read-only live on, and every write on them fails: the listener leaves it too."""
    configure(enqueue_timeout=TIMEOUT)
    standby.be_waited_for()
    async with SceneOfTwo(server, standby) as scene:
        scene.takes = 0.02
        async with scene.worker(ttl=20), scene.worker(ttl=20):
            sending = asyncio.create_task(scene.keep_sending(range(LOAD), ahead=LOAD // 4))
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
            await scene.check_wake_ups(range(LOAD, LOAD + 6))
            await scene.until_done()
        await scene.assert_each_settled_once()
    assert not scene.has_lost_a_session


async def test_a_standby_at_the_first_address_is_passed_over_and_standbys_alone_are_waited_for(
    server: PostgresServer, standby: Standby
) -> None:
    """One of them may be promoted at any moment."""
    async with SceneOfTwo(standby, server, database=server.new_database()) as scene, scene.worker():
        await scene.send(range(20))
        await scene.until_done()
        await scene.check_wake_ups(range(20, 24))
    nobody = free_port()
    broker = connect(url_of_all("postgres", standby.port, nobody))
    with pytest.raises(BrokerUnavailable, match=rf"127.0.0.1:{standby.port} is read-only") as told:
        await one_is_added(broker)
    assert f"127.0.0.1:{nobody} reports:" in str(told.value)
    await asyncio.to_thread(standby.promote)
    await one_is_added(broker)
    await broker.close()


async def test_an_address_that_is_dead_in_silence_costs_a_part_of_the_timeout_and_once() -> None:
    """Otherwise each new connection would wait for it again. If all addresses refuse, so does the broker."""
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
