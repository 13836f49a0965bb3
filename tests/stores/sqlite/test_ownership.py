"""Files that another user may have put beside the store are neither followed, written nor removed."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import os
import pwd
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskflow.broker import topics
from taskflow.broker.sqlite import Opening, SqliteBroker
from taskflow.broker.sqlite.wake_folder import topic_hash
from taskflow.broker.url import connect
from taskflow.model.errors import BrokerRefused, BrokerUnavailable
from tests.stores.jobs import an_envelope
from tests.stores.sqlite.support import NOBODY, Open, shared_folder, used_by_nobody
from tests.support.listing import listed

ENDINGS = ("-wake", "-taskflow", "-wal", "-shm", "-journal")


def a_folder_or_file_of_nobody(place: Path, _: Path) -> None:
    place.mkdir() if place.name.endswith("-wake") else place.touch()
    os.chown(place, NOBODY, NOBODY)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="to give a file away takes root")

PLANTED: list[Any] = [
    *((ending, lambda place, target: place.symlink_to(target), "is a link.*remove it") for ending in ENDINGS),
    *((ending, lambda place, _: os.mkfifo(place), "is not a (regular file|folder)") for ending in ENDINGS),
    *((ending, lambda place, target: os.link(target, place), "has a second name") for ending in ("", *ENDINGS[1:])),
    *(pytest.param(ending, a_folder_or_file_of_nobody, f"belongs to uid {NOBODY}", marks=needs_root) for ending in ENDINGS),
]


@pytest.mark.parametrize(("ending", "plant", "says"), PLANTED)
async def test_files_planted_beside_the_store_are_refused(
    broker: SqliteBroker, path: Path, tmp_path: Path, ending: str, plant: Callable[[Path, Path], object], says: str
) -> None:
    """A link's target is unchanged: no file of a folder is removed, and nothing is written. A pipe would block every process that opens
    it."""
    target = tmp_path / "somebody's"
    target.mkdir() if ending == "-wake" else target.write_bytes(b"precious" * 100)
    letter = target / "letter" if ending == "-wake" else target
    letter.write_bytes(b"precious" * 100)
    plant(path.with_name(path.name + ending), target)
    with pytest.raises(BrokerRefused, match=f"queue.db{ending} {says}"):
        await broker.enqueue([an_envelope()])
    assert letter.read_bytes() == b"precious" * 100


async def test_a_link_that_takes_the_place_of_the_wake_up_folder_is_not_followed(
    open_broker: Open, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It appears while the store is open. Files are not removed just because they have names like a listener's."""
    broker, other, namespace = open_broker(), open_broker(), topic_hash("taskflow")[1:]
    with other.listen([topics.ANY_QUEUE]):
        await broker.enqueue([an_envelope()])
        target = tmp_path / "somebody's"
        target.mkdir()
        (target / f"{namespace}-1-0123456789ab").write_text("a letter")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            monkeypatch.chdir(target)  # a socket's path has 107 bytes at most
            stranger.bind(f"{namespace}-1-ba9876543210")
        wake = path.with_name("queue.db-wake")
        wake.rename(tmp_path / "moved")
        wake.symlink_to(target)

        await broker.enqueue([an_envelope()])

    assert len(list(target.iterdir())) == 2


def modes_beside(path: Path) -> dict[str, int]:
    return {file.name.removeprefix("queue.db"): file.stat().st_mode & 0o777 for file in path.parent.glob("queue.db*")}


async def test_files_beside_the_store_are_for_their_owner_alone_and_follow_its_mode(open_broker: Open, path: Path) -> None:
    """This includes those that are older than a change."""
    before = os.umask(0)
    try:
        for mode, of_folder in ((0o600, 0o700), (0o660, 0o770)):
            broker = open_broker()
            with broker.listen([topics.ANY_QUEUE, topics.job(bytes(16))]):
                await broker.enqueue([an_envelope()])
                assert modes_beside(path) == {"": mode, "-wal": mode, "-shm": mode, "-taskflow": mode, "-wake": of_folder}
                in_folder = {file.stat().st_mode & 0o777 for file in path.with_name("queue.db-wake").iterdir()}
                assert in_folder == {0o600} or mode != 0o600
            await broker.close()
            path.chmod(0o660)
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("mode", "level", "says"), [(0o600, "ok", "only its owner"), (0o644, "note", "read the file"), (0o660, "note", "write")]
)
async def test_the_doctor_reports_wider_rights(broker: SqliteBroker, path: Path, mode: int, level: str, says: str) -> None:
    await broker.enqueue([an_envelope()])
    path.chmod(mode)
    [finding] = [finding for finding in await broker.admin.examine() if finding.topic == "permissions"]
    assert finding.level == level
    assert says in finding.says


@needs_root
@pytest.mark.parametrize("mode", [0o600, 0o666])
async def test_the_file_of_another_user_is_refused_unless_the_url_names_them(
    broker: SqliteBroker, open_broker: Open, path: Path, mode: int
) -> None:
    """The other user's jobs would run as us, and that user could read ours."""
    await broker.enqueue([an_envelope()])
    await broker.close()
    os.chown(path, NOBODY, NOBODY)
    path.chmod(mode)
    with pytest.raises(BrokerRefused, match=f"queue.db belongs to uid {NOBODY}.*owner={NOBODY}"):
        await open_broker().enqueue([an_envelope()])
    by_name = connect(f"sqlite:///{path}?owner={pwd.getpwuid(NOBODY).pw_name}")
    assert len(await by_name.enqueue([an_envelope()])) == 1
    await by_name.close()
    await open_broker(opening=Opening(owner=NOBODY)).enqueue([an_envelope()])


@needs_root
def test_a_stranger_cannot_plant_a_store_or_a_link_to_one_in_a_shared_folder(tmp_path: Path) -> None:
    """The folder is like /tmp, and the user is not root. Links of root, their own, and those in a folder of one user are followed."""
    stranger = NOBODY - 1
    with shared_folder(0o1777) as shared:
        own = shared / "own"
        own.mkdir()
        target = own / "target.db"
        target.touch()
        (shared / "planted.db").touch()
        for name in ("theirs.db", "own.db", "roots.db", "own/deployed.db"):
            (shared / name).symlink_to(target)
        for file, owner in {own: NOBODY, target: NOBODY, shared / "own.db": NOBODY}.items():
            os.chown(file, owner, owner, follow_symlinks=False)
        for name in ("planted.db", "theirs.db", "own/deployed.db"):
            os.chown(shared / name, stranger, stranger, follow_symlinks=False)

        names = ["planted.db", "theirs.db", "own.db", "roots.db", "own/deployed.db"]
        said = used_by_nobody(tmp_path / "own.db", "print(await broker.read([bytes(16)]))", *(shared / name for name in names))

    planted, theirs, *others = said.splitlines()
    assert f"{shared}/planted.db belongs to uid {stranger}" in planted
    assert f"{shared}/theirs.db is a link that belongs to uid {stranger}" in theirs
    assert others == ["[None]"] * 3


async def test_a_file_that_is_exchanged_while_sqlite_opens_it_is_not_used(
    open_broker: Open, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite opens it by its path: between two checks of it, there may have been another one."""
    for at in (path, tmp_path / "other.db"):
        await (broker := open_broker(at)).enqueue([an_envelope()])
        await broker.close()
    opens = sqlite3.connect

    def exchange(*arguments: Any, **options: Any) -> sqlite3.Connection:
        path.rename(tmp_path / "kept")
        (tmp_path / "other.db").rename(path)
        connection: sqlite3.Connection = opens(*arguments, **options)
        path.rename(tmp_path / "other.db")
        (tmp_path / "kept").rename(path)
        return connection

    monkeypatch.setattr(sqlite3, "connect", exchange)
    with pytest.raises(BrokerUnavailable, match="was replaced while it was being opened"):
        await open_broker().enqueue([an_envelope()])
    monkeypatch.undo()
    assert len(await listed(open_broker().admin)) == 1
