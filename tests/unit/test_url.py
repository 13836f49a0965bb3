"""Broker URLs: what each names, and the errors for wrong ones."""

from __future__ import annotations

import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from taskflow.app.settings import Settings
from taskflow.broker.postgres import PostgresBroker, PostgresTarget
from taskflow.broker.postgres.connect.server import Address
from taskflow.broker.redis import RedisBroker, RedisTarget
from taskflow.broker.sqlite import SqliteBroker
from taskflow.broker.url import SCHEMES, connect, masked
from taskflow.model.errors import BrokerUrlError, ConfigurationError, DriverMissing


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///queue.db", "{here}/queue.db"),
        ("sqlite:////var/lib/queue.db", "/var/lib/queue.db"),
        ("sqlite:////var/a%20b%3Fc%23d.db", "/var/a b?c#d.db"),
        ("sqlite:////var/queue.db?shared=1&namespace=Shop.eu-1", "/var/queue.db"),
        ("sqlite:////var/queue.db?owner=root", "/var/queue.db"),
    ],
)
def test_sqlite(url: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes are relative to the current folder at that moment, four are absolute; nothing is opened yet."""
    monkeypatch.chdir(tmp_path)

    broker = connect(url)

    assert isinstance(broker, SqliteBroker)
    namespace = "'Shop.eu-1'" if "namespace" in url else "'taskflow'"
    assert repr(broker) == f"<SqliteBroker {path.format(here=tmp_path.resolve())} {namespace}>"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("redis://", RedisTarget()),
        ("redis://host:6380/3", RedisTarget(host="host", port=6380, db=3)),
        ("REDIS://:secret@host", RedisTarget(host="host", password="secret")),
        ("redis://me:p%40ss@[::1]:1/", RedisTarget(host="::1", port=1, username="me", password="p@ss")),
        ("redis://host?durability=fsync&evicting=1&namespace=shop", RedisTarget(host="host", fsync=True, evicting=True)),
        (
            "rediss://host?tls_ca=/ca.pem&tls_cert=/me.pem&tls_key=/me.key&tls_check=0",
            RedisTarget(host="host", tls=True, ca_file="/ca.pem", cert_file="/me.pem", key_file="/me.key", check_certificate=False),
        ),
    ],
)
def test_redis(url: str, server: RedisTarget) -> None:
    """Host, port, database, user and the options after the question mark; nothing is opened yet."""
    broker = connect(url)

    assert isinstance(broker, RedisBroker)
    assert broker.server == server
    assert "p@ss" not in repr(broker)
    assert "p@ss" not in f"{server!r} {server} {server.__rich_repr__()}"


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("postgresql://", PostgresTarget()),
        ("postgres://me:p%40ss@db:6543/app", PostgresTarget(host="db", port=6543, database="app", user="me", password="p@ss")),
        ("postgresql://db/app?tls=require&namespace=shop", PostgresTarget(host="db", database="app", tls="require")),
        ("postgresql://db/app?tls_ca=/ca.pem", PostgresTarget(host="db", database="app", tls="verify-full", ca_file="/ca.pem")),
        (
            "postgresql://pooler:6432/app?pooled=1&listen=[::1]:5432",
            PostgresTarget(host="pooler", port=6432, database="app", is_pooled=True, listen_at=(Address("::1", 5432),)),
        ),
        (
            "postgresql://me:p%40ss@db1:5433,db2/app?listen=db1:5432,[::2]:5432",
            PostgresTarget(
                host="db1",
                port=5433,
                others=(Address("db2"),),
                database="app",
                user="me",
                password="p@ss",
                listen_at=(Address("db1"), Address("::2")),
            ),
        ),
        (
            "postgresql://[::1],[::2]:1,db,127.0.0.1:2/app",
            PostgresTarget(host="::1", others=(Address("::2", 1), Address("db"), Address("127.0.0.1", 2)), database="app"),
        ),
        ("postgresql://me:p%2C@db", PostgresTarget(host="db", user="me", password="p,")),
    ],
)
def test_postgres(url: str, server: PostgresTarget) -> None:
    """Host, port, database, user and the options after the question mark; nothing is opened yet."""
    broker = connect(url)

    assert isinstance(broker, PostgresBroker)
    assert broker.server == server
    assert "p@ss" not in repr(broker)
    assert "p@ss" not in f"{server!r} {server} {server.__rich_repr__()}"


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra that installs it."""
    monkeypatch.setattr("taskflow.broker.url.find_spec", lambda name: None)

    with pytest.raises(DriverMissing, match=r"pip install asyncpg"):
        connect("postgresql://host/db")


def test_a_namespace_longer_than_a_schemas_name() -> None:
    with pytest.raises(ConfigurationError, match="63 characters"):
        connect("postgresql://host/db?namespace=" + "a" * 64)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "no scheme"),
        ("sqlite:queue.db", "no scheme"),
        ("sqlight:///queue.db", "did you mean sqlite://"),
        ("amqp://host", "known schemes are memory://, sqlite://"),
        ("memory://queue", "neither a host nor a path"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite://queue.db", "three slashes"),
        ("sqlite://[::1/queue.db", "malformed host"),
        ("sqlite:///a%00b", "a control character, '\\x00'"),
        ("redis://ho\x85st", "a control character, '\\x85'"),
        ("redis://host?namespace=a:b", "the namespace 'a:b': expected 1 to 100"),
        ("redis://:a\udcff@host", "not UTF-8"),
        ("sqlite:///queue.db#x", "%23"),
        ("sqlite:///queue.db?shard=1", "unknown parameter 'shard': did you mean shared=?"),
        ("sqlite:///queue.db?timeout=5", "known parameters are namespace, shared"),
        ("memory://?shared=1", "known parameters are namespace"),
        ("sqlite:///queue.db?shared=yes", "shared='yes': expected 0 or 1"),
        ("sqlite:///queue.db?shared=1&shared=0", "'shared' twice"),
        ("sqlite:///queue.db?owner=no-such-user", "owner='no-such-user': expected the name or the uid of a user"),
        ("sqlite:///queue.db?namespace=a/b", "namespace 'a/b'"),
        ("redis://host/queue", "a database that is not a number"),
        pytest.param("redis://host/" + "9" * 5_000, "a database that is not a number", id="a database of 5,000 digits"),
        ("redis://host/\u0663", "a database that is not a number"),
        ("redis://host?durability=disk", "durability='disk': expected server or fsync"),
        ("redis://host?tls_ca=ca.pem", "tls_ca= without TLS: write rediss://"),
        ("postgresql://host/db?tls=on", "tls='on': expected one of disable, prefer"),
        ("postgresql://db1,,db2/db", "an empty host in its list: expected hosts such as db1:5432,db2:5432"),
        ("postgresql://db1:5432:5433,db2/db", "a port that is not a number"),
        ("postgresql://db1,db2/d@b", "@ as %40"),
        ("postgresql://host/db?listen=a:1,b", "listen='a:1,b': expected one or more hosts with ports"),
        ("postgresql://host/db?sslmode=require", "unknown parameter 'sslmode': did you mean tls=?"),
        ("sqlite:////:memory:/", "sqlite:////:memory:/"),
    ],
)
def test_malformed(url: str, says: str) -> None:
    with pytest.raises(BrokerUrlError) as refused:
        connect(url)
    assert says in str(refused.value)


@pytest.mark.parametrize("scheme", ["redis+sentinel", "redis+cluster"])
def test_brokers_to_come(scheme: str) -> None:
    with pytest.raises(ConfigurationError, match=f"does not support {re.escape(scheme)}:// brokers"):
        connect(f"{scheme}://user:hunter2@host/0")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:hunter2@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://user:hun@ter2@host", "redis://user:***@host"),
        ("redis://user:hun/ter2@host", "redis://***"),
        ("redis://user:hunter2", "redis://***"),
        ("redis://hunter2@host", "redis://***@host"),
        ("redis://host/hunter2", "redis://***"),
        ("redos://user:hunter2@host", "redos://***"),
        ("//user:hunter2@host", "***"),
        ("redis://:hunter2\n@host", "redis://***"),
        ("redis://:hunter2@host\n", "redis://***"),
        ("postgresql://me@db/app", "postgresql://me@db/app"),
        ("postgresql://me:hunter2@[::1]:5433,db2/app", "postgresql://me:***@[::1]:5433,db2/app"),
        ("postgresql://host/db?user=me&password=hunter2&namespace=x", "postgresql://host/db?***&***&namespace=x"),
        ("postgresql://host/db?sslPassword=hunter2", "postgresql://host/db?***"),
        ("sqlite:////home/me/queue.db?namespace=a", "sqlite:////home/me/queue.db?namespace=a"),
        ("sqlite://user:hunter2@host/queue.db", "sqlite://***"),
        ("sqlite:////home/me@home/queue.db", "sqlite:////home/me@home/queue.db"),
    ],
)
def test_masked(url: str, shown: str) -> None:
    assert masked(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://user:hunter2@host/queue.db",
        "redos://user:hunter2@host",
        "redis://user:hunter2@host:port",
        "redis://user:hun/ter2@host:6379/0",
        "redis://:ab?hunter2@host",
        "postgresql://user:hun/ter2@host,host2:5432/db",
        "postgresql://user:1,hun:ter2/x@host/db",
        "postgresql://user:hunter2@host,,host2/db",
        "postgresql://user:hunter2@host,host2:x/db",
        "rediss://user:hunter2@host?tls=1",
        "redis+cluster://user:hunter2@host",
        "sqlite://u:hunter2@[::1/x",
        "//u:hunter2@host",
        "redis://:hunter2\n@host",
        "sqlite://user:/hunter2@host/0",
        "redis://:ab?hunter2&c@host",
    ],
)
def test_no_error_shows_a_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        connect(url)
    assert "hunter2" not in str(refused.value)
    assert "hun" not in str(refused.value)
    assert "ter2" not in str(refused.value)


AROUND = st.text("@:/?#&=%[],;. \n\t\x7f\u20281xX", max_size=6)


@given(st.sampled_from([*SCHEMES, "redos", "redis+cluster"]), AROUND, AROUND)
def test_no_password_is_shown_however_it_is_written(scheme: str, before: str, after: str) -> None:
    """This includes passwords with characters that must be written as %xx."""
    url = f"{scheme}://user:{before}hunter2{after}@host/0"
    assert "hunter2" not in masked(url)
    if (refused := refusal_of(url)) is not None:
        assert "hunter2" not in "".join(traceback.format_exception(refused))
        assert "hunter2" not in str(refused.__context__)


def refusal_of(url: str) -> ConfigurationError | None:
    try:
        connect(url)
    except ConfigurationError as refused:
        return refused
    return None


def test_neither_a_server_nor_settings_show_a_password() -> None:
    for url in ("redis://me:hunter2@host", "redis://hunter2@host", "postgresql://me:hunter2@host/app"):
        broker, settings = connect(url), Settings(broker=url)
        assert isinstance(broker, RedisBroker | PostgresBroker)
        for shown in (broker.server, broker.server.__rich_repr__(), settings, settings.__rich_repr__()):
            assert "hunter2" not in f"{shown!r} {shown}"
    assert "broker=None" in repr(Settings())


def test_only_the_broker_asked_for_is_imported() -> None:
    """`memory://` loads no sqlite3."""
    script = "import sys; before = set(sys.modules); from taskflow.broker.url import connect; connect('memory://'); "
    script += "print('sqlite3' in set(sys.modules) - before)"

    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "False"
