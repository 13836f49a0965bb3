"""`taskflow doctor`: what it finds, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.inprocess import Cli
from tests.support.postgres import PostgresServer
from tests.support.servers import RedisServer


def test_a_file_is_sound(cli: Cli) -> None:
    """The file, its version and its disk are told; nothing is wrong with a fresh one."""
    said = cli("doctor")

    assert "file: " in said.out
    assert "queue.db" in said.out
    assert "persistence: an enqueue and an outcome are on the disk" in said.out


def test_a_server_without_persistence_is_a_problem(cli: Cli) -> None:
    """Jobs that end with the server are worth an exit code of a check that failed; the URL's password is not told."""
    with RedisServer(settings={"requirepass": "hunter2"}) as server:
        told = cli.json("doctor", "--broker", server.url, code=1)

    problems = [finding["topic"] for finding in told["findings"] if finding["level"] == "problem"]
    assert problems == ["persistence"]
    assert "hunter2" not in str(told)


@pytest.mark.parametrize(
    ("appendfsync", "options", "level", "says"),
    [
        ("everysec", "", "note", "a power cut may lose the last second or more"),
        ("everysec", "?durability=fsync", "ok", "survives a power cut"),
        ("always", "", "ok", "survives a power cut"),
    ],
)
def test_an_append_only_file(cli: Cli, appendfsync: str, options: str, level: str, says: str) -> None:
    """What a power cut may lose depends on both the server's setting and the URL's."""
    with RedisServer(aof=True, appendfsync=appendfsync) as server:
        told = cli.json("doctor", "--broker", server.url + options)

    [persistence] = [finding for finding in told["findings"] if finding["topic"] == "persistence"]
    assert persistence["level"] == level
    assert says in persistence["says"]


def test_a_server_that_evicts(cli: Cli) -> None:
    """It is not worked with; who says in the URL that jobs may be lost is told that it is a problem all the same."""
    with RedisServer(aof=True, settings={"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}) as server:
        refused = cli("status", "--broker", server.url, code=3)
        told = cli.json("doctor", "--broker", server.url, code=1)

    assert "maxmemory-policy allkeys-lru" in refused.err
    assert [finding["topic"] for finding in told["findings"] if finding["level"] == "problem"] == ["eviction"]


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes", "synchronous_commit"])
def test_a_postgres_that_does_not_wait_for_its_disk(cli: Cli, setting: str) -> None:
    with PostgresServer(settings={setting: "off"}) as server:
        told = cli.json("doctor", "--broker", server.url(server.new_database()), code=1)

    [problem] = [finding for finding in told["findings"] if finding["level"] == "problem"]
    assert problem["topic"] == "persistence"
    assert problem["says"].startswith(f"{setting} is off: a crash of the ")


def test_a_postgres_that_is_sound(cli: Cli) -> None:
    with PostgresServer() as server:
        told = cli.json("doctor", "--broker", server.url(server.new_database()))

    assert {finding["topic"]: finding["level"] for finding in told["findings"]} == {
        "server": "ok",
        "persistence": "ok",
        "wake-ups": "ok",
        "room": "ok",
    }


def test_no_server(cli: Cli, tmp_path: Path) -> None:
    """A store that is not there is no finding, but an error: exit 3."""
    assert "does not answer" in cli("doctor", "--broker", "redis://127.0.0.1:1", code=3).err
