"""The pgbouncer that the tests run is a real one: a client's transactions share connections with everybody else's."""

from __future__ import annotations

import asyncio
import os
import pwd
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from asyncpg.prepared_stmt import PreparedStatement

from tests.nightly.until import ended, until
from tests.support import pgbouncer
from tests.support.binaries import ServerFailed
from tests.support.pgbouncer import PgBouncer, is_there, the_pgbouncer_binary
from tests.support.postgres import PostgresServer, shared_postgres

pytestmark = pytest.mark.skipif(
    not os.environ.get("CI") and not is_there(),
    reason="there is no pgbouncer on this machine: apt-get install pgbouncer (where CI is set, that is a failure)",
)


@pytest.fixture
def bouncer() -> Iterator[PgBouncer]:
    """One that knows no prepared statements, and has one connection."""
    with PgBouncer(shared_postgres(), pool_size=1) as bouncer:
        yield bouncer


@pytest.fixture(autouse=True)
async def _no_connection_stays() -> AsyncIterator[None]:
    yield
    while _opened:
        _opened.pop().terminate()
    await asyncio.sleep(0)


_opened: list[asyncpg.Connection] = []


async def connect(bouncer: PgBouncer, cache: int = 0) -> asyncpg.Connection:
    """It is closed after the test."""
    _opened.append(await asyncpg.connect(bouncer.dsn, statement_cache_size=cache, timeout=10, command_timeout=10))
    return _opened[-1]


def test_a_machine_without_one_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    the_pgbouncer_binary.cache_clear()
    monkeypatch.setattr(pgbouncer, "_NAMED", "")
    monkeypatch.setattr(pgbouncer, "_COMMAND", "no-such-bouncer")
    with pytest.raises(ServerFailed, match="apt-get install pgbouncer"):
        the_pgbouncer_binary()


@pytest.mark.parametrize("prepared", [0, 100])
async def test_each_transaction_has_a_connection_that_others_had_before(prepared: int) -> None:
    with PgBouncer(shared_postgres(), pool_size=1, max_prepared_statements=prepared) as bouncer:
        one, other = await connect(bouncer), await connect(bouncer)
        pids = [await client.fetchval("select pg_backend_pid()") for client in (one, other, one)]
        assert len(set(pids)) == 1
        async with one.transaction():
            assert await one.fetchval("select $1::int + 1", 1) == 2
            waiting = asyncio.ensure_future(other.fetchval("select 3"))
            done, _ = await asyncio.wait([waiting], timeout=0.05)
            assert not done
        assert await waiting == 3


async def test_without_support_a_prepared_statement_is_another_clients_too(bouncer: PgBouncer) -> None:
    """Both name theirs alike, and meet on the one connection."""
    one, other = await connect(bouncer), await connect(bouncer)
    await _prepared(one, 1)
    with pytest.raises(asyncpg.DuplicatePreparedStatementError):
        await _prepared(other, 2)


async def test_with_support_clients_have_prepared_statements_of_their_own() -> None:
    with PgBouncer(shared_postgres(), pool_size=1, max_prepared_statements=100) as bouncer:
        one, other = await connect(bouncer, cache=10), await connect(bouncer, cache=10)
        mine, its = await _prepared(one, 1), await _prepared(other, 2)
        assert (await mine.fetchval(), await its.fetchval(), await mine.fetchval()) == (1, 2, 1)


async def _prepared(client: asyncpg.Connection, number: int) -> PreparedStatement[asyncpg.Record]:
    """A statement that has run: until then asyncpg, which has only flushed, keeps the connection from the others."""
    statement = await client.prepare(f"select {number}", name="mine")
    assert await statement.fetchval() == number
    return statement


async def test_what_is_set_for_a_session_leaks_to_whoever_comes_next(bouncer: PgBouncer) -> None:
    """That is what transaction mode means, and why nothing may be set so."""
    one, other = await connect(bouncer), await connect(bouncer)
    await one.execute("set statement_timeout = 12345")
    assert await other.fetchval("show statement_timeout") == "12345ms"
    await other.execute("reset all")


async def test_the_console_holds_and_releases_queries(bouncer: PgBouncer) -> None:
    client = await connect(bouncer)
    bouncer.command("PAUSE")
    waiting = asyncio.ensure_future(client.fetchval("select 1"))
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert not done
    bouncer.command("RESUME")
    assert await waiting == 1


async def test_it_stays_when_the_server_behind_it_is_restarted() -> None:
    with PostgresServer(fsync=False) as server, PgBouncer(server) as bouncer:
        client = await connect(bouncer)
        assert await client.fetchval("select 1") == 1
        server.restart("immediate")
        # One connection that the server closed may be handed out once more before the bouncer hears of it.
        client.terminate()
        client = await connect(bouncer)
        assert await client.fetchval("select 1") == 1


async def test_restarted_it_drops_its_clients_and_is_where_it_was(bouncer: PgBouncer) -> None:
    client, port = await connect(bouncer), bouncer.port
    bouncer.restart()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await client.fetchval("select 1")
    client.terminate()
    client = await connect(bouncer)
    assert (await client.fetchval("select 1"), bouncer.port) == (1, port)


async def test_suspended_it_carries_nothing_until_it_is_resumed(bouncer: PgBouncer) -> None:
    client = await connect(bouncer)
    bouncer.suspend()
    waiting = asyncio.ensure_future(client.fetchval("select 1"))
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert not done
    bouncer.resume()
    assert await waiting == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_started_by_root_it_is_an_ordinary_users(bouncer: PgBouncer) -> None:
    assert Path(f"/proc/{bouncer.pid}").stat().st_uid == pwd.getpwnam(bouncer.user or "").pw_uid != 0


def test_settings_win_and_a_wrong_one_is_told() -> None:
    bouncer = PgBouncer(shared_postgres(), settings={"pool_mode": "nonsense"})
    with pytest.raises(ServerFailed, match=r"(?s)did not start. Its log ends:.*pool_mode"):
        bouncer.start()
    bouncer.remove()


def test_what_is_removed_leaves_nothing_behind(bouncer: PgBouncer) -> None:
    pid, folder = bouncer.pid, bouncer.folder
    bouncer.remove()
    assert ended(pid, timeout=0)
    assert not folder.exists()


def test_it_does_not_outlive_the_process_that_started_it() -> None:
    script = """
        import os, signal
        from tests.support.pgbouncer import PgBouncer
        from tests.support.postgres import PostgresServer
        bouncer = PgBouncer(PostgresServer(fsync=False)).start()
        print(bouncer.pid, bouncer.folder, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30, check=False)
    pid, folder = run.stdout.split()
    assert ended(int(pid))
    until(lambda: not Path(folder).exists())
