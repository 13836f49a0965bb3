"""What a stranger may have put beside the store is neither followed, written nor removed."""

# ruff: noqa: ASYNC240 - a look at the disk holds up nothing but this test
from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from taskflow.broker import topics
from taskflow.broker.sqlite import SqliteBroker
from taskflow.model.errors import BrokerRefused
from tests.stores.sqlite.support import NOBODY, Open, an_envelope

ENDINGS = ("-wake", "-taskflow", "-wal", "-shm", "-journal")


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_link_beside_the_store_is_refused(broker: SqliteBroker, path: Path, tmp_path: Path, ending: str) -> None:
    """Its target stays as it is: neither are the files of a folder removed, nor is anything written."""
    target = tmp_path / "somebody's"
    target.mkdir() if ending == "-wake" else target.write_bytes(b"precious" * 100)
    letter = target / "letter" if ending == "-wake" else target
    letter.write_bytes(b"precious" * 100)
    path.with_name(path.name + ending).symlink_to(target)

    with pytest.raises(BrokerRefused, match=f"queue.db{ending} is a link.*remove it"):
        await broker.enqueue([an_envelope()])

    assert letter.read_bytes() == b"precious" * 100


async def test_a_link_that_takes_the_place_of_the_wake_up_folder_is_not_followed(open_broker: Open, path: Path, tmp_path: Path) -> None:
    """While the store is open. Names that look like a listener's are no reason to remove what has them."""
    broker, other = open_broker(), open_broker()
    with other.listen([topics.ANY_QUEUE]):
        await broker.enqueue([an_envelope()])
        target = tmp_path / "somebody's"
        target.mkdir()
        (target / f"{os.getpid()}-0123456789ab").write_text("a letter")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            stranger.bind(str(target / f"{os.getpid()}-ba9876543210"))
        wake = path.with_name("queue.db-wake")
        wake.rename(tmp_path / "moved")
        wake.symlink_to(target)

        await broker.enqueue([an_envelope()])

    assert len(list(target.iterdir())) == 2


async def test_only_sockets_are_removed_from_the_wake_up_folder(open_broker: Open, path: Path) -> None:
    """A listener's socket whose process is gone is removed; a file of such a name is not."""
    broker, other = open_broker(), open_broker()
    with other.listen([topics.ANY_QUEUE]):
        wake = path.with_name("queue.db-wake")
        (wake / "1-0123456789ab").write_text("a letter")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as gone:
            gone.bind(str(wake / "1-ba9876543210"))

        await broker.enqueue([an_envelope()])

        names = {file.name for file in wake.iterdir()}
    assert "1-0123456789ab" in names
    assert "1-ba9876543210" not in names


@pytest.mark.skipif(os.geteuid() != 0, reason="to give a file away takes root")
@pytest.mark.parametrize("ending", ENDINGS)
async def test_what_another_user_put_beside_the_store_is_refused(broker: SqliteBroker, path: Path, ending: str) -> None:
    beside = path.with_name(path.name + ending)
    beside.mkdir() if ending == "-wake" else beside.touch()
    os.chown(beside, NOBODY, NOBODY)

    with pytest.raises(BrokerRefused, match=f"queue.db{ending} belongs to uid {NOBODY}"):
        await broker.enqueue([an_envelope()])


@pytest.mark.parametrize("ending", ENDINGS)
async def test_what_is_of_another_kind_is_refused(broker: SqliteBroker, path: Path, ending: str) -> None:
    """A pipe would keep whoever opens it waiting."""
    os.mkfifo(path.with_name(path.name + ending))

    with pytest.raises(BrokerRefused, match=r"is not a (regular file|folder)"):
        await broker.enqueue([an_envelope()])


async def test_new_files_are_for_their_owner_alone(broker: SqliteBroker, path: Path) -> None:
    before = os.umask(0)
    try:
        with broker.listen([topics.ANY_QUEUE, topics.job(bytes(16))]):
            await broker.enqueue([an_envelope()])
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.glob("queue.db*")}
            in_folder = {file.stat().st_mode & 0o777 for file in path.with_name("queue.db-wake").iterdir()}
    finally:
        os.umask(before)

    assert modes.pop("queue.db-wake") == 0o700
    assert set(modes.values()) == {0o600}, modes
    assert {"queue.db", "queue.db-wal", "queue.db-shm", "queue.db-taskflow"} <= modes.keys()
    assert in_folder == {0o600}


async def test_the_files_beside_the_store_follow_its_mode(open_broker: Open, path: Path) -> None:
    """Also those that are older than the change."""
    one = open_broker()
    with one.listen([topics.ANY_QUEUE]):
        await one.enqueue([an_envelope()])
    await one.close()
    path.chmod(0o660)

    another = open_broker()
    with another.listen([topics.ANY_QUEUE]):
        await another.enqueue([an_envelope()])
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.glob("queue.db*")}

    assert modes.pop("queue.db-wake") == 0o770
    assert modes == dict.fromkeys(("queue.db", "queue.db-wal", "queue.db-shm", "queue.db-taskflow"), 0o660)


@pytest.mark.parametrize(
    ("mode", "level", "says"), [(0o600, "ok", "only its owner"), (0o644, "note", "read the file"), (0o660, "note", "write")]
)
async def test_the_doctor_tells_of_wider_rights(broker: SqliteBroker, path: Path, mode: int, level: str, says: str) -> None:
    await broker.enqueue([an_envelope()])
    path.chmod(mode)

    [finding] = [finding for finding in await broker.console.examine() if finding.topic == "permissions"]

    assert finding.level == level
    assert says in finding.says
