"""Which files are opened, which are refused, and what is said then."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from taskflow.broker import topics
from taskflow.broker.sqlite import SqliteBroker
from taskflow.broker.sqlite.wakeups import StoreWatch
from taskflow.model.errors import BrokerError, BrokerRefused, BrokerUnavailable
from tests.stores.sqlite.support import NOBODY, Open, an_envelope, connected, envelopes, run_script, unmeasured


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


async def test_a_missing_folder(open_broker: Open, tmp_path: Path) -> None:
    said = await refusal(open_broker(tmp_path / "no" / "queue.db"))
    assert str(tmp_path / "no") in said
    assert "does not exist: create it" in said


async def test_a_file_in_the_place_of_a_folder(open_broker: Open, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not a folder" in await refusal(open_broker(tmp_path / "file" / "queue.db"))


async def test_a_folder_in_the_place_of_the_file(open_broker: Open, tmp_path: Path) -> None:
    assert f"{tmp_path} is a folder: name a file" in await refusal(open_broker(tmp_path))


@pytest.mark.parametrize(("kind", "make"), [("pipe", os.mkfifo), ("socket", socket_at)])
async def test_something_else_in_the_place_of_the_file(open_broker: Open, path: Path, kind: str, make: Callable[[Path], None]) -> None:
    """SQLite would call it an I/O error, which would be tried again and again."""
    make(path)
    assert f"{path} is a {kind}, not a file" in await refusal(open_broker())


async def test_a_device_in_the_place_of_the_file(open_broker: Open) -> None:
    assert "/dev/null is a device, not a file" in await refusal(open_broker(Path("/dev/null")))


async def test_not_a_database(open_broker: Open, path: Path) -> None:
    text = b"Dear diary, today I was mistaken for a database. " * 100
    path.write_bytes(text)

    said = await refusal(open_broker())

    assert f"{path} is not an SQLite database" in said
    assert path.read_bytes() == text


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


async def test_tables_of_another_namespace_are_no_strangers(open_broker: Open) -> None:
    await open_broker(namespace="one").enqueue([an_envelope()])
    await open_broker(namespace="two").enqueue([an_envelope()])


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
    """As another user: root may do everything. (pytest's own folders are not for others to enter.)"""
    folder = Path("/tmp") / f"taskflow-{os.getpid()}-{os.urandom(4).hex()}"
    folder.mkdir()
    try:
        file = folder / "queue.db"
        if file_mode is not None:
            file.touch()
            file.chmod(file_mode)
        folder.chmod(folder_mode)
        script = """
            import asyncio, os, sys
            from taskflow.broker.sqlite import SqliteBroker
            from taskflow.model.errors import BrokerRefused

            async def read(path):
                broker = SqliteBroker(path)
                try:
                    await broker.read([bytes(16)])
                except BrokerRefused as refused:
                    print(refused)
                await broker.close()

            asyncio.run(read(sys.argv[3]))  # loads all that it needs: another user may not read it where it lies
            os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[2]))
            asyncio.run(read(sys.argv[1]))
        """
        said = run_script(script, file, NOBODY, tmp_path / "own.db", env=unmeasured())
        assert says in said
        assert str(file) in said
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


async def test_a_closed_broker_says_so(broker: SqliteBroker) -> None:
    await broker.enqueue([an_envelope()])
    await broker.close()
    await broker.close()
    assert "the broker is closed" in await refusal(broker, BrokerUnavailable)


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
async def test_two_users_share_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    """Whoever may write the file may use all that lies beside it: both work, and wake each other.

    In a sticky folder neither can remove the other's files.
    """
    monkeypatch.setattr(StoreWatch, "look", lambda *_, **__: set[str]())  # only nudges count
    folder = Path("/tmp") / f"taskflow-{os.getpid()}-{os.urandom(4).hex()}"
    folder.mkdir()
    folder.chmod(0o777)
    file = folder / "queue.db"
    broker = SqliteBroker(file)
    try:
        file.touch()
        file.chmod(0o666)
        await broker.enqueue([an_envelope()])
        script = """
            import asyncio, os, sys
            from taskflow.broker.sqlite import SqliteBroker
            from tests.stores.sqlite.support import an_envelope

            async def send(path):
                broker = SqliteBroker(path)
                with broker.listen(["queues"]) as waiter:
                    await waiter.wait(1.5)
                print(await broker.enqueue([an_envelope()]) != [])
                await broker.close()

            asyncio.run(send(sys.argv[3]))  # loads all that it needs: another user may not read it where it lies
            os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[2]))
            asyncio.run(send(sys.argv[1]))
        """
        with broker.listen([topics.ANY_QUEUE]) as waiter:
            Path(f"{file}-wake").chmod(mode)
            environment = unmeasured(PYTHONPATH=str(Path(__file__).parents[3]))
            said = asyncio.create_task(asyncio.to_thread(run_script, script, file, NOBODY, tmp_path / "own.db", env=environment))
            woken = await waiter.wait(10)
            assert await said == "True\nTrue\n"
            assert woken
    finally:
        await broker.close()
        shutil.rmtree(folder)


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
