"""Servers that refuse users, are missing, or cannot be used: a clear error, and no secret in its text."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Final

import pytest

from taskflow.broker.url import connect
from taskflow.model.errors import BrokerError
from tests.support.postgres import PostgresServer, shared_postgres
from tests.support.servers import HOST, RedisServer, free_port, has_tls, redis_binaries

SECRET: Final = "hush-hush"
WRONG: Final = "not-the-secret"

SERVERS: Final[dict[str, Any]] = {
    "redis": (RedisServer, {"settings": {"requirepass": SECRET}}, "Redis", "rejects this user and password", "over TLS does not answer"),
    "postgres": (
        PostgresServer,
        {"fsync": False, "access": ["host all app all scram-sha-256"]},
        "PostgreSQL",
        "refuses: .*password",
        "offers no TLS, which tls=require",
    ),
}
"""How to start a server whose user has the password SECRET, and what errors say about it."""


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.xdist_group(f"refusals of {kind}")) for kind in SERVERS], scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def port(kind: str) -> Iterator[int]:
    with SERVERS[kind][0](**SERVERS[kind][1]) as server:
        if kind == "postgres":
            server.execute(f"CREATE ROLE app LOGIN PASSWORD '{SECRET}'; GRANT CREATE ON DATABASE postgres TO app")
        yield server.port


async def check_refusal(url: str, *patterns: str) -> None:
    """Check that the broker's error matches, and shows no secret."""
    broker = connect(url)
    with pytest.raises(BrokerError) as refused:
        await broker.read([bytes(16)])
    for pattern in patterns:
        assert re.search(pattern, str(refused.value)), refused.value
    told = "".join([repr(broker), *traceback.format_exception(refused.value)])
    assert SECRET not in told
    assert WRONG not in told
    await broker.close()


def url_of(kind: str, port: int, password: str = "", *, tls: bool = False) -> str:
    secret = password and f":{password}"
    if kind == "redis":
        return f"redis{'s' * tls}://{secret and f'{secret}@'}{HOST}:{port}/0"
    return f"postgresql://app{secret}@{HOST}:{port}/postgres{'?tls=require' * tls}"


async def test_the_right_password_is_not_shown(kind: str, port: int) -> None:
    broker = connect(url_of(kind, port, SECRET))
    assert await broker.read([bytes(16)]) == [None]
    assert SECRET not in repr(broker)
    await broker.close()


async def test_no_password_a_wrong_one_no_tls_and_nobody_there(kind: str, port: int) -> None:
    _, _, name, refuses, lacks_tls = SERVERS[kind]
    for password in ("", WRONG):
        await check_refusal(url_of(kind, port, password), f"{HOST}:{port} {refuses}")
    await check_refusal(url_of(kind, port, SECRET, tls=True), f"{name} at {HOST}:{port} {lacks_tls}")
    await check_refusal(url_of(kind, nobody := free_port(), SECRET), f"{name} at {HOST}:{nobody} does not answer")


@contextmanager
def a_replica() -> Iterator[str]:
    with RedisServer() as primary, RedisServer(settings={"replicaof": f"{HOST} {primary.port}"}) as replica:
        yield replica.url


@contextmanager
def behind_tls(options: str = "") -> Iterator[str]:
    able = [found for found in redis_binaries() if has_tls(found.path)]
    assert able, "no server of this machine has TLS"
    with RedisServer(able[0].path, tls=True, settings={"requirepass": SECRET}) as server:
        yield f"{server.url}{options.format(server.ca_file)}"


@contextmanager
def another_layout() -> Iterator[str]:
    """It is left alone; another namespace of the same server is another store."""
    with RedisServer() as server, server.client() as client:
        client.hset("{taskflow:0}:meta", "layout", 99)
        yield server.url
        assert client.keys("{taskflow:0}:*") == [b"{taskflow:0}:meta"]


@contextmanager
def a_standby() -> Iterator[str]:
    with PostgresServer(fsync=False) as server:
        server.stop()
        server.data.joinpath("standby.signal").touch()
        server.start()
        yield server.url()


@contextmanager
def a_read_only_database() -> Iterator[str]:
    database = shared_postgres().new_database()
    shared_postgres().execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    yield shared_postgres().url(database)


UNUSABLE: Final[dict[str, tuple[Callable[[], AbstractContextManager[str]], Sequence[str]]]] = {
    "replica": (a_replica, ["read-only replica: name the primary"]),
    "TLS of an unknown authority": (behind_tls, ["over TLS cannot be trusted: .*certificate", r"\?tls_ca="]),
    "no file of an authority": (partial(behind_tls, "?tls_ca={}.none"), ["no TLS with Redis at .*none"]),
    "layout": (another_layout, [r"another version of taskflow under \{taskflow:0\}:", r"layout is 99", r"namespace="]),
    "standby": (a_standby, ["read-only standby: name the primary"]),
    "read-only database": (a_read_only_database, ["read-only transaction"]),
    "no database": (lambda: nullcontext(shared_postgres().url("nowhere")), ['refuses: database "nowhere" does not exist']),
    "no role": (lambda: nullcontext(shared_postgres().url(user="nobody")), ['refuses: role "nobody" does not exist']),
}


@pytest.mark.parametrize("what", UNUSABLE)
async def test_a_server_that_cannot_be_used(what: str) -> None:
    opened, patterns = UNUSABLE[what]
    with opened() as url:
        await check_refusal(url, *patterns)
        if what == "layout":
            broker = connect(f"{url}?namespace=other")
            assert await broker.read([bytes(16)]) == [None]
            await broker.close()


async def test_tls_with_the_right_authority() -> None:
    with behind_tls("?tls_ca={}") as url:
        broker = connect(url)
        assert await broker.read([bytes(16)]) == [None]
        await broker.close()
        gc.collect()  # what was not closed would be told here
