"""`taskflow.enqueue(...)` in SQL: jobs from psql, from triggers, from roles that may do nothing else, in the caller's own transaction."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec
import pytest

import taskflow
from taskflow import JobHandle, Status
from taskflow.app.options import MAX_ATTEMPTS
from taskflow.app.settings import Settings
from taskflow.broker import topics
from taskflow.broker.admin import View
from taskflow.broker.url import connect
from taskflow.model.codec import seal_json
from taskflow.model.envelope import MAX_JOB_NAME, OWN_HEADERS, Lease
from taskflow.model.ids import MAX_KEY_BYTES, key_digest
from taskflow.model.job_schema import DEFAULT_QUEUE, MAX_HEADER_BYTES, MAX_PAYLOAD, PRIORITIES
from taskflow.model.rules import DAY, MAX_DURATION
from tests.stores.jobs import registered
from tests.stores.postgres.scene import Scene, send
from tests.stores.postgres.versions import psql
from tests.stores.scene import NOTE
from tests.support.listing import listed

MAX_BYTES: Final = Settings(broker="").max_payload


@pytest.fixture
async def sql(scene: Scene) -> AsyncIterator[asyncpg.Connection]:
    await scene.store.read([bytes(16)])
    connection = await asyncpg.connect(scene.straight_url)
    yield connection
    await connection.close()


async def claimed(scene: Scene, queue: str = "default") -> list[Lease]:
    return await scene.store.claim((await registered(scene.store)).id, 1, [queue], 100)


CALL: Final = """
    SET timezone = 'UTC';
    SELECT taskflow.enqueue('take', jsonb_build_object(
        'huge', 100000000000000000000, 'exact', 12345678901234567890.123456789, 's', 'é', 'b', '\\x00ff'::bytea,
        'aware', '2024-02-29 12:30:00.5+01'::timestamptz, 'spell', '1 day 02:00'::interval, 'none', NULL
    ))
"""
"""What SQL's types become. tests/unit/codec/test_json.py has the values of all annotations."""


async def test_psql_adds_a_job_that_a_worker_runs_with_its_annotated_values(scene: Scene, sql: asyncpg.Connection) -> None:
    taken = list[object]()

    @taskflow.job(name="take")
    async def take(huge: int, exact: Decimal, s: str, b: bytes, aware: datetime, spell: timedelta, none: int | None, left: int = 7) -> None:
        taken.extend((huge, exact, s, b, aware, spell, none, left))

    job_id = await asyncio.to_thread(psql, scene.straight_url, CALL)
    async with scene.worker():
        await JobHandle.of(job_id).result(timeout=10)
    exact, aware = Decimal("12345678901234567890.123456789"), datetime(2024, 2, 29, 11, 30, 0, 500_000, tzinfo=UTC)
    assert taken == [10**20, exact, "é", b"\0\xff", aware, timedelta(days=1, hours=2), None, 7]


TRIGGER: Final = f"""
    CREATE TABLE orders (id integer PRIMARY KEY);
    CREATE FUNCTION order_came() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM taskflow.enqueue('{NOTE}', jsonb_build_object('number', NEW.id));
        RETURN NEW;
    END
    $$;
    CREATE TRIGGER order_came AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION order_came();
"""


async def test_a_transaction_that_is_rolled_back_adds_no_job(scene: Scene, sql: asyncpg.Connection) -> None:
    await sql.execute(TRIGGER)
    transaction = sql.transaction()
    await transaction.start()
    await sql.execute("INSERT INTO orders VALUES (1)")
    handle = await send(sql)
    await transaction.rollback()
    await sql.execute("BEGIN; SAVEPOINT one; INSERT INTO orders VALUES (2); ROLLBACK TO one; INSERT INTO orders VALUES (3); COMMIT")
    assert await handle.status() is None
    [lease] = await claimed(scene)
    assert lease.envelope.payload == seal_json(b'{"number": 3}')


async def test_a_key_is_the_same_in_sql_and_python(sql: asyncpg.Connection) -> None:
    """This includes a key that exactly fills a block of the digest."""
    names = [("q", "j", "é" * 100), ("Q" * 100, "ü" * 200, "\U0001f600" * 50), ("q" * 100, "j" * 25, "k")]
    names += [("q", "j", "k" * length) for length in (1, 123, 124, 125, 126)]
    for each in names:
        assert await sql.fetchval("SELECT taskflow.key_digest($1, $2, $3)", *each) == key_digest(*each)


async def test_a_key_that_is_taken_keeps_the_standing_job(scene: Scene, sql: asyncpg.Connection) -> None:
    """This holds whichever program sent it, unless the call requests an error. A key for the job's name differs from one for its queue."""
    from_python = await scene.note.options(key="a").delay(1)
    assert await send(sql, "key => 'a'") == from_python
    from_sql = await send(sql, "key => 'b'")
    await scene.store.upkeep(100)
    again = await scene.note.options(key="b").delay(1)
    assert (again, again.is_new) == (from_sql, False)
    assert await send(sql, "key => 'b', queue => 'other'") != from_sql
    of_name = await scene.note.options(key="a", key_scope="name", queue="io").delay(1)
    assert await send(sql, "key => 'a', key_scope => 'name'") == of_name
    assert await scene.waiting() == {"ready": 4}
    with pytest.raises(asyncpg.UniqueViolationError, match=f"key is 'a', which the live job {from_python.id} has"):
        await send(sql, "key => 'a', on_conflict => 'raise'")
    info = await from_sql.info()
    assert info is not None
    assert info.key == "b"


HEADERS: Final = {"trace": "é" * 300, "": "x", **{f"h{number}": "" for number in range(20)}}


@pytest.mark.parametrize(
    ("options", "in_sql"),
    [
        (
            {"queue": "mail", "priority": -100, "max_attempts": 1, "timeout": 1.5, "keep_result": 0, "headers": {"a": "b"}, "expires": 60}
            | {"tags": ("import:42", "b")},
            "queue => 'mail', priority => -100, max_attempts => 1, timeout => '1.5 seconds', keep_result => '0', expires => '1 minute', "
            "headers => jsonb_build_object('a', 'b'), tags => ARRAY['import:42', 'b', 'import:42']",
        ),
        (
            {"headers": HEADERS, "priority": 100, "tags": tuple("x" * 99 + str(n) for n in range(10)), "max_attempts": MAX_ATTEMPTS}
            | {"timeout": MAX_DURATION},
            f"headers => '{json.dumps(HEADERS)}', priority => 100, max_attempts => 1000000, timeout => '36525 days', "
            "tags => ARRAY(SELECT repeat('x', 99) || n FROM generate_series(0, 9) AS n)",
        ),
        ({"keep_result": 7 * DAY, "timeout": 0}, "keep_result => '7 days', timeout => '0'"),
    ],
    ids=["all", "most", "two"],
)
async def test_a_worker_gets_the_same_job_as_from_python(scene: Scene, sql: asyncpg.Connection, options: Any, in_sql: str) -> None:
    """Only the id and the payload differ."""
    wanted: Any = {"keep_result": 3600, **options}
    await scene.note.options(**wanted).delay(1)
    await send(sql, in_sql)
    envelopes = [lease.envelope for lease in await claimed(scene, options.get("queue", DEFAULT_QUEUE))]
    assert len(envelopes) == 2
    plain = [msgspec.structs.replace(envelope, id=b"", payload=b"", expires=None, at=None) for envelope in envelopes]
    assert plain[0] == plain[1]
    assert (envelopes[0].expires is None) == (envelopes[1].expires is None)
    for tag in options.get("tags", ()):
        assert len(await listed(scene.store.admin, View(tag=tag))) == 2


DUE: Final = {
    "": 0,
    "after => '90 seconds'": 90,
    "after => '2 days 0.5 seconds'": 2 * DAY + 0.5,
    "after => '36525 days'": MAX_DURATION,
    "at => now() + interval '1 hour'": 3600,
    "at => now() - interval '1 hour'": 0,
    "at => '0044-03-15 BC'": 0,
}


async def test_after_and_at_set_the_due_time(sql: asyncpg.Connection) -> None:
    """A month is a calendar month."""
    await sql.execute("SET timezone = 'UTC'")
    month = (await sql.fetchval("SELECT now() + interval '1 month' - now()")).total_seconds()
    for options, seconds in {**DUE, "after => '1 month'": month}.items():
        before = await sql.fetchval("SELECT clock_timestamp()")
        handle = await send(sql, options)
        after = await sql.fetchval("SELECT clock_timestamp()")
        info = await handle.info()
        assert info is not None
        assert info.status is (Status.SCHEDULED if seconds else Status.READY)
        slack = timedelta(milliseconds=1 + (seconds > 0) * 100)
        assert before + timedelta(seconds=seconds) - slack <= info.due_at <= after + timedelta(seconds=seconds) + slack
        assert before - slack <= info.created_at <= after + slack


async def test_the_id_is_one_like_the_clients(sql: asyncpg.Connection) -> None:
    """It is a UUID of version 7 with the time and no shard; no two are equal."""
    before = time.time()
    ids: list[UUID] = [row[0] for row in await sql.fetch(f"SELECT taskflow.enqueue('{NOTE}') FROM generate_series(1, 200)")]
    assert len(set(ids)) == 200
    for each in ids:
        assert (each.version, each.variant) == (7, "specified in RFC 4122")
        assert each.bytes[6:8] == b"\x70\x00"
        assert before - 1 <= int.from_bytes(each.bytes[:6], "big") / 1000 <= time.time() + 1


NAME, WORD, SPELL = "1 to 200 printable", "1 to 100 of the characters", "0 to a hundred years"
REFUSED: Final = [
    ("job => ''", "job is ''", NAME),
    ("job => NULL", "job is NULL", NAME),
    (f"job => '{'x' * (MAX_JOB_NAME + 1)}'", "job is 'xxx", NAME),
    ("job => E'a\\u00a0b'", "job is", NAME),
    ("queue => E'a\\n'", "queue is 'a\n'", WORD),
    ("queue => NULL", "queue is NULL", WORD),
    (f"queue => '{'q' * 101}'", "queue is 'qqq", WORD),
    (f"priority => {PRIORITIES[0] - 1}", "priority is '-101'", "-100 to 100"),
    (f"priority => {PRIORITIES[-1] + 1}", "priority is '101'", "-100 to 100"),
    ("priority => NULL", "priority is NULL", "-100 to 100"),
    ("arguments => '[1]'", "arguments is '[1]'", "JSON object"),
    ("arguments => NULL", "arguments is NULL", "JSON object"),
    (
        f"arguments => jsonb_build_object('a', repeat('x', {MAX_BYTES}))",
        f"{MAX_BYTES + 13} bytes, but the limit is {MAX_BYTES}",
        "max_payload",
    ),
    ("after => '1 s', at => now()", "after is '00:00:01' and at is", "give only one"),
    ("after => '-1 s'", "after is '-00:00:01'", SPELL),
    ("after => '36526 days'", "after is '36526 days'", SPELL),
    ("expires => '-1 s'", "expires is '-00:00:01'", SPELL),
    ("timeout => '178000000 years'", "timeout is '178000000 years'", SPELL),
    ("keep_result => '-1 s'", "keep_result is '-00:00:01'", SPELL),
    ("at => 'infinity'", "at is 'infinity'", "before the year 10000"),
    ("at => '10000-01-01Z'", "at is '10000-01-01", "before the year 10000"),
    ("max_attempts => 0", "max_attempts is '0'", "1 to 1,000,000"),
    (f"max_attempts => {MAX_ATTEMPTS + 1}", "max_attempts is '1000001'", "1 to 1,000,000"),
    ("on_conflict => 'drop'", "on_conflict is 'drop'", "'keep', 'replace' or 'raise'"),
    ("key_scope => NULL", "key_scope is NULL", "'queue' or 'name'"),
    ("key => ''", "key is ''", "1 to 200 bytes of UTF-8, got 0"),
    (f"key => '{'é' * (MAX_KEY_BYTES // 2)}x'", "key is 'ééé", "1 to 200 bytes of UTF-8, got 201"),
    ("tags => ARRAY['a', 'b c']", "tags has 'b c'", WORD),
    ("tags => ARRAY[NULL]", "tags has NULL", WORD),
    ("tags => ARRAY(SELECT n::text FROM generate_series(1, 11) AS n)", "tags has 11 tags", "at most 10"),
    ("headers => '[]'", "headers is '[]'", "text to text"),
    ("headers => '{\"a\": 1}'", "headers has '1' for 'a'", "must be text"),
    (f'headers => \'{{"{OWN_HEADERS}a": ""}}\'', "headers has 'tf-a'", "taskflow's own"),
    (f"headers => jsonb_build_object('é', repeat('x', {MAX_HEADER_BYTES - 1}))", f"headers has {MAX_HEADER_BYTES + 1} bytes", "4096"),
]


async def test_errors_name_the_wrong_option_and_its_value(scene: Scene, sql: asyncpg.Connection) -> None:
    for options, message, hint in REFUSED:
        name = "" if options.startswith("job") else f"'{NOTE}', "
        with pytest.raises(asyncpg.InvalidParameterValueError) as caught:
            await sql.fetchval(f"SELECT taskflow.enqueue({name}{options})")
        assert message in str(caught.value), options
        assert hint in (caught.value.hint or ""), options
    assert await scene.waiting() == {}


async def test_the_bytes_that_a_call_may_take_can_be_set(sql: asyncpg.Connection) -> None:
    """The setting matches the clients' setting of the same name, which has a maximum."""
    await sql.execute("SET taskflow.max_payload = 100")
    with pytest.raises(asyncpg.InvalidParameterValueError, match="the limit is 100"):
        await send(sql, padding="x" * 100)
    await sql.execute(f"SET taskflow.max_payload = {2 * MAX_PAYLOAD}")
    await send(sql, padding="x" * MAX_BYTES)
    with pytest.raises(asyncpg.InvalidParameterValueError, match=f"but the limit is {MAX_PAYLOAD}"):
        await sql.fetchval(f"SELECT taskflow.enqueue('{NOTE}', jsonb_build_object('a', repeat('x', $1)))", MAX_PAYLOAD)
    for setting in ("much", "-1", "1e3", "10 MB", "9" * 30):
        await sql.execute(f"SET taskflow.max_payload = '{setting}'")
        with pytest.raises(asyncpg.InvalidParameterValueError, match=f"the setting taskflow.max_payload is '{setting}'"):
            await sql.execute("SELECT taskflow.enqueue('work')")


async def test_nothing_of_the_callers_is_run_as_the_owner(sql: asyncpg.Connection) -> None:
    """This covers tables that its search_path puts first, and text in arguments. See also test_ownership.py and test_planted.py."""
    await sql.execute("SET search_path = pg_temp, pg_catalog; CREATE TEMP TABLE jobs (id bytea); CREATE TEMP TABLE given (id bytea)")
    hostile = "'; DROP TABLE taskflow.jobs; --"
    await sql.fetchval(
        f"SELECT taskflow.enqueue('{NOTE}', jsonb_build_object('a', $1::text), key => $1, headers => jsonb_build_object('a', $1::text))",
        hostile,
    )
    with pytest.raises(asyncpg.InvalidParameterValueError, match="job is ''"):
        await sql.fetchval("SELECT taskflow.enqueue(E'''\\n%s %I'::text)")
    assert await sql.fetchval("SELECT count(*) FROM taskflow.jobs") == 1


async def test_calls_with_few_arguments_are_never_taken_for_the_brokers_own(sql: asyncpg.Connection) -> None:
    """This includes untyped literals and parameters."""
    for call in (f"'{NOTE}'", f"'{NOTE}', '{{}}'", f"'{NOTE}', '{{}}', 'q', 1, '1 s', NULL, '1 m', 5, '1 h', 'k', 'keep', '1 h', '{{}}'"):
        assert isinstance(await sql.fetchval(f"SELECT taskflow.enqueue({call})"), UUID)
    assert await sql.fetchval("SELECT taskflow.enqueue($1, $2)", NOTE, '{"number": 1}')


async def test_the_settings_of_a_session_change_nothing(scene: Scene, sql: asyncpg.Connection) -> None:
    await sql.execute(
        "SET standard_conforming_strings = off; SET bytea_output = escape; SET intervalstyle = sql_standard; SET datestyle = german"
    )
    await send(sql, "key => 'a', headers => '{\"a\": \"b\"}', after => '1 day 1 hour', at => NULL")
    [record] = await scene.store.read([(await sql.fetchval("SELECT id FROM taskflow.jobs"))])
    assert record is not None
    assert record.headers == {"a": "b"}
    await scene.store.upkeep(100)
    assert await scene.note.options(key="a", after=90).delay(1) == JobHandle.of(str(UUID(bytes=record.id)))


async def test_another_namespace_is_notified_on_a_separate_channel(scene: Scene, sql: asyncpg.Connection) -> None:
    other = connect(f"{scene.straight_url}?namespace=Other-one")
    await other.read([bytes(16)])
    with other.listen([topics.queue("default")]) as nudges:
        await nudges.wait(0.5)  # it listens now
        await send(sql)
        assert not await nudges.wait(0.3)
        job_id = await sql.fetchval("SELECT \"Other-one\".enqueue('work')")
        assert await nudges.wait(5.0)
    assert await other.read([job_id.bytes]) != [None]
    await other.close()


async def test_a_request_that_is_no_object_or_too_long_is_refused(sql: asyncpg.Connection) -> None:
    for function in ("enqueue_within", "settle_within"):
        for request in ("'[1]'", "'7'", "NULL", "repeat('x', 200000000)"):
            with pytest.raises(asyncpg.InvalidParameterValueError, match="the request has"):
                await sql.execute(f"SELECT taskflow.{function}({request})")


async def test_news_that_a_sender_has_forged_make_no_commit_fail(sql: asyncpg.Connection) -> None:
    """A forged topic may be too long, and a forged id may have wrong digits."""
    for news in ("job:no digits", "x" * 20_000, "due\n" * 50_000):
        await sql.execute("BEGIN; SELECT taskflow.enqueue('work')")
        await sql.execute(f"SELECT set_config('taskflow.at_commit', '{news}', true), set_config('taskflow.keys', 'many', true)")
        await sql.execute("SELECT taskflow.enqueue('work', key => 'k'); COMMIT")
