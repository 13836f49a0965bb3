"""No SQL of ours calls a function or operator that another role has planted in a schema of the application's search_path."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest

from taskflow.broker.postgres import PostgresBroker, PostgresTarget, sql_files
from taskflow.broker.postgres.connect.pool import ConnectionPool
from taskflow.broker.protocol import Broker
from taskflow.model.envelope import OnConflict
from tests.stores.postgres.plans import Everything
from tests.support.callers import a_caller
from tests.support.harnesses import PostgresHarness
from tests.support.postgres import PostgresServer
from tests.support.verdicts import succeeded
from tests.support.world import World

FUNCTIONS: Final = """
    SELECT proname, provariadic = '"any"'::regtype,
        ARRAY(SELECT format_type(kind, NULL) FROM unnest(proargtypes) WITH ORDINALITY AS arg (kind, n) ORDER BY n),
        CASE WHEN proretset THEN 'SETOF ' ELSE '' END || format_type(prorettype, NULL)
    FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY ($1)
"""

OPERATORS: Final = """
    SELECT oprname, format_type(nullif(oprleft, 0), NULL), format_type(oprright, NULL), format_type(oprresult, NULL)
    FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprcode <> 0
"""

IN_PLACE_OF_ANY: Final = ("text", "bigint", "integer", "bytea", "boolean", "anyelement")

IMPOSSIBLE: Final = {'"any"', "internal", "cstring", "trigger", "event_trigger", "language_handler"}
"""Types that no function in PL/pgSQL can have."""


def traps(server: PostgresServer, schema: str) -> Iterator[tuple[str, str]]:
    """Yield what each trap replaces, and how to create it: "%" is its body. There is one for each built-in function whose name precedes a
    "(" in any file of the store, and one for each operator."""
    files = (path.read_text() for suffix in ("sql", "py") for path in sql_files.FOLDER.rglob(f"*.{suffix}"))
    names = sorted({name for text in files for name in re.findall(r"(\w+)\s*\(", text)})
    for name, is_variadic, args, result in server.rows(FUNCTIONS, names):
        signatures = {tuple(args)}
        if is_variadic:
            numbers = range(1, 4 if len(args) > 1 else 5)
            signatures = {(*args[:-1], *more) for n in numbers for more in itertools.product(IN_PLACE_OF_ANY, repeat=n)}
            signatures.add((*args[:-1], "VARIADIC text[]"))
        for signature in signatures:
            if IMPOSSIBLE.isdisjoint({*signature, result}):
                yield (
                    f"{name}{signature}",
                    f'CREATE FUNCTION {schema}."{name}" ({", ".join(signature)}) RETURNS {result} LANGUAGE plpgsql AS %',
                )
    for number, (name, left, right, result) in enumerate(server.rows(OPERATORS)):
        if IMPOSSIBLE.isdisjoint({left, right, result}):
            function, left_arg = f"{schema}.operator_{number}", f"LEFTARG = {left}, " if left else ""
            yield (
                f"{left} {name} {right}",
                f"CREATE FUNCTION {function} ({f'{left}, ' if left else ''}{right}) RETURNS {result} LANGUAGE plpgsql AS %; "
                f"CREATE OPERATOR {schema}.{name} ({left_arg}RIGHTARG = {right}, FUNCTION = {function})",
            )


BODY: Final = """$$ BEGIN
    PERFORM pg_catalog.setval('%schema.sprung'::pg_catalog.regclass, %number); RAISE EXCEPTION 'trap %number has sprung';
END $$"""
"""A sequence keeps its value when the transaction is rolled back."""


def plant(server: PostgresServer, database: str, schema: str) -> list[str]:
    """Return what each trap replaces, by its number."""
    found = list(traps(server, schema))
    body = BODY.replace("%schema", schema)
    made = (create.replace("%", body.replace("%number", str(number)), 1) for number, (_, create) in enumerate(found, 1))
    server.execute(
        f"SET ROLE mallory; CREATE SEQUENCE {schema}.sprung; GRANT ALL ON SEQUENCE {schema}.sprung TO PUBLIC; {';'.join(made)}", database
    )
    return ["", *(what for what, _ in found)]


_SERVERS: Final = list[PostgresServer]()


class Trapped(PostgresHarness):
    """The role `app` owns the database, except the schema `app`, which is full of traps and comes first in its search_path."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.namespace = "taskflow"
        self.database = self.server.new_database()
        self.server.execute(
            f"ALTER DATABASE {self.database} OWNER TO app; "
            f'ALTER ROLE app IN DATABASE {self.database} SET search_path = "$user", public, pg_catalog'
        )
        self.server.execute("CREATE SCHEMA app AUTHORIZATION mallory; GRANT USAGE ON SCHEMA app TO PUBLIC", self.database)
        self.traps = plant(self.server, self.database, "app")

    @classmethod
    def shared_server(cls) -> PostgresServer:
        return _SERVERS[-1]

    def open(self) -> Broker:
        server = PostgresTarget(host="127.0.0.1", port=self.server.port, user="app", database=self.database, tls="disable")
        return PostgresBroker(server, rules=self.rules, clock=self.seams.clock, capacity=self.capacity)

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.server.url(self.database, "app"), autocommit=True)

    def remove(self) -> None:
        """Remove the whole server."""

    def sprung(self) -> str | None:
        [(number, is_any)] = self.server.rows("SELECT last_value, is_called FROM app.sprung", database=self.database)
        return self.traps[number] if is_any else None


@pytest.fixture
def trapped() -> Iterator[type[Trapped]]:
    with PostgresServer(fsync=False) as server:
        server.execute("CREATE ROLE app LOGIN; CREATE ROLE mallory LOGIN")
        _SERVERS.append(server)
        yield Trapped
        _SERVERS.remove(server)


PINNED: Final = """
    SELECT DISTINCT proname FROM pg_proc, unnest(proconfig) AS setting
    WHERE pronamespace = 'taskflow'::regnamespace AND setting = 'search_path=pg_catalog, pg_temp'
"""


async def all_verbs(world: World) -> None:
    assert isinstance(world.broker, PostgresBroker)
    assert await world.broker.sql()
    await world.broker.migrate()
    await Everything(world.broker, world.clock).run()
    assert await world.broker.admin.examine()
    world.clock.advance(1_000_000.0)  # the workers are gone
    assert (await world.broker.admin.rebuild()).records
    await go_through_transactions(world)


async def test_no_planted_function_or_operator_is_called(trapped: type[Trapped], monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions that we call from outside set their own search_path, or name a schema for all calls of their own."""
    async with World(trapped) as world:
        assert isinstance(world.harness, Trapped)
        called = set[str]()
        fetch = ConnectionPool.fetch

        async def noted(self: ConnectionPool, statement: str, *arguments: Any, **more: Any) -> list[Any]:
            called.update(re.findall(r'"\.(\w+)\(', statement))
            return await fetch(self, statement, *arguments, **more)

        monkeypatch.setattr(ConnectionPool, "fetch", noted)
        try:
            await all_verbs(world)
        finally:
            assert world.harness.sprung() is None
        pinned = {name for (name,) in world.harness.server.rows(PINNED, database=world.harness.database)}
        assert len(called) > 20
        assert called - pinned <= {"wall"}


async def go_through_transactions(world: World) -> None:
    session = await world.a_session()
    lease = await world.running(session)
    with await a_caller(world) as caller:
        with caller.transaction():
            caller.enqueue(world.an_envelope())
            caller.enqueue(world.an_envelope(key="k", after=1.0), world.an_envelope(key="k"))
            caller.settle(succeeded(lease, follow_ups=(world.an_envelope(),)))
            caller.enqueue(world.an_envelope(key="k", on_conflict=OnConflict.REPLACE), world.an_envelope(tags=("a",)))
        await world.upkeep()
        caller.execute(
            "SELECT taskflow.enqueue('work', '{\"n\": 1}', 'q', 5, after => '1 s', expires => '1 h', max_attempts => 3, timeout => '1 s', "
            "key => 'k', on_conflict => 'replace', keep_result => '1 h', headers => '{\"a\": \"b\"}', key_scope => 'name', tags => '{a,b}')"
        )
        caller.execute("SELECT taskflow.enqueue('work')")
        caller.execute("SELECT taskflow.wall(NULL)")
