"""The test servers and the proxy affect a server as the tests assume, and leave nothing behind."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.binaries import ServerBinary
from tests.support.postgres import PostgresServer, postgres_binaries
from tests.support.proxy import DROP_COMMAND, DROP_REPLY, GARBLE, PASS, Fate, Proxy, delay, delay_reply
from tests.support.servers import HOST, RedisServer

SHORT = 0.15
"""Seconds after which a client here gives up."""

NEVER = Retry(NoBackoff(), 0)


@pytest.mark.parametrize("found", postgres_binaries(), ids=lambda found: found.name)
def test_committed_rows_outlive_each_kind_of_end(found: ServerBinary) -> None:
    with PostgresServer(found.path) as server:
        server.execute("create table numbers (number int)")
        for end in ("fast", "immediate", None):
            server.execute("insert into numbers values (1)")
            server.kill() if end is None else server.stop(end)
            assert not server.is_running
            server.start()
        assert server.rows("select count(*) from numbers") == [(3,)]
        assert os.geteuid() != 0 or Path(f"/proc/{server.pid}").stat().st_uid == pwd.getpwnam(server.user or "").pw_uid != 0


@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGKILL)", "own.suspend(); os.kill(os.getpid(), signal.SIGKILL)", "sys.exit()"]
)
@pytest.mark.parametrize("kind", ["servers.RedisServer", "postgres.PostgresServer"])
def test_a_server_does_not_outlive_the_process_that_started_it(kind: str, end: str) -> None:
    script = f"""
import os, signal, sys
from tests.support import postgres, servers
from tests.support.processes import children_of
own = {kind}().start()
print(own.folder, own.pid, *children_of(own.pid), flush=True)
{end}
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert run.stderr == ""
    folder, *pids = run.stdout.split()
    deadline = time.monotonic() + 20
    while left := [path for path in (folder, *(f"/proc/{pid}" for pid in pids)) if Path(path).exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("fate", "takes_effect", "is_cut", "waits"),
    [
        (PASS, True, False, False),
        (DROP_COMMAND, False, True, False),
        (DROP_REPLY, True, True, False),
        (GARBLE, True, True, False),
        (delay(2 * SHORT), False, True, True),
        (delay_reply(2 * SHORT), True, True, True),
    ],
    ids=lambda value: value.kind.value if isinstance(value, Fate) else "",
)
def test_the_proxy_does_as_its_rule_says(fate: Fate, takes_effect: bool, is_cut: bool, waits: bool) -> None:
    with (
        RedisServer() as server,
        Proxy(HOST, server.port) as proxy,
        redis.Redis(port=proxy.port, socket_timeout=SHORT, retry=NEVER) as client,
    ):
        client.ping()
        proxy.rule = lambda command: fate if command.name == b"SET" else PASS
        began = time.monotonic()
        try:
            client.set("a", "1")
        except redis.RedisError:
            assert is_cut
        else:
            assert not is_cut
        assert (time.monotonic() - began > SHORT * 0.9) == waits
        with server.client() as other:
            assert (other.get("a") is not None) == takes_effect


def test_the_proxy_loses_what_meets_a_black_hole_until_it_is_healed() -> None:
    with (
        RedisServer() as server,
        Proxy(HOST, server.port, parse=None) as proxy,
        redis.Redis(port=proxy.port, socket_timeout=SHORT, retry=NEVER) as client,
    ):
        assert client.ping()
        proxy.blackhole()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        proxy.heal()
        assert client.ping()
        proxy.refuse()
        proxy.cut_all()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        proxy.listen_again()
        assert client.ping()
