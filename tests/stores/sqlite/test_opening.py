"""Which files are opened, which are refused, and what is said then."""

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
from taskflow.model.errors import BrokerError, BrokerRefused
from taskflow.model.session import Beat
from tests.stores.sqlite.support import Open, an_envelope, connected, envelopes, registered, shared_folder, succeeded, used_by_nobody


async def refusal(broker: SqliteBroker, kind: type[BrokerError] = BrokerRefused) -> str:
    with pytest.raises(kind) as refused:
        await broker.enqueue([an_envelope()])
    assert type(refused.value) is kind
    return str(refused.value)


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


async def test_nothing_is_opened_before_the_first_verb(open_broker: Open, path: Path) -> None:
    open_broker()
    assert not path.exists()


async def test_an_empty_file_is_adopted(open_broker: Open, path: Path) -> None:
    path.touch()
    await open_broker().enqueue([an_envelope()])


DIARY = b"Dear diary, today I was mistaken for a database. " * 100

IN_THE_WAY: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a missing folder": ("no/queue.db", lambda path: None, "/no does not exist: create it"),
    "a file in the place of a folder": ("file/queue.db", lambda path: path.parent.touch(), "/file is not a folder"),
    "a folder": (".", lambda path: None, " is a folder: name a file"),
    "a pipe": ("queue.db", os.mkfifo, "queue.db is a pipe, a socket or a device, not a file"),
    "a socket": ("queue.db", socket_at, "queue.db is a pipe, a socket or a device, not a file"),
    "a device": ("/dev/null", lambda path: None, "/dev/null is a pipe, a socket or a device, not a file"),
    "not a database": ("queue.db", lambda path: path.write_bytes(DIARY), "queue.db is not an SQLite database"),
}


@pytest.mark.parametrize("what", IN_THE_WAY)
async def test_something_else_in_the_place_of_the_file(open_broker: Open, tmp_path: Path, what: str) -> None:
    """It is left as it is. SQLite would call a pipe an I/O error, which would be tried again and again."""
    name, make, says = IN_THE_WAY[what]
    make(path := tmp_path / name)
    assert says in await refusal(open_broker(path))
    if what == "not a database":
        assert path.read_bytes() == DIARY


async def test_tables_of_another_program(open_broker: Open, path: Path) -> None:
    """They are left as they are, unless the file is to be shared; once it is, that need not be said again."""
    with connected(path) as stranger:
        stranger.execute("CREATE TABLE orders (id)")
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


async def test_text_that_is_not_utf_8(open_broker: Open, path: Path) -> None:
    with connected(path) as stranger:
        stranger.execute("PRAGMA encoding='UTF-16'")
        stranger.execute("CREATE TABLE orders (id)")
    before = path.read_bytes()

    said = await refusal(open_broker(shared=True))

    assert f"{path} has the encoding UTF-16" in said
    assert "use another one" in said
    assert path.read_bytes() == before


async def test_tables_that_only_look_like_ours(open_broker: Open, path: Path) -> None:
    with connected(path) as stranger:
        stranger.execute("CREATE TABLE taskflow_jobs (id)")
    assert "belong to another program" in await refusal(open_broker())


async def test_a_damaged_file(open_broker: Open, path: Path) -> None:
    """It says so, and what to do; the file is not touched."""
    first = open_broker()
    await first.enqueue(envelopes(2_000))
    await first.close()
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[8_192:] = b"\xa5" * (len(whole) - 8_192)
    path.write_bytes(damaged)

    said = await refusal(open_broker())

    assert f"{path} is damaged" in said
    assert "restore a backup" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="to be another user than oneself takes root")
@pytest.mark.parametrize(
    ("file_mode", "folder_mode", "says"),
    [
        (0o644, 0o777, "is read-only for uid 65534"),
        (0o200, 0o777, "cannot be read for uid 65534"),
        (0o666, 0o755, "where SQLite keeps its other files, is read-only for uid 65534"),
        (None, 0o755, "where SQLite keeps its other files, is read-only for uid 65534"),
    ],
)
def test_what_may_not_be_written(tmp_path: Path, file_mode: int | None, folder_mode: int, says: str) -> None:
    """As another user: root may do everything."""
    with shared_folder(folder_mode) as folder:
        file = folder / "queue.db"
        if file_mode is not None:
            file.touch()
            file.chmod(file_mode)
        said = used_by_nobody(tmp_path / "own.db", "await broker.read([bytes(16)])", file)
    assert says in said
    assert str(file) in said


async def test_a_link_and_its_file_are_one_store(open_broker: Open, path: Path, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(path)
    job = an_envelope()
    await open_broker(tmp_path / "link.db").enqueue([job])

    [record] = await open_broker(path).read([job.id])

    assert record is not None


async def test_a_path_is_not_led_elsewhere_by_a_change_of_folder(
    open_broker: Open, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broker = open_broker(Path("queue.db"))
    monkeypatch.chdir("/")
    await broker.enqueue([an_envelope()])
    assert path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="to be another user than oneself takes root")
@pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["", "in a sticky folder"])
@pytest.mark.usefixtures("only_nudges_count")
async def test_two_users_share_a_file(tmp_path: Path, mode: int) -> None:
    """Whoever may write the file may use all that lies beside it: both work, and wake each other.

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
    """It would run a stranger's SQL; also if it is added while the file is open, and before it has run."""
    before, job = open_broker(), an_envelope()
    await before.enqueue([an_envelope()])
    with connected(path) as stranger:
        if kind == "view":
            stranger.execute("DROP TABLE taskflow_tags")
        stranger.execute(INTRUDERS[kind])

    with pytest.raises(BrokerRefused, match=f"have the {kind}.*not part of taskflow"):
        await (before if is_open else open_broker(shared=True)).enqueue([job])
    with connected(path) as stranger:
        assert stranger.execute("SELECT content FROM taskflow_jobs").fetchall() == [(b"payload",)]
        stranger.execute("DROP TRIGGER theirs" if kind == "trigger" else "DROP VIEW taskflow_tags")
    if kind == "trigger":
        await before.enqueue([job])


@pytest.mark.parametrize(
    "namespace", ["sqlite", "sqlite_x", "A", "a", "a_jobs", "x.y-z", "1", "select", "n" * 100, "Sqlite", "^".join("a")]
)
async def test_any_name_will_do(open_broker: Open, namespace: str) -> None:
    """Also what SQLite keeps to itself, and what it takes for the same."""
    job = an_envelope()
    await open_broker(namespace=namespace).enqueue([job])
    await open_broker(namespace=namespace + "2" if len(namespace) < 100 else "m").enqueue([an_envelope()])
    [record] = await open_broker(namespace=namespace).read([job.id])
    assert record is not None


def test_no_two_names_share_tables() -> None:
    names = ["a", "A", "aA", "Aa", "AA", "sqlite", "Sqlite", "SQLITE", "sqlite_", "a_", "a__"]
    assert len({table_prefix(name).lower() for name in names}) == len(names)


def test_a_name_that_would_be_sql_is_refused(open_broker: Open) -> None:
    with pytest.raises(ValueError, match="characters"):
        open_broker(namespace='a"; DROP TABLE x; --')


@pytest.mark.parametrize("verb", ["claim", "settle", "beat", "enqueue", "read"])
async def test_a_worker_is_refused_by_each_verb_once_its_tables_are_of_a_newer_version(open_broker: Open, path: Path, verb: str) -> None:
    """By the first call after the change, on a connection that has run the same statements before. It changes nothing: a worker of the
    newer version takes over the leases when the session has lapsed."""
    broker = open_broker()
    session = await registered(broker)
    await broker.enqueue(envelopes(20))
    leases = await broker.claim(session.id, 1, [], 10)
    verbs: dict[str, Callable[[int], Awaitable[object]]] = {
        "claim": lambda request: broker.claim(session.id, request, [], 1),
        "settle": lambda request: broker.settle([succeeded(leases[request])]),
        "beat": lambda _: broker.beat(Beat(session=session.id)),
        "enqueue": lambda _: broker.enqueue([an_envelope()]),
        "read": lambda _: broker.read([b"0" * 16]),
    }
    for request in range(2, 5):
        await verbs[verb](request)
    with connected(path) as stranger:
        stranger.execute("ALTER TABLE taskflow_jobs ADD COLUMN sender TEXT")
        stranger.execute("UPDATE taskflow_meta SET value = value + 1 WHERE name = 'version'")
        jobs = stranger.execute("SELECT * FROM taskflow_jobs").fetchall()

        with pytest.raises(BrokerRefused, match=f"table version {VERSION + 1}, this one knows {VERSION}"):
            await verbs[verb](5)
        assert stranger.execute("SELECT * FROM taskflow_jobs").fetchall() == jobs


async def test_tables_of_another_taskflow_with_the_same_version_are_refused(open_broker: Open, path: Path) -> None:
    await open_broker().enqueue([an_envelope()])
    with connected(path) as stranger:
        stranger.execute("UPDATE taskflow_meta SET value = value + 1 WHERE name = 'digest'")
    with pytest.raises(BrokerRefused, match="was made by a taskflow with other tables"):
        await open_broker().enqueue([an_envelope()])
