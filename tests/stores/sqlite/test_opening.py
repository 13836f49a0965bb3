"""Which files are opened, which are refused, and the errors."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from taskflow.broker import topics
from taskflow.broker.sqlite import SqliteBroker
from taskflow.broker.sqlite.statements import table_prefix
from taskflow.broker.sqlite.tables import VERSION
from taskflow.model.errors import BrokerRefused
from taskflow.model.session import Beat
from tests.stores.jobs import an_envelope, envelopes, record_of, registered
from tests.stores.sqlite.support import Open, connected, shared_folder, used_by_nobody
from tests.support.verdicts import succeeded


async def refusal(broker: SqliteBroker) -> str:
    with pytest.raises(BrokerRefused) as refused:
        await broker.enqueue([an_envelope()])
    assert type(refused.value) is BrokerRefused
    return str(refused.value)


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


def database_at(path: Path, *statements: str) -> None:
    with connected(path) as stranger:
        for statement in statements:
            stranger.execute(statement)


def damaged_store_at(path: Path) -> None:
    async def fill() -> None:
        broker = SqliteBroker(path)
        await broker.enqueue(envelopes(2_000))
        await broker.close()

    asyncio.run(fill())
    path.write_bytes(path.read_bytes()[:8_192].ljust(path.stat().st_size, b"\xa5"))


IN_THE_WAY: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a missing folder": ("no/queue.db", lambda path: None, "/no does not exist: create it"),
    "a file in the place of a folder": ("file/queue.db", lambda path: path.parent.touch(), "/file is not a folder"),
    "a folder": (".", lambda path: None, " is a folder: name a file"),
    "a pipe": ("queue.db", os.mkfifo, "queue.db is a pipe, a socket or a device, not a file"),
    "a socket": ("queue.db", socket_at, "queue.db is a pipe, a socket or a device, not a file"),
    "a device": ("/dev/null", lambda path: None, "/dev/null is a pipe, a socket or a device, not a file"),
    "not a database": ("queue.db", lambda path: path.write_bytes(b"Dear diary, " * 400), "queue.db is not an SQLite database"),
    "UTF-16": (
        "queue.db",
        lambda path: database_at(path, "PRAGMA encoding='UTF-16'", "CREATE TABLE orders (id)"),
        "queue.db has the encoding UTF-16",
    ),
    "a table that only looks like ours": (
        "queue.db",
        lambda path: database_at(path, "CREATE TABLE taskflow_jobs (id)"),
        "belong to another program",
    ),
    "a damaged store": ("queue.db", damaged_store_at, "queue.db is damaged"),
}


@pytest.mark.parametrize("what", IN_THE_WAY)
async def test_something_else_in_the_place_of_the_file(open_broker: Open, tmp_path: Path, what: str) -> None:
    """It is left unchanged. SQLite would call a pipe an I/O error, which would be retried again and again."""
    name, make, says = IN_THE_WAY[what]
    path = tmp_path / name
    await asyncio.to_thread(make, path)
    before = path.read_bytes() if path.is_file() else None
    assert says in await refusal(open_broker(path, shared=what == "UTF-16"))
    assert before is None or path.read_bytes() == before


async def test_tables_of_another_program(open_broker: Open, path: Path) -> None:
    """They are left unchanged, unless the file is to be shared; once it is, the URL need not say so again."""
    database_at(path, "CREATE TABLE orders (id)")
    before = path.read_bytes()
    said = await refusal(open_broker())
    assert "orders" in said
    assert "?shared=1" in said
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    await open_broker(shared=True).enqueue([an_envelope()])
    await open_broker().enqueue([an_envelope()])
    with connected(path) as stranger:
        assert stranger.execute("SELECT count(*) FROM orders").fetchall() == [(0,)]
        assert stranger.execute("PRAGMA user_version").fetchall() == [(0,)]


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="to be another user than oneself takes root")


@needs_root
@pytest.mark.parametrize(
    ("file_mode", "folder_mode", "says"),
    [
        (0o644, 0o777, "is read-only for uid 65534"),
        (0o200, 0o777, "cannot be read for uid 65534"),
        (0o666, 0o755, "where SQLite keeps its other files, is read-only for uid 65534"),
        (None, 0o755, "where SQLite keeps its other files, is read-only for uid 65534"),
    ],
)
def test_a_file_or_folder_that_cannot_be_written_is_refused(tmp_path: Path, file_mode: int | None, folder_mode: int, says: str) -> None:
    """The test runs as another user, because root may do everything."""
    with shared_folder(folder_mode) as folder:
        file = folder / "queue.db"
        if file_mode is not None:
            file.touch()
            file.chmod(file_mode)
        said = used_by_nobody(tmp_path / "own.db", "await broker.read([bytes(16)])", file)
    assert says in said
    assert str(file) in said


async def test_a_store_is_found_by_any_of_its_names(open_broker: Open, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found by a link, and by a relative path, even if the process changes its folder afterwards."""
    monkeypatch.chdir(path.parent)
    path.with_name("link.db").symlink_to(path)
    by_link, relative, job = open_broker(path.with_name("link.db")), open_broker(Path("queue.db")), an_envelope()
    monkeypatch.chdir("/")
    await by_link.enqueue([job])
    assert await record_of(relative, job) == await record_of(open_broker(path), job)


@needs_root
@pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["", "in a sticky folder"])
@pytest.mark.usefixtures("only_nudges_count")
async def test_two_users_share_a_file(tmp_path: Path, mode: int) -> None:
    """Every user who may write the file may use all files beside it: both work, and wake each other.

    In a sticky folder neither can remove the other's files.
    """
    use = """
        with broker.listen(["queues"]) as waiter:
            await waiter.wait(1.5)
        print(await broker.enqueue([an_envelope()]) != [])
    """
    with shared_folder(0o777) as folder:
        file = folder / "queue.db"
        file.touch()
        file.chmod(0o666)
        broker = SqliteBroker(file)
        await broker.enqueue([an_envelope()])
        with broker.listen([topics.ANY_QUEUE]) as waiter:
            Path(f"{file}-wake").chmod(mode)
            said = asyncio.create_task(asyncio.to_thread(used_by_nobody, tmp_path / "own.db", use, file))
            woken = await waiter.wait(10)
            assert await said == "True\n"
            assert woken
        await broker.close()


INTRUDERS = {
    "trigger": "CREATE TRIGGER theirs AFTER INSERT ON taskflow_jobs BEGIN UPDATE taskflow_jobs SET content = x'00'; END",
    "view": "CREATE VIEW taskflow_tags AS SELECT 1 AS tag, 2 AS id, 3 AS seq",
}


@pytest.mark.parametrize("kind", INTRUDERS)
@pytest.mark.parametrize("is_open", [True, False])
async def test_tables_with_the_trigger_or_view_of_another_program_are_refused(
    open_broker: Open, path: Path, kind: str, is_open: bool
) -> None:
    """It would run another program's SQL; this also holds if it is added while the file is open, and before it has run."""
    before, job = open_broker(), an_envelope()
    await before.enqueue([an_envelope(payload=b"ours")])
    database_at(path, *["DROP TABLE taskflow_tags"][: kind == "view"], INTRUDERS[kind])
    with pytest.raises(BrokerRefused, match=f"have the {kind}.*not part of taskflow"):
        await (before if is_open else open_broker(shared=True)).enqueue([job])
    with connected(path) as stranger:
        assert stranger.execute("SELECT content FROM taskflow_jobs").fetchall() == [(b"ours",)]
    if kind == "trigger":
        database_at(path, "DROP TRIGGER theirs")
        await before.enqueue([job])


NAMES = ["sqlite", "Sqlite", "SQLite", "sqlite_", "sqlite_x", "a", "A", "aA", "AA", "a_", "a_jobs", "x.y-z", "1", "select", "n" * 100]


async def test_any_name_will_do(open_broker: Open) -> None:
    """This includes names that SQLite reserves, and names that it treats as equal. No two share tables, and none is SQL."""
    assert len({table_prefix(name).lower() for name in NAMES}) == len(NAMES)
    jobs = {name: an_envelope() for name in NAMES}
    for name, job in jobs.items():
        await open_broker(namespace=name).enqueue([job])
    for name, job in jobs.items():
        records = await open_broker(namespace=name).read([each.id for each in jobs.values()])
        assert [record.id for record in records if record is not None] == [job.id]
    with pytest.raises(ValueError, match="characters"):
        open_broker(namespace='a"; DROP TABLE x; --')


async def test_a_worker_is_refused_by_each_verb_once_its_tables_are_of_a_newer_version(open_broker: Open, path: Path) -> None:
    """The first call after the change is refused, on a connection that has run the same statements before. It changes nothing: a worker of
    the newer version takes over the leases when the session has lapsed."""
    brokers = [open_broker() for _ in range(5)]
    session = await registered(brokers[0])
    await brokers[0].enqueue(envelopes(20))
    leases = await brokers[0].claim(session.id, 1, [], 10)
    verbs: tuple[Callable[[SqliteBroker, int], Awaitable[object]], ...] = (
        lambda broker, request: broker.claim(session.id, request, [], 1),
        lambda broker, request: broker.settle([succeeded(leases[request])]),
        lambda broker, _: broker.beat(Beat(session=session.id)),
        lambda broker, _: broker.enqueue([an_envelope()]),
        lambda broker, _: broker.read([b"0" * 16]),
    )
    for request in range(2, 5):
        for broker, verb in zip(brokers, verbs, strict=True):
            await verb(broker, request)
    database_at(path, "ALTER TABLE taskflow_jobs ADD COLUMN sender TEXT", NEWER.format("version"))
    with connected(path) as stranger:
        jobs = stranger.execute("SELECT * FROM taskflow_jobs").fetchall()
        for broker, verb in zip(brokers, verbs, strict=True):
            with pytest.raises(BrokerRefused, match=f"table version {VERSION + 1}, this one supports {VERSION}"):
                await verb(broker, 5)
        assert stranger.execute("SELECT * FROM taskflow_jobs").fetchall() == jobs


NEWER = "UPDATE taskflow_meta SET value = value + 1 WHERE name = '{}'"


async def test_tables_of_another_taskflow_with_the_same_version_are_refused(open_broker: Open, path: Path) -> None:
    await open_broker().enqueue([an_envelope()])
    database_at(path, "ALTER TABLE taskflow_jobs ADD COLUMN sender TEXT", NEWER.format("digest"))
    assert "was made by a version of taskflow whose" in await refusal(open_broker())
