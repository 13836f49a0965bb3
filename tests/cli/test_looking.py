"""Commands that only read: they create nothing in a store."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis

from tests.cli.inprocess import Cli
from tests.cli.processes import on_each_broker

AN_ID = "01a20e69-e073-7000-9acc-49abe1cd4c9a"

LOOKING = [
    *(["status"], ["queues"], ["workers"], ["metrics"], ["audit"], ["failures"], ["doctor"], ["migrate", "--plan"], ["migrate", "--sql"]),
    *(["jobs"], ["jobs", AN_ID], ["jobs", "--job", "send", "--error", "oh"], ["explain", AN_ID], ["check", "tasks"]),
    *(["schedules"], ["schedules", "list", "nightly"], ["schedules", "next", "@daily"]),
    *([action, "--all", "--dry-run"] for action in ("retry", "cancel", "purge")),
]


def contents(url: str, folder: Cli) -> list[str]:
    """Return the names of the store's contents: files, keys or schemas."""
    match urlsplit(url).scheme:
        case "sqlite":
            return [file.name for file in folder.folder.iterdir() if "queue" in file.name]
        case "redis":
            with redis.Redis.from_url(url.partition("?")[0]) as client:
                return [str(key) for key in client.keys(f"*{url.partition('namespace=')[2]}*")]
        case _:
            return folder.with_broker(lambda _: schemas(url))


async def schemas(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema$|^public$'")
        return [row["nspname"] for row in rows]
    finally:
        await connection.close()


@on_each_broker
def test_a_command_that_looks_creates_nothing(cli: Cli, new_store: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    url = new_store()
    monkeypatch.setenv("TASKFLOW_BROKER", url)
    cli.write("tasks.py", "from taskflow import job\n@job\ndef send(): pass\n")
    is_made = not url.startswith("redis")  # Redis has nothing to create
    for words in LOOKING:
        if "next" not in words and "migrate" not in words and is_made:
            assert "does not exist: the first job creates it" in cli(*words, code=3).err, words
        else:
            cli(*words, code=4 if AN_ID in words or "nightly" in words else int("doctor" in words))
        assert contents(url, cli) == [], words


def test_tables_of_another_program_get_none_of_ours_from_a_look(cli: Cli) -> None:
    (cli.folder / "queue.db").touch()
    said = cli("status", "--broker", "sqlite:///queue.db?shared=1", code=3)
    assert said.err.startswith(f"taskflow: namespace 'taskflow' of {cli.folder}/queue.db does not exist: the first job creates it")
    assert (cli.folder / "queue.db").stat().st_size == 0
