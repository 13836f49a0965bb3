"""Operations in a caller's transaction: tests for SQLite alone."""

from __future__ import annotations

import sqlite3
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from taskflow.broker.admin import View
from taskflow.broker.protocol import Added
from taskflow.broker.sqlite import SqliteBroker
from taskflow.broker.transactional import Row, Statement, Transactional, drive
from taskflow.model.envelope import OnConflict
from taskflow.model.errors import BrokerRefused, WrongConnection
from taskflow.model.record import Status
from taskflow.model.verdict import Settled
from tests.stores.jobs import an_envelope, envelopes, registered, statuses
from tests.stores.sqlite.support import connected
from tests.support.callers import Caller, unaffected
from tests.support.verdicts import succeeded

Connect = Callable[..., Caller]


@pytest.fixture
async def store(broker: SqliteBroker) -> Transactional:
    return await broker.transactional()


@pytest.fixture
def connect(store: Transactional, path: Path) -> Iterator[Connect]:
    """Creates a program's connections, to the store unless told otherwise."""
    opened = list[sqlite3.Connection]()

    def connect_one(to: Path | str = path, **options: Any) -> Caller:
        opened.append(sqlite3.connect(to, **{"isolation_level": None, **options}))
        return Caller(opened[-1], store)

    yield connect_one
    for connection in opened:
        connection.close()


@pytest.mark.parametrize(
    ("main", "version", "kind", "says"),
    [
        *((main, None, WrongConnection, "is only attached to the connection, as 'jobs'") for main in ("main.db", ":memory:", "")),
        (None, None, WrongConnection, r"another copy of SQLite.+2020-01-01 another"),
        (None, 99, BrokerRefused, "newer taskflow"),
        (None, 0, BrokerRefused, "taskflow migrate"),
    ],
)
async def test_a_connection_that_cannot_carry_jobs_is_refused(
    connect: Connect, path: Path, main: str | None, version: int | None, kind: type[Exception], says: str
) -> None:
    """A commit to several files is not atomic: after a crash one of them may lack it. Some packages bring another copy of SQLite:
    https://sqlite.org/howtocorrupt.html, section 2.2.1."""
    caller = connect(path if main is None else path.with_name(main) if main == "main.db" else main)
    if main is not None:
        caller.execute("ATTACH ? AS jobs", [str(path)])
    elif version is not None:
        caller.execute(f"UPDATE taskflow_meta SET value = {version} WHERE name = 'version'")
    else:
        caller.connection.create_function("sqlite_source_id", 0, lambda: "2020-01-01 another")
    caller.execute("BEGIN")
    with unaffected(caller), pytest.raises(kind, match=says):
        caller.check()
    caller.roll_back()


_TABLE, _VIEW = "CREATE TEMP TABLE {0} AS SELECT * FROM main.{0}", "CREATE TEMP VIEW {0} AS SELECT * FROM main.{0}"
_TRIGGER = "CREATE TEMP TRIGGER taskflow_{{0}} {} ON {{0}} BEGIN SELECT RAISE(ABORT, 'theirs'); END"
TEMPORARY = {
    "table": [_TABLE],
    "view": [_VIEW],
    "view with a trigger": [_VIEW, _TRIGGER.format("INSTEAD OF INSERT")],
    "trigger": [_TABLE, _TRIGGER.format("AFTER UPDATE")],
}


@pytest.mark.parametrize("temporary", TEMPORARY.values(), ids=TEMPORARY)
async def test_temporary_tables_of_our_names_are_not_taken_for_ours(
    broker: SqliteBroker, connect: Connect, path: Path, temporary: list[str]
) -> None:
    """Their names take precedence over the file's, and a job that is sent to one is lost with the connection."""
    held = an_envelope(awaits=1)
    await broker.enqueue([an_envelope(tags=("a",)), held])
    session = await registered(broker)
    [lease] = await broker.claim(session.id, 1, [], 1)
    caller = connect()
    for (name,) in caller.execute("SELECT name FROM main.sqlite_master WHERE type = 'table' AND name LIKE 'taskflow%'"):
        for statement in temporary:
            caller.execute(statement.format(name))

    jobs = [an_envelope(), an_envelope(key=b"k" * 16, tags=("b",)), an_envelope(joins=(held.id,)), an_envelope(queue="other")]
    with caller.transaction():
        caller.check()
        answers = caller.enqueue(*jobs)
        assert caller.settle(succeeded(lease)) is Settled.OK

    assert [type(answer) for answer in answers] == [Added] * 4
    assert await statuses(broker, *jobs, lease.envelope) == [Status.READY] * 4 + [Status.SUCCEEDED]
    assert len((await broker.admin.page(View(tag="b"))).records) == 1


async def test_the_file_is_known_by_any_of_its_names(broker: SqliteBroker, connect: Connect, path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for to in (tmp_path / "link" / path.name, f"file:{path}?mode=rw"):
        with connect(to, uri=True).transaction():
            pass


async def test_a_connection_that_converts_numbers_is_refused(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sqlite3.converters, "INTEGER", lambda raw: uuid.uuid5(uuid.NAMESPACE_OID, raw.hex()))
    with pytest.raises(WrongConnection, match="converts stored values to UUID"):
        connect(detect_types=sqlite3.PARSE_DECLTYPES).begin()


async def test_a_transaction_that_began_before_the_tables_is_refused(broker: SqliteBroker, path: Path, store: Transactional) -> None:
    """It sees the file as it was."""
    with connected(path.with_name("early.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE orders (number INTEGER)")
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM orders").fetchall()
        early = SqliteBroker(path.with_name("early.db"), shared=True)
        caller = Caller(connection, await early.transactional())
        for _ in range(2):
            with pytest.raises(WrongConnection, match="roll it back and begin another"):
                caller.check()
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (0,)
        connection.execute("ROLLBACK")
        with caller.transaction():
            caller.enqueue(an_envelope())
        await early.close()


SETTINGS: dict[str, tuple[str, Any]] = {
    "text as bytes": ("text_factory", bytes),
    "text ignoring errors": ("text_factory", lambda raw: raw.decode(errors="ignore")),
    "sqlite3.Row": ("row_factory", sqlite3.Row),
    "a row factory": ("row_factory", lambda _, row: tuple(dict(enumerate(row)).values())),
    "TEXT": ("convert", None),
    "BLOB": ("convert", None),
}
"""A column is converted to a type that taskflow has never stored."""


@pytest.mark.parametrize("name", SETTINGS)
async def test_settings_of_the_connection_change_nothing(
    broker: SqliteBroker, connect: Connect, path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The connection reads, changes and writes jobs, with text in each column that has some."""
    setting, value = SETTINGS[name]
    caller = connect(detect_types=sqlite3.PARSE_DECLTYPES if setting == "convert" else 0)
    if setting == "convert":
        monkeypatch.setitem(sqlite3.converters, name, lambda raw: uuid.uuid5(uuid.NAMESPACE_OID, raw.hex()))
    else:
        setattr(caller.connection, setting, value)
    session = await registered(broker)
    running = an_envelope(queue="zürich", job="prüfe", key=b"k" * 16)
    await broker.enqueue([running])
    [lease] = await broker.claim(session.id, 1, ["zürich"], 1)
    behind, replacing = [an_envelope(queue="zürich", job=job, key=b"k" * 16, on_conflict=OnConflict.REPLACE) for job in ("prüfe", "neu")]
    await broker.enqueue([behind])
    with caller.transaction():
        assert caller.enqueue(replacing, *envelopes(3, queue="zürich")) != []
        assert caller.settle(succeeded(lease)) is Settled.OK

    records = await broker.read([running.id, behind.id, replacing.id])
    assert [record and (record.status, record.queue, record.job, record.worker) for record in records] == [
        (Status.SUCCEEDED, "zürich", "prüfe", "worker"),
        (Status.CANCELLED, "zürich", "prüfe", None),
        (Status.READY, "zürich", "neu", None),
    ]
    assert not any(record and record.unreadable for record in records)
    with connected(path) as stranger:
        assert {row[0] for row in stranger.execute("SELECT typeof(worker) FROM taskflow_jobs")} == {"null", "text"}


@pytest.mark.parametrize("mode", ["legacy", "none", "autocommit"])
async def test_each_way_to_begin_a_transaction(broker: SqliteBroker, connect: Connect, mode: str) -> None:
    if mode == "autocommit" and sys.version_info < (3, 12):
        pytest.skip("Connection.autocommit is new in Python 3.12")
    modes: dict[str, dict[str, Any]] = {"legacy": {"isolation_level": ""}, "none": {}, "autocommit": {"autocommit": False}}
    caller = connect(**modes[mode])
    connection = caller.connection
    for ends in (connection.rollback, connection.commit):
        if mode == "none":
            connection.execute("BEGIN")
        connection.execute("CREATE TABLE IF NOT EXISTS orders (number INTEGER)")
        connection.execute("INSERT INTO orders VALUES (1)")
        caller.check()
        caller.enqueue(job := an_envelope())
        assert connection.in_transaction
        ends()
        assert await statuses(broker, job) == [Status.READY if ends == connection.commit else None]


async def test_the_error_of_a_transaction_that_read_too_early_has_advice(broker: SqliteBroker, connect: Connect) -> None:
    """The driver's own error is raised, with a note."""
    caller = connect()
    for verb in (caller.check, lambda: caller.enqueue(an_envelope())):
        for _ in range(2):
            caller.execute("BEGIN")
            caller.execute("SELECT * FROM taskflow_meta")
            await broker.enqueue([an_envelope()])
            with pytest.raises(sqlite3.OperationalError, match="database is locked") as locked:
                verb()
            assert "BEGIN IMMEDIATE" in locked.value.__notes__[0]
            caller.roll_back()


class Broken(Exception):
    pass


def _helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "taskflow-sqlite-statements"]


def _break(caller: Caller, at: int, *, is_late: bool) -> Callable[[Statement], Sequence[Row]]:
    """Run statements, and fail at one of them, before or after it has taken effect. The last one is the end of the operation."""
    left = at

    def run(statement: Statement) -> Sequence[Row]:
        nonlocal left
        left -= 1
        if left == 0 and not is_late:
            raise Broken
        rows: Sequence[Row] = caller.execute(*statement)
        if left == 0 and not statement.sql.startswith("RELEASE"):
            raise Broken
        return rows

    return run


@pytest.mark.parametrize("is_settlement", [False, True])
@pytest.mark.parametrize("how", ["run", "steps", "cancelled steps"])
async def test_a_verb_that_fails_half_way_changes_nothing(broker: SqliteBroker, connect: Connect, is_settlement: bool, how: str) -> None:
    """Whichever statement fails, or is interrupted, the program may commit its own changes."""
    session, caller, at = await registered(broker), connect(), 0
    waiting = an_envelope(key=b"k" * 16)
    await broker.enqueue([waiting, an_envelope(queue="run")])
    [lease] = await broker.claim(session.id, 1, ["run"], 1)
    before = await broker.admin.queues()
    while True:
        at += 1
        job = an_envelope(key=b"k" * 16, queue="new", job=f"job{at}", on_conflict=OnConflict.REPLACE)
        verb = caller.store.settle(succeeded(lease)) if is_settlement else caller.store.enqueue([job, *envelopes(2, queue="other")])
        caller.begin()
        try:
            run = _break(caller, at, is_late=how == "cancelled steps")
            _ = verb.run(run) if how == "run" else drive(verb.steps(), run)
        except Broken:
            caller.commit()
            assert [each.counts for each in await broker.admin.queues()] == [each.counts for each in before]
            assert await statuses(broker, waiting, job) == [Status.READY, None]
        else:
            caller.roll_back()
            break
    assert at > 5
    assert _helpers() == []


async def test_a_verb_that_is_given_up_leaves_no_thread_behind(connect: Connect) -> None:
    """This holds at any statement; and the caller may roll back and go on."""
    caller, at = connect(), 0
    while True:
        at += 1
        caller.begin()
        steps = caller.store.enqueue([an_envelope(key=b"k" * 16)]).steps()
        try:
            statement = next(steps)
            for _ in range(at):
                statement = steps.send(caller.execute(*statement))
        except StopIteration:
            break
        steps.close()
        assert _helpers() == []
        caller.roll_back()
    assert at > 10
    steps = caller.store.enqueue(envelopes(1)).steps()
    next(steps)
    del steps
    assert _helpers() == []
