"""The address in the URL leads to a silent server or to another program, or TLS does not fit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from taskflow import BrokerError, BrokerRefused, BrokerUnavailable
from taskflow.broker.postgres import schema
from taskflow.broker.postgres.connect import server as server_module
from taskflow.broker.postgres.connect.server import Address, PostgresTarget
from taskflow.broker.url import connect
from taskflow.model.errors import BrokerUrlError
from tests.support.postgres import shared_postgres
from tests.support.servers import HOST

CERTIFICATE: Final = Path(__file__).parent / "db.internal.pem"
"""Self-signed, for the host db.internal, with its key; valid until 2126."""


@asynccontextmanager
async def listening(answer: bytes | None, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A port where something answers so to the first bytes, begins TLS if there is a context, and closes. None: it says nothing."""
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
    """Also one that falls silent once connected."""

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
        assert "perhaps it does not speak PostgreSQL" in str(await said_by(f"postgresql://app@{HOST}:{port}/app?tls=disable"))


async def test_a_certificate_that_does_not_fit_is_refused() -> None:
    """One that no authority of the system has signed, one for another host, and a file of authorities that is not there."""
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
