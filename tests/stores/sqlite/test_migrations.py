"""Tables of an older version are brought to the newer one, once, as a whole, and no broker works with tables that it does not know."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from taskflow.broker.migrations import Migrations
from taskflow.broker.sqlite import migrations
from taskflow.model.errors import BrokerRefused, BrokerUnavailable
from taskflow.model.record import Status
from taskflow.model.session import Beat
from tests.stores.sqlite.support import Open, an_envelope, connected, envelopes, locked, registered, run_script, succeeded
from tests.stores.sqlite.versions import BECOME, FUTURE, PRESENT, make_future

LATER = f"table version {FUTURE}, this one knows {PRESENT}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_future(tmp_path / "future")


@pytest.fixture
def know_the_future(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[[], None]:
    def know() -> None:
        monkeypatch.setattr(migrations, "MIGRATIONS", Migrations(folder))

    return know


async def a_store(open_broker: Open, number: int = 3) -> list[bytes]:
    """A file of the present version with some jobs, and nobody at work."""
    broker, jobs = open_broker(), envelopes(number)
    await broker.enqueue(jobs)
    await broker.close()
    return [job.id for job in jobs]


def stored_version(path: Path) -> int:
    with connected(path) as stranger:
        [(version,)] = stranger.execute("SELECT value FROM taskflow_meta WHERE name = 'version'")
        return int(version)


async def migrate_elsewhere(path: Path, folder: Path) -> str:
    script = BECOME + "import asyncio; from taskflow.broker.sqlite import SqliteBroker\n"
    script += "done = asyncio.run(SqliteBroker(sys.argv[1]).migrate()); print(done.version, done.target)"
    return await asyncio.to_thread(run_script, script, path, folder)


async def test_a_migration_may_have_comments_and_triggers(open_broker: Open, path: Path, know_the_future: Callable[[], None]) -> None:
    ids = await a_store(open_broker)
    know_the_future()

    broker = open_broker()
    await broker.enqueue([an_envelope()])

    assert stored_version(path) == FUTURE
    assert [record.status for record in await broker.read(ids) if record is not None] == [Status.READY] * 3
    with connected(path) as stranger:
        senders = [sender for (sender,) in stranger.execute("SELECT sender FROM taskflow_jobs ORDER BY seq")]
    assert senders == ["long ago", "long ago", "long ago", "nobody"]


@pytest.mark.parametrize("verb", ["claim", "settle", "beat", "enqueue", "read"])
async def test_a_worker_of_the_version_before_is_refused_by_each_verb(open_broker: Open, path: Path, folder: Path, verb: str) -> None:
    """By the first call after the migration, on a connection that has run the same statements before. It changes nothing: a worker of the
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
    await migrate_elsewhere(path, folder)
    with connected(path) as stranger:
        jobs = stranger.execute("SELECT * FROM taskflow_jobs").fetchall()

        with pytest.raises(BrokerRefused, match=LATER):
            await verbs[verb](5)
        assert stranger.execute("SELECT * FROM taskflow_jobs").fetchall() == jobs


async def test_a_migration_that_fails_changes_nothing(
    open_broker: Open, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await a_store(open_broker)
    broken = make_future(tmp_path / "broken", f'-- {FUTURE}: Broken.\nDELETE FROM "~jobs";\nINSERT INTO "~nothing" VALUES (1);\n')
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", Migrations(broken))
        with pytest.raises(BrokerRefused, match="no such table: taskflow_nothing"):
            await open_broker().enqueue([an_envelope()])
    assert stored_version(path) == PRESENT
    assert None not in await open_broker().read(ids)


async def test_a_lock_that_is_held_for_long_is_named(open_broker: Open, path: Path, know_the_future: Callable[[], None]) -> None:
    await a_store(open_broker)
    know_the_future()
    with locked(path), pytest.raises(BrokerUnavailable, match="is locked by"):
        await open_broker(timeout=0.2).migrate()
    assert stored_version(path) == PRESENT
