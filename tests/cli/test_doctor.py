"""`taskflow doctor`: its findings, and its exit codes."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import psycopg
import pytest
import redis

from taskflow.broker.postgres.schema import VERSION
from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Envelope
from taskflow.model.session import Beat, Session
from tests.cli.inprocess import Cli
from tests.cli.processes import on_each_broker
from tests.support.postgres import PostgresServer, shared_postgres
from tests.support.servers import RedisServer

MIB: Final = 1 << 20


def test_a_file_is_sound(cli: Cli) -> None:
    """The file, its version and its disk are reported; a fresh one has no problem."""
    cli("migrate")
    said = cli("doctor")

    assert said.out.startswith("broker   sqlite:///queue.db\nok       file: ")
    assert "queue.db" in said.out
    assert "persistence: enqueues and outcomes are on disk" in said.out


@pytest.mark.parametrize(
    ("of_file", "free", "level"),
    [(0, 100, "problem"), (0, 101, "ok"), (128, 110, "problem"), (128, 300, "ok")],
    ids=["next to nothing", "enough for a small file", "less than the file takes", "enough for a large file"],
)
def test_a_disk_without_room_is_a_problem(cli: Cli, monkeypatch: pytest.MonkeyPatch, of_file: int, free: int, level: str) -> None:
    """In MiB: a hundred are little for any file, and so is less than the file's size, which may double."""
    with closing(sqlite3.connect(cli.folder / "queue.db", isolation_level=None)) as file:
        file.execute("CREATE TABLE others (content)")
        file.execute("INSERT INTO others VALUES (zeroblob(?))", (of_file * MIB,))
    cli("migrate", "--broker", "sqlite:///queue.db?shared=1")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free * MIB))
    told = cli.json("doctor", "--broker", "sqlite:///queue.db?shared=1", code=int(level == "problem"))

    [room] = [finding for finding in told["findings"] if finding["topic"] == "room"]
    assert room == {"topic": "room", "level": level, "says": f"{free * MIB:,} bytes free on its disk"}


def test_a_damaged_page_is_a_problem(cli: Cli) -> None:
    cli.with_broker(lambda broker: broker.enqueue([Envelope(id=os.urandom(16), job="send", payload=bytes(3_000)) for _ in range(200)]))
    with closing(sqlite3.connect(cli.folder / "queue.db")) as file:
        [(page,)] = file.execute("SELECT max(rootpage) FROM sqlite_master")
        [(size,)] = file.execute("PRAGMA page_size")
    with open(cli.folder / "queue.db", "r+b") as raw:
        raw.seek((page - 1) * size)
        raw.write(b"\xee" * size)
    told = cli.json("doctor", code=1)

    [pages] = [finding for finding in told["findings"] if finding["topic"] == "pages"]
    assert pages["level"] == "problem"
    assert pages["says"].startswith("the file is damaged: ")


@on_each_broker
def test_trouble_that_workers_report_is_a_problem(cli: Cli, new_store: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that answers everything else may refuse the claims from a queue, or upkeep."""
    monkeypatch.setenv("TASKFLOW_BROKER", new_store())
    sessions = [Session(id=bytes([number]) * 16, name=f"web:{number}") for number in range(2)]
    troubled = msgspec.structs.replace(sessions[1], trouble="claiming fails: integer out of range")

    async def register(broker: Broker) -> None:
        for session in (*sessions, troubled):
            await broker.register(session)

    cli.with_broker(register)
    findings = cli.json("doctor", code=1)["findings"]
    assert {"topic": "worker web:1", "level": "problem", "says": troubled.trouble} in findings
    assert not any(finding["topic"] == "worker web:0" for finding in findings)
    cli.with_broker(lambda broker: broker.register(sessions[1]))
    others = [finding for finding in findings if finding["level"] == "problem" and finding["topic"] != "worker web:1"]  # the test's Redis
    assert {"topic": "workers", "level": "ok", "says": "no trouble reported by 2"} in cli.json("doctor", code=int(bool(others)))["findings"]


@pytest.mark.parametrize(
    ("maxmemory", "level", "says"),
    [(1.05, "problem", "bytes in use"), (2.0, "ok", "bytes in use"), (0.0, "note", "the system may kill the server")],
    ids=["nearly full", "half full", "without a bound"],
)
def test_the_memory_of_a_server(cli: Cli, maxmemory: float, level: str, says: str) -> None:
    """The bound is a multiple of the memory in use; 0 is no bound. If nearly full, the server refuses new jobs soon: the exit code is that
    of a failed check."""
    with RedisServer(aof=True, appendfsync="always") as server, closing(server.client()) as client:
        client.config_set("maxmemory", int(maxmemory * int(client.info("memory")["used_memory"])))
        told = cli.json("doctor", "--broker", server.url, code=int(level == "problem"))

    [room] = [finding for finding in told["findings"] if finding["topic"] == "room"]
    assert room["level"] == level
    assert says in room["says"]


EVICTING = {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}


@pytest.mark.parametrize(
    ("server", "options", "topic", "level", "says"),
    [
        ({"settings": {"requirepass": "hunter2"}}, "", "persistence", "problem", ""),
        ({"aof": True, "appendfsync": "everysec"}, "", "persistence", "note", "a power failure may lose the last second or more"),
        ({"aof": True, "appendfsync": "everysec"}, "?durability=fsync", "persistence", "ok", "survive a power failure"),
        ({"aof": True, "appendfsync": "always"}, "", "persistence", "ok", "survive a power failure"),
        ({"aof": True, "settings": EVICTING}, "", "eviction", "problem", "allkeys-lru"),
    ],
    ids=["no persistence", "each second", "each second, but the URL waits", "always", "evicting"],
)
def test_the_durability_of_redis(cli: Cli, server: dict[str, Any], options: str, topic: str, level: str, says: str) -> None:
    """What a power cut may lose depends on both the server's setting and the URL's. A server that evicts keys is refused."""
    with RedisServer(**server) as running:
        told = cli.json("doctor", "--broker", running.url + options, code=int(level == "problem"))
        if topic == "eviction":
            assert says in cli("status", "--broker", running.url, code=3).err
    [found] = [finding for finding in told["findings"] if finding["topic"] == topic]
    assert found["level"] == level
    assert says in found["says"]
    assert {finding["topic"] for finding in told["findings"] if finding["level"] == "problem"} == ({topic} if level == "problem" else set())
    assert "hunter2" not in str(told)


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes", "synchronous_commit"])
def test_a_postgres_that_does_not_wait_for_its_disk(cli: Cli, setting: str) -> None:
    with PostgresServer(settings={setting: "off"}) as server:
        url = server.url(server.new_database())
        cli("migrate", "--broker", url)
        told = cli.json("doctor", "--broker", url, code=1)

    [problem] = [finding for finding in told["findings"] if finding["level"] == "problem"]
    assert problem["topic"] == "persistence"
    assert problem["says"].startswith(f"{setting} is off: a crash of the ")


def test_a_postgres_that_is_sound(cli: Cli) -> None:
    with PostgresServer() as server:
        url = server.url(server.new_database())
        cli("migrate", "--broker", url)
        told = cli.json("doctor", "--broker", url)

    levels = {finding["topic"]: finding["level"] for finding in told["findings"]}
    assert levels == dict.fromkeys(("server", "persistence", "wake-ups", "room", "indexes"), "ok")


@on_each_broker
def test_a_rebuild_corrects_what_differs(cli: Cli, new_store: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The rebuild is reported and recorded. A worker prevents it, and is named."""
    url = new_store()
    monkeypatch.setenv("TASKFLOW_BROKER", url)
    session = Session(id=b"1" * 16, name="web:1")
    cli.with_broker(lambda broker: broker.enqueue([Envelope(id=os.urandom(16), job="send", payload=b"\x01", tags=("a",))]))
    cli.with_broker(lambda broker: broker.register(session))
    refused = cli("doctor", "--rebuild", code=3)
    assert "1 running worker(s): web:1. Stop them with SIGTERM" in refused.err
    cli.with_broker(lambda broker: broker.beat(Beat(session=session.id, leaving=True)))

    assert cli("doctor", "--rebuild").out.endswith("records read; nothing to correct\n")
    _change_counts(url)
    findings = cli.json("doctor", code=1)["findings"]
    [found] = [finding for finding in findings if finding["topic"] == "indexes"]
    assert (found["level"], "`taskflow doctor --rebuild`" in found["says"]) == ("problem", True)
    assert cli.json("doctor", "--rebuild", "--reason", "restored")["corrected"] == {"counts": 1}
    [entry] = cli.json("audit")
    assert (entry["action"], entry["affected"], entry["reason"]) == ("rebuild", 1, "restored")
    assert cli("doctor", "--rebuild").out.endswith("nothing to correct\n")


def _change_counts(url: str) -> None:
    if url.startswith("redis"):
        server, _, namespace = url.partition("?namespace=")
        with closing(redis.Redis.from_url(server)) as client:
            client.hset(f"{{{namespace}:0}}:counts", "2default", "5")
    elif url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as file:
            file.execute("UPDATE taskflow_counted SET n = 5 WHERE what = '=2'")
    else:
        with psycopg.connect(url.split("?")[0], autocommit=True) as database:
            database.execute("INSERT INTO taskflow.tally (queue, after, n) VALUES ('default', 2, 4)")


def test_no_server(cli: Cli, tmp_path: Path) -> None:
    """A missing store is no finding, but an error: exit 3."""
    assert "does not answer" in cli("doctor", "--broker", "redis://127.0.0.1:1", code=3).err
    [line] = cli("doctor", "--rebuild", "--broker", "redis://127.0.0.1:1", code=3).err.splitlines()  # nothing about the audit log
    assert "does not answer" in line


# --- migrate: what it says, and how it ends; what it does: tests/stores/test_migrations.py ------------------------------


@pytest.fixture
def url() -> str:
    """A database without a schema."""
    return shared_postgres().url(shared_postgres().new_database())


def test_migrate_applies_pending_migrations(cli: Cli, url: str) -> None:
    assert cli("migrate", "--broker", url).out == f"schema 'taskflow': created, version {VERSION}\n"
    assert cli("migrate", "--broker", url).out == f"schema 'taskflow' is up to date (version {VERSION})\n"
    assert cli("migrate", "--plan", "--broker", url).out == f"schema 'taskflow' is up to date (version {VERSION})\n"
    assert "workers    0" in cli("status", "--broker", f"{url}?migrate=0").out


def test_migrate_creates_missing_tables(cli: Cli) -> None:
    server = shared_postgres()
    url = server.url(server.new_database()) + "?namespace=shop"

    assert "schema 'shop' does not exist yet; pending:\n  1  The tables.\n" in cli("migrate", "--plan", "--broker", url).out
    assert cli("migrate", "--broker", f"{url}&migrate=0").out == f"schema 'shop': created, version {VERSION}\n"


def test_a_plan_changes_nothing(cli: Cli, url: str) -> None:
    """It lists the steps and says how to go on."""
    for _ in range(2):
        said = cli("migrate", "--plan", "--broker", url)
        assert said.out == (
            f"schema 'taskflow' does not exist yet; pending:\n  {VERSION}  The tables.\n"
            "to apply: taskflow migrate; to see the SQL: taskflow migrate --sql\n"
        )


def test_the_sql_is_printed_and_not_run(cli: Cli, url: str) -> None:
    for _ in range(2):
        said = cli("migrate", "--sql", "--broker", url)
        assert said.out.startswith(f"-- taskflow, schema 'taskflow': from version 0 to {VERSION}.")
        assert said.out.endswith("\n\nCOMMIT;\n")


@pytest.mark.parametrize("url", ["memory://", "redis://127.0.0.1:1"])
def test_the_others_need_none(cli: Cli, url: str) -> None:
    """They are not even contacted: no server has to exist."""
    scheme = url.partition(":")[0]
    says = f"{scheme}:// needs no migrations: the first use creates everything\n"
    assert cli("migrate", "--broker", url).out == says
    assert cli("migrate", "--plan", "--broker", url).out == says
    assert cli("migrate", "--sql", "--broker", url).out == f"-- {says}"  # which psql accepts
