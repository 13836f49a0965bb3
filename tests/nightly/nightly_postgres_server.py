"""The Postgres servers that the tests run are real ones, and are ended, crashed and suspended as the tests say."""

from __future__ import annotations

import asyncio
import gc
import os
import pwd
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.nightly.until import ended, until
from tests.support import postgres, processes
from tests.support.binaries import ServerBinary, ServerFailed
from tests.support.postgres import PostgresServer, postgres_binaries, shared_postgres, the_postgres_binary
from tests.support.processes import children_of

every_server = pytest.mark.parametrize("found", postgres_binaries(), ids=lambda found: found.name)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One for the tests that leave it as it was."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What was found is looked for again, before and after."""
    postgres_binaries.cache_clear()
    yield
    postgres_binaries.cache_clear()


def run_in_python(script: str, *, user: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **processes._identity(user))


def segments() -> set[str]:
    """Of shared memory of System V, what there is."""
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def segment_of(server: PostgresServer) -> str:
    return (server.data / "postmaster.pid").read_text().splitlines()[6].split()[1]


def numbers_in(server: PostgresServer) -> list[int]:
    return [number for (number,) in server.rows("select number from numbers order by number")]


def test_the_first_server_found_is_the_default() -> None:
    assert the_postgres_binary() == postgres_binaries()[0]


def test_each_major_version_is_found_once() -> None:
    majors = [found.version[0] for found in postgres_binaries()]
    assert len(majors) == len(set(majors))


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("of", [lambda binary: binary, lambda binary: binary.parent], ids=["binary", "folder"])
def test_the_named_servers_come_first(monkeypatch: pytest.MonkeyPatch, of: object) -> None:
    assert callable(of)
    *_, last = postgres_binaries()
    postgres_binaries.cache_clear()
    monkeypatch.setattr(postgres, "_NAMED", str(of(last.path)))
    assert postgres_binaries()[0] == last


@pytest.mark.usefixtures("forgotten")
def test_a_named_server_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_NAMED", "/bin/true")
    with pytest.raises(ServerFailed, match="names /bin/true, which is no Postgres"):
        postgres_binaries()


@pytest.mark.usefixtures("forgotten")
def test_a_machine_without_a_server_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(postgres, "_COMMAND", "no-such-server")
    monkeypatch.setattr(postgres, "_IN_DEBIAN", tmp_path)
    monkeypatch.setattr(postgres, "_IN_WHEELS", ())
    with pytest.raises(ServerFailed, match=r"pip install -e '\.\[test\]'"):
        the_postgres_binary()


@every_server
def test_committed_rows_outlive_each_kind_of_end_on_the_same_port(found: ServerBinary) -> None:
    with PostgresServer(found.path) as server:
        port = server.port
        assert server.rows("show server_version")[0][0].startswith(found.name.split()[1])
        assert server.rows("show fsync") == [("on",)]
        server.execute("create table numbers (number int); insert into numbers values (1)")
        server.restart()
        server.execute("insert into numbers values (2)")
        server.restart("immediate")
        server.execute("insert into numbers values (3)")
        server.kill()
        assert not server.is_running
        server.start()
        assert (numbers_in(server), server.port) == ([1, 2, 3], port)
        assert "database system was not properly shut down" in server.log


async def test_an_immediate_end_loses_what_was_not_committed(server: PostgresServer) -> None:
    database = server.new_database()
    server.execute("create table numbers (number int)", database)
    connection = await asyncpg.connect(server.url(database))
    await connection.execute("begin; insert into numbers values (1)")
    server.restart("immediate")
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.execute("commit")
    assert server.rows("select * from numbers", database=database) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_started_by_root_it_is_an_ordinary_users(server: PostgresServer) -> None:
    owner = Path(f"/proc/{server.pid}").stat().st_uid
    assert owner == pwd.getpwnam(server.user or "").pw_uid != 0
    assert server.data.stat().st_uid == owner


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests are it, where we are not root")
def test_it_starts_for_who_is_not_root() -> None:
    script = """
        import os
        from tests.support.postgres import PostgresServer
        with PostgresServer() as server:
            print(os.geteuid() != 0, server.rows("select 1"), os.stat(f"/proc/{server.pid}").st_uid == os.geteuid())
        print(server.folder.exists())
    """
    try:
        run = run_in_python(script, user="nobody")
    except PermissionError:
        pytest.skip("this Python lies where nobody but root can run it")
    assert run.stdout == "True [(1,)] True\nFalse\n", run.stderr


async def test_a_suspended_server_answers_nothing_until_it_is_resumed(server: PostgresServer) -> None:
    connection = await asyncpg.connect(server.url())
    server.suspend()
    asked = asyncio.ensure_future(connection.fetchval("select 1"))
    done, _ = await asyncio.wait([asked], timeout=0.05)
    assert not done
    server.resume()
    assert await asked == 1
    await connection.close()


@pytest.mark.parametrize("end", ["stop", "kill", "remove"])
def test_a_suspended_server_can_be_ended(end: str) -> None:
    server = PostgresServer(fsync=False).start()
    pids = [server.pid, *children_of(server.pid)]
    server.suspend()
    getattr(server, end)()
    assert not server.is_running
    assert all(ended(pid, timeout=0) for pid in pids)
    server.remove()


def test_a_crash_leaves_no_process_and_no_shared_memory() -> None:
    with PostgresServer() as server:
        pids, segment = [server.pid, *children_of(server.pid)], segment_of(server)
        assert len(pids) > 3
        assert segment in segments()
        server.kill()
        assert all(ended(pid, timeout=0) for pid in pids)
        assert segment not in segments()


def test_a_stopped_server_refuses_connections() -> None:
    with PostgresServer(fsync=False) as server:
        server.stop()
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            server.rows("select 1")


def test_settings_and_access_win() -> None:
    with PostgresServer(
        fsync=False, settings={"fsync": "on", "application_name": "it's"}, access=["host all app all scram-sha-256"]
    ) as server:
        assert server.rows("select current_setting('fsync'), current_setting('max_connections')") == [("on", "100")]
        server.execute("create role app login password 's:/@'")

        async def who(url: str) -> object:
            connection = await asyncpg.connect(url)
            try:
                return await connection.fetchval("select current_user::text")
            finally:
                await connection.close()

        assert asyncio.run(who(server.url(user="app", password="s:/@"))) == "app"
        with pytest.raises(asyncpg.InvalidPasswordError):
            asyncio.run(who(server.url(user="app", password="other")))


async def test_a_new_database_is_empty_until_it_is_dropped_under_those_who_use_it(server: PostgresServer) -> None:
    one, other = server.new_database(), server.new_database()
    server.execute("create table numbers (number int)", one)
    assert server.rows("select to_regclass($1)::text", "numbers", database=other) == [(None,)]
    connection = await asyncpg.connect(server.url(one))
    server.drop_database(one)
    server.drop_database(other)
    assert server.rows("select 1 from pg_database where datname = any($1)", [one, other]) == []
    connection.terminate()


def test_one_that_does_not_start_tells_what_its_log_says() -> None:
    server = PostgresServer(settings={"shared_buffers": "much"})
    with pytest.raises(ServerFailed, match=r"(?s)did not start. Its log ends:.*shared_buffers"):
        server.start()
    assert not server.is_running
    server.remove()


def test_it_is_not_started_twice(server: PostgresServer) -> None:
    with pytest.raises(RuntimeError, match="is running already"):
        server.start()


def test_one_that_is_forgotten_leaves_nothing_behind() -> None:
    server = PostgresServer(fsync=False).start()
    pids, folder, segment = [server.pid, *children_of(server.pid)], server.folder, segment_of(server)
    del server
    gc.collect()
    assert all(ended(pid, timeout=0) for pid in pids)
    assert not folder.exists()
    assert segment not in segments()


@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGKILL)", "own.suspend(); os.kill(os.getpid(), signal.SIGKILL)", "sys.exit()"]
)
def test_it_does_not_outlive_the_process_that_started_it(end: str) -> None:
    script = f"""
        import os, signal, sys
        from tests.support import postgres
        from tests.support.processes import children_of
        own = postgres.PostgresServer().start()
        for server in (own, postgres.shared_postgres()):
            segment = (server.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
            print(server.folder, segment, server.pid, *children_of(server.pid), flush=True)
        print(postgres._template(own.binary).parent, 0, flush=True)
        {end}
    """
    run = run_in_python(script)
    lines = [line.split() for line in run.stdout.splitlines()]
    assert (len(lines), run.stderr) == (3, "")
    assert all(ended(int(pid), timeout=20) for _, _, *pids in lines for pid in pids)
    # The watchman removes it after it has ended the server.
    until(lambda: not any(Path(folder).exists() for folder, *_ in lines))
    assert not segments() & {segment for _, segment, *pids in lines if pids}


def test_the_shared_one_is_the_same_for_all_and_without_fsync() -> None:
    assert shared_postgres().rows("select current_setting('fsync'), current_setting('max_connections')") == [("off", "100")]
    assert shared_postgres() is shared_postgres()
