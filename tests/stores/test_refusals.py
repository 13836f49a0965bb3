"""Servers that let nobody in, or are not there: a clear error, exit code 3, and no secret in what is said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from taskflow.broker.url import connect
from tests.cli.inprocess import Cli
from tests.stores.refusals import SECRET, WRONG, exits_by_broker, locked_postgres
from tests.support.servers import HOST, RedisServer, free_port

REFUSES: Final = {"redis": "rejects this user and password", "postgres": "refuses: .*password"}
LACKS_TLS: Final = {"redis": "over TLS does not answer", "postgres": "offers no TLS, which tls=require"}
NAMES: Final = {"redis": "Redis", "postgres": "PostgreSQL"}


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.xdist_group(f"refusals of {kind}")) for kind in NAMES], scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def port(kind: str) -> Iterator[int]:
    """Of a server without TLS whose user has the password SECRET."""
    with RedisServer(settings={"requirepass": SECRET}) if kind == "redis" else locked_postgres() as server:
        yield server.port


def url_of(kind: str, port: int, password: str | None, *, tls: bool = False) -> str:
    secret = "" if password is None else f":{password}"
    if kind == "redis":
        return f"redis{'s' * tls}://{secret and f'{secret}@'}{HOST}:{port}/0"
    return f"postgresql://app{secret}@{HOST}:{port}/postgres{'?tls=require' * tls}"


@pytest.mark.parametrize("password", [None, WRONG], ids=["none", "a wrong one"])
def test_a_wrong_password(cli: Cli, kind: str, port: int, password: str | None) -> None:
    exits_by_broker(cli, url_of(kind, port, password), f"{HOST}:{port} {REFUSES[kind]}")


async def test_the_right_password(kind: str, port: int) -> None:
    broker = connect(url_of(kind, port, SECRET))
    assert await broker.read([bytes(16)]) == [None]
    assert SECRET not in repr(broker)
    await broker.close()


def test_nobody_there(cli: Cli, kind: str) -> None:
    exits_by_broker(cli, url_of(kind, port := free_port(), SECRET), f"{NAMES[kind]} at {HOST}:{port} does not answer")


def test_tls_asked_of_a_server_without(cli: Cli, kind: str, port: int) -> None:
    exits_by_broker(cli, url_of(kind, port, SECRET, tls=True), f"{NAMES[kind]} at {HOST}:{port} {LACKS_TLS[kind]}")
