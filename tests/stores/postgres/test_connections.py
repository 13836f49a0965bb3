"""Connections: their cost, statements that the server cancels, and addresses that lead to something else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from taskflow import BrokerError, BrokerRefused, BrokerUnavailable
from taskflow.broker.postgres import schema
from taskflow.broker.postgres.broker import PostgresBroker
from taskflow.broker.postgres.connect import server as server_module
from taskflow.broker.postgres.connect.pool import ConnectionPool
from taskflow.broker.postgres.connect.server import Address, PostgresTarget
from taskflow.broker.url import connect
from taskflow.model.errors import BrokerUrlError
from taskflow.worker import fetcher
from tests.stores.postgres.scene import Scene
from tests.support.postgres import shared_postgres
from tests.support.servers import HOST
from tests.support.waiting import until


@pytest.fixture
async def pool(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ConnectionPool]:
    monkeypatch.setattr("taskflow.broker.postgres.connect.pool.SURPLUS_TTL", 0.3)
    broker = connect(scene.straight_url)
    assert isinstance(broker, PostgresBroker)
    pool = ConnectionPool(broker.server)
    yield pool
    await pool.close()


def connections(scene: Scene) -> int:
    return len(scene.postgres.rows("SELECT FROM pg_stat_activity WHERE application_name = 'taskflow' AND datname = $1", scene.database))


async def test_a_new_connection_asks_the_server_for_no_types(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver would do so, by a statement that takes longer than all others, for each array among our columns."""

    async def refuse(*arguments: Any) -> object:
        raise AssertionError("types are asked for")

    monkeypatch.setattr(asyncpg.Connection, "_introspect_types", refuse)
    async with scene.worker():
        await scene.send(range(30))
        await scene.until_done()


async def test_a_sibling_does_not_check_the_schema_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's heartbeat is a sibling. The check would take longer than anything else that the server does for the first job."""
    await scene.store.read([bytes(16)])

    async def refuse(*arguments: Any) -> None:
        raise AssertionError("checked again")

    monkeypatch.setattr(schema, "check_owner", refuse)
    sibling = scene.store.sibling()
    await sibling.read([bytes(16)])
    await sibling.close()


async def test_connections_that_were_not_needed_for_a_while_are_closed(scene: Scene, pool: ConnectionPool) -> None:
    """All but one are closed, and none that is used again and again. An idle worker also has one that listens and one for heartbeats."""
    for kept in (2, 1):
        await asyncio.gather(*[pool.fetch("SELECT pg_sleep(0.1)") for _ in range(5)])
        assert connections(scene) == 5
        for _ in range(8):
            await asyncio.gather(*[pool.fetch("SELECT pg_sleep(0.1)") for _ in range(kept)])
        await until(lambda: connections(scene) == kept, within=5)  # noqa: B023 - it is awaited here
    async with scene.worker():
        await scene.send(range(500))
        await scene.until_ran(range(500))
        await until(lambda: connections(scene) <= 1 + 3)


async def test_a_statement_that_the_server_cancelled_is_sent_again_on_the_same_connection(scene: Scene, pool: ConnectionPool) -> None:
    """A new one would plan all of it again, and be cancelled again. One that is always cancelled fails in the end."""
    scene.postgres.execute("CREATE SEQUENCE turns", scene.database)
    scene.set("statement_timeout", "100")
    [[before]] = await pool.fetch("SELECT pg_backend_pid()")
    slow_twice = "SELECT pg_backend_pid(), pg_sleep(CASE WHEN nextval('turns') < 3 THEN 10 ELSE 0 END)"
    [[after, _]] = await pool.fetch(slow_twice)
    assert after == before
    with pytest.raises(BrokerUnavailable, match="statement timeout"):
        await pool.fetch("SELECT pg_sleep(10)")


async def test_a_transaction_that_fails_leaves_no_connection_behind(scene: Scene, pool: ConnectionPool) -> None:
    with pytest.raises(BrokerError, match="division by zero"):
        async with pool.transaction() as fetch:
            await fetch("SELECT 1 / 0")
    await until(lambda: connections(scene) == 0, within=5)
    assert [row[0] for row in await pool.fetch("SELECT 1")] == [1]


_SENDER: Final = """
import asyncio, taskflow

@taskflow.job(name="tests.stores.note")
async def note(number: int, padding: bytes = b"") -> None: ...

async def send(number):
    await note.delay(number)

async def send_many(number):
    await taskflow.enqueue([note.bind(number)])

"""


@pytest.mark.parametrize("sends", ["note.delay_sync({})", "asyncio.run(send({}))", "asyncio.run(send_many({}))"])
async def test_a_program_that_ends_as_soon_as_it_has_sent_has_told_the_workers(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, sends: str
) -> None:
    """A worker without a notification polls after 5 s, or here never."""
    monkeypatch.setattr(fetcher, "POLL_INTERVAL", 3600.0)
    async with scene.worker():
        await scene.seconds_to_start(0)
        async with scene.from_afar():  # the worker's listener is connected
            pass
        for number in (1, 2):
            environment = {**os.environ, "TASKFLOW_BROKER": scene.straight_url}
            program = await asyncio.create_subprocess_exec(sys.executable, "-c", _SENDER + sends.format(number), env=environment)
            assert await program.wait() == 0
            await scene.until_ran([number], within=10)


CERTIFICATE: Final = Path(__file__).parent / "db.internal.pem"
"""Self-signed, for the host db.internal, with its key; valid until 2126."""


@asynccontextmanager
async def listening(answer: bytes | None, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Yield a port that answers the first bytes with `answer`, begins TLS if there is a context, and closes. None: it says nothing."""
    opened = list[asyncio.StreamWriter]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        await reader.read(1_000)
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        if context is not None:
            with contextlib.suppress(OSError):
                await writer.start_tls(context)
                await reader.read(1)
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for writer in opened:  # Python 3.11 does not wait for them when the server is closed
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def said_by(url: str) -> BrokerError:
    broker = connect(url)
    with pytest.raises(BrokerError) as raised:
        await broker.read([bytes(16)])
    await broker.close()
    assert "migrat" not in str(raised.value)
    return raised.value


async def test_a_silent_server_is_said_not_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """This includes one that falls silent once connected."""

    async def wait(*_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(server_module, "CONNECT_TIMEOUT", 0.2)
    async with listening(None) as port:
        error = await said_by(f"postgresql://app@{HOST}:{port}/app")
    assert isinstance(error, BrokerUnavailable)
    assert "does not answer: no answer within 0.2 s" in str(error)
    monkeypatch.undo()
    monkeypatch.setattr(schema, "ANSWER_TIMEOUT", 0.2)
    monkeypatch.setattr(schema, "_check_server", wait)
    assert "does not answer" in str(await said_by(shared_postgres().dsn))


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-ERR unknown command\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"])
async def test_a_foreign_server_is_said_not_to_speak_postgresql(answer: bytes) -> None:
    async with listening(answer) as port:
        error = await said_by(f"postgresql://app@{HOST}:{port}/app")
        assert isinstance(error, BrokerRefused)
        assert "does not speak PostgreSQL: check host and port" in str(error)
        assert "perhaps it is not a PostgreSQL server" in str(await said_by(f"postgresql://app@{HOST}:{port}/app?tls=disable"))


async def test_a_certificate_that_does_not_fit_is_refused() -> None:
    """No authority of the system has signed it, it is for another host, or the file of authorities is missing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    async with listening(b"S", context) as port:
        for options, says in {
            "tls=verify-full": "has an invalid certificate",
            f"tls_ca={CERTIFICATE}": "has an invalid certificate",
            "tls_ca=/nowhere/ca.pem": "tls_ca=/nowhere/ca.pem",
        }.items():
            error = await said_by(f"postgresql://app@{HOST}:{port}/app?{options}")
            assert isinstance(error, BrokerRefused)
            assert says in str(error)


def test_verify_full_checks_by_the_authorities_of_the_system_and_verify_ca_needs_a_file() -> None:
    context = PostgresTarget(tls="verify-full")._tls()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.cert_store_stats() == ssl.create_default_context().cert_store_stats()
    with pytest.raises(BrokerUrlError, match="verify-ca without tls_ca="):
        connect("postgresql://db.internal/app?tls=verify-ca")


async def test_prefer_off_the_loopback_is_warned_of_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(**_: object) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncpg, "connect", refuse)
    server_module._warn_of_prefer.cache_clear()
    targets = [PostgresTarget(host=host) for host in ("localhost", "127.0.0.3", "::1", "db.internal", "db.internal")]
    targets += [PostgresTarget(host="db.internal", tls=tls) for tls in ("disable", "require", "verify-full")]
    with caplog.at_level(logging.WARNING, "taskflow"):
        for target in targets:
            with pytest.raises(ConnectionRefusedError):
                await target.connect([Address(target.host)])
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["PostgreSQL at db.internal"]
    assert "tls=verify-full" in caplog.text
