"""A disk that is full: nothing is lost, whoever sends is told, and when there is room again all goes on."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from taskflow import StoreFull, configure
from taskflow.worker.events import BrokerCallFailed, SessionEnded
from tests.stores.postgres.scene import Scene
from tests.stores.scene import TIMEOUT
from tests.support.postgres import PostgresServer
from tests.support.processes import new_folder
from tests.support.waiting import until

SIZE: Final = 24_000_000
"""Bytes of the disk. An empty database takes eight million."""

RESERVE: Final = 6_000_000
"""Of these, what somebody can free."""

BALLAST: Final = os.urandom(20_000)
"""Nothing that could be compressed."""

_NO_ROOM: Final = """
    CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
    END
    $$;
"""


@pytest.fixture
def small_disk(server: PostgresServer) -> Iterator[Path]:
    """In memory, for the server's user. To mount it takes root."""
    folder = new_folder("disk", server.user)
    options = f"size={SIZE},mode=0777"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False).returncode:
        shutil.rmtree(folder)
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        server.stop("immediate")
        subprocess.run(["umount", folder], check=True)
        shutil.rmtree(folder)


async def test_a_full_disk_loses_nothing(server: PostgresServer, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While it is full nothing can be sent; the worker stays, and what cannot be settled now is settled when there is room."""
    reserve = small_disk / "reserve"
    reserve.write_bytes(bytes(RESERVE))
    data = small_disk / "data"
    data.mkdir()
    shutil.chown(data, server.user) if server.user else None
    server.execute(f"CREATE TABLESPACE small LOCATION '{data}'")
    server.execute("CREATE DATABASE small TABLESPACE small")
    async with Scene(server, database="small") as scene:
        async with scene.worker(ttl=20):
            await scene.send(range(10))
            await scene.until_done()
            scene.takes = 0.5
            configure(enqueue_timeout=TIMEOUT)
            sent = await scene.fill(BALLAST)
            with pytest.raises(StoreFull, match="has no room: could not extend file"):
                await scene.note.delay(-1, BALLAST)
            await asyncio.sleep(1)
            told_when_full = await scene.told(scene.handles)
            reserve.unlink()
            scene.takes = 0.0
            await scene.until_done()
            await scene.send(range(sent, sent + 20))
            await scene.until_done()
        await scene.assert_each_settled_once()
    troubles = {event.operation for event in scene.events if isinstance(event, BrokerCallFailed)}
    ended = [event for event in scene.events if isinstance(event, SessionEnded)]
    with capsys.disabled():
        print(f"\nfull after {sent} jobs; a second later {told_when_full}; troubles with {troubles}; runs {scene.runs.total()}; {ended}")
    assert not ended


@pytest.mark.parametrize("table", ["jobs", "sessions"])
async def test_no_room_for_any_write_ends_no_session(scene: Scene, table: str) -> None:
    """Calls that are sent meanwhile are refused; the worker keeps its session and its leases."""
    harm = f"CREATE TRIGGER no_room BEFORE INSERT OR UPDATE ON taskflow.{table} FOR EACH STATEMENT EXECUTE FUNCTION no_room()"
    async with scene.worker(ttl=3):
        scene.takes = 0.5
        await scene.send(range(20))
        await until(lambda: is_running(scene, 20))
        await asyncio.to_thread(scene.postgres.execute, f"{_NO_ROOM}; {harm}", scene.database)
        if table == "jobs":
            with pytest.raises(StoreFull):
                await scene.note.delay(-1)
        await asyncio.sleep(1)
        await asyncio.to_thread(scene.postgres.execute, f"DROP TRIGGER no_room ON taskflow.{table}", scene.database)
        await scene.until_done()
    await scene.assert_each_settled_once()
    assert not [event for event in scene.events if isinstance(event, SessionEnded)]
    assert scene.runs.total() == 20


async def is_running(scene: Scene, number: int) -> bool:
    return (await scene.waiting()) == {"running": number}
