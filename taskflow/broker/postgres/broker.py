"""The PostgreSQL broker. Each verb runs a statement that calls a function from the SQL files in this folder, which contain the rules."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from functools import partial
from typing import Any, Final

import asyncpg

from taskflow.broker import topics as names
from taskflow.broker.migrations import Upgrade
from taskflow.broker.per_loop import PerLoop
from taskflow.broker.postgres import claim, enqueue, rows, schedules, session as sessions, settle, upkeep
from taskflow.broker.postgres.connect import schema
from taskflow.broker.postgres.connect.pool import ConnectionPool
from taskflow.broker.postgres.connect.server import ANSWER_WITHIN, PostgresTarget
from taskflow.broker.postgres.console import PostgresConsole
from taskflow.broker.postgres.errors import NoRoom, was_about_a_value
from taskflow.broker.postgres.late_commits import LateCommits
from taskflow.broker.postgres.listen_connection import trouble_with_listening
from taskflow.broker.postgres.loop_connections import LoopConnections
from taskflow.broker.postgres.migrations import script, was_dropped, was_overtaken
from taskflow.broker.postgres.notifier import CLOSE_TIMEOUT, READ_WITHIN, Notifier
from taskflow.broker.postgres.transactional import DESCRIBING, PostgresTransactional, name_in
from taskflow.broker.postgres.wakeups import UNNOTED, Claiming, Notes, PostgresListener, parse_wakeups
from taskflow.broker.protocol import Added, Refused, Upkept
from taskflow.broker.script_values import added_or_refused, fire_answers, settle_possible
from taskflow.broker.wakeups import Waiter
from taskflow.model import wording
from taskflow.model.clock import Clock, to_microseconds
from taskflow.model.envelope import Envelope, Lease, check_namespace
from taskflow.model.errors import BrokerError, BrokerRefused, ConfigurationError, SessionLost, StoreFull
from taskflow.model.record import BY_CODE, Record, Status
from taskflow.model.rules import Rules
from taskflow.model.schedule import Definition, Firing
from taskflow.model.session import Beat, BeatAnswer, Session
from taskflow.model.verdict import Settled, Settlement

MOST_NAME_BYTES: Final = 63
"""The maximum length of a schema's name in PostgreSQL, in bytes."""

AWAITED_FOR: Final = 3600.0
"""Seconds for which the server remembers that a caller awaits a job's
end. A caller that waits longer relies on polling every few seconds."""

LOOKED_WITHIN: Final = 60.0
"""Seconds that a check of the low-water marks may take: see low_water_marks.sql. It reads all dead rows that cannot be vacuumed yet."""

DROPPED_WITHIN: Final = 60.0
"""Seconds that deleting the schema may take."""


class PostgresBroker:
    """Keeps jobs in a schema of a PostgreSQL database. See `taskflow.broker.protocol.Broker`.

    `namespace`  the name of the schema, so that several applications can share a database
    `clock`      replaces the server's clock, for tests
    `capacity`   the maximum number of live jobs; None for no limit
    `migrates`   True: the first verb creates or migrates the schema if necessary. False: it raises BrokerRefused instead

    The first verb connects, and raises BrokerRefused or BrokerUnavailable if the server is unsuitable or does not answer.
    """

    def __init__(
        self,
        server: PostgresTarget | None = None,
        *,
        namespace: str = "taskflow",
        rules: Rules | None = None,
        clock: Clock | None = None,
        capacity: int | None = None,
        migrates: bool = True,
    ) -> None:
        if len(check_namespace(namespace)) > MOST_NAME_BYTES:
            raise ConfigurationError(f"namespace {namespace!r} is too long for a schema: at most {MOST_NAME_BYTES} characters")
        self.server = server or PostgresTarget()
        self._namespace = namespace
        self._rules = rules or Rules()
        self._clock = clock
        self._capacity = capacity
        self._migrates = migrates
        self._per_loop = PerLoop(self._loop_connections)
        self._is_prepared = False

    def __repr__(self) -> str:
        return f"<PostgresBroker {self.server} {self._namespace!r}>"

    @property
    def console(self) -> PostgresConsole:
        return PostgresConsole(self)

    @property
    def listener(self) -> PostgresListener:
        """The listener of the running event loop."""
        return self._per_loop.here().listener

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        if not envelopes:
            return []
        row = await self._call_adding("enqueue_all", *enqueue.columns_of_calls(envelopes))
        if row["answers"] is None:
            return [Added(envelope.id) for envelope in envelopes]
        return [added_or_refused(*pair) for pair in zip(envelopes, row["answers"], strict=True)]

    async def register(self, session: Session) -> None:
        if not (await self.call_one("register", *self.times(), *sessions.session_columns(session)))["register"]:
            raise SessionLost(wording.session_reaped(session.name))

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        connections = self._per_loop.here()
        claiming = Claiming(connections.listener, [names.queue(queue) for queue in queues] or [names.ANY_QUEUE])
        try:
            found = await self.call("claim", *self.times(), session, request, list(queues), limit, *claiming.standing)
        except SessionLost:
            raise SessionLost(wording.SESSION_LOST) from None
        except BrokerError:
            claiming.fail()
            raise
        news = list[str]()
        while found and found[-1]["id"] is None:
            news.append(found.pop()["unreadable"])
        if news == [UNNOTED]:
            claiming.fail()
        else:
            connections.notifier.add(dict.fromkeys(news, 1))
            claiming.end(is_full=len(found) >= limit)
        return claim.leases_of(found, session, request)

    async def beat(self, beat: Beat) -> BeatAnswer:
        row = await self.call_one("beat", *self.times(), beat.session, *sessions.beat_columns(beat))
        if row["is_lost"]:
            raise SessionLost(wording.SESSION_LOST)
        if row["checks_marks"]:
            self._per_loop.here().late_commits.want_soon()
        return sessions.beat_answer(beat, row)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """Settle runs. Raises ValueError if one of the settlements cannot be stored; the caller then sends the others without it."""
        try:
            return await settle_possible(partial(settle.settle, self), settlements, settle.is_possible)
        except BrokerRefused as error:
            if was_about_a_value(error):
                raise ValueError(str(error)) from error
            raise

    async def cancel(self, ids: Sequence[bytes]) -> list[Status | None]:
        if not ids:
            return []
        row = await self.call_one("cancel", self.wall(), list(ids))
        return [BY_CODE.get(code) for code in row["statuses"]]

    async def read(self, ids: Sequence[bytes]) -> list[Record | None]:
        """Read jobs. If a job has not ended and this loop is listening for its end, the
        same call also notes that the listener is waiting, so that it is notified."""
        listener = self.listener
        ended = {job_id: record for job_id in ids if (record := listener.take_ended(job_id)) is not None}
        records = ended if len(ended) == len(ids) else ended | await self._read([job_id for job_id in ids if job_id not in ended])
        return [records.get(job_id) for job_id in ids]

    async def _read(self, ids: list[bytes]) -> dict[bytes, Record]:
        listener = self.listener
        times, began_at = listener.times, time.monotonic()
        if awaited := listener.unnoted(ids):
            arguments = (ids, awaited, listener.id, to_microseconds(AWAITED_FOR))
            found = await self.call("read_awaiting", self.wall(), *arguments, columns=rows.RECORD_COLUMNS)
        else:
            found = await self.call("read", self.wall(), ids, columns=rows.RECORD_COLUMNS)
        records = {row["id"]: rows.record_of(row) for row in found}
        if time.monotonic() - began_at < READ_WITHIN:  # the notifier announces an unawaited end later than that
            listener.armed([names.job(each) for each in awaited if each in records and not records[each].status.is_ended], times)
        return records

    async def holders(self, keys: Sequence[bytes]) -> list[bytes | None]:
        row = await self.call_one("holders", list(keys))
        return list(row["ids"])

    async def upkeep(self, limit: int, *, ends: bool = False) -> Upkept:
        row = await self.call_one("upkeep", *self.times(), int(limit), ends)
        if row["checks_marks"]:
            self._per_loop.here().late_commits.want_soon()
        return upkeep.upkept_of(row)

    async def define(self, definitions: Sequence[Definition], session: bytes | None = None, age: float = 0.0) -> list[bool]:
        columns = schedules.definition_columns(definitions)
        row = await self.call_one("define", self.wall(), *columns, session, to_microseconds(age))
        if row["answers"] is None:
            raise SessionLost(wording.SESSION_LOST)
        return list(row["answers"])

    async def fire(self, firings: Sequence[Firing]) -> list[Added | Refused | None]:
        row = await self._call_adding("fire", *schedules.firing_columns(firings))
        return fire_answers(firings, row["answers"])

    def listen(self, topics: Sequence[str]) -> Waiter:
        return self.listener.listen(topics)

    def sibling(self) -> PostgresBroker:
        """Return another broker on the same database, with separate connections."""
        another = PostgresBroker(
            self.server,
            namespace=self._namespace,
            rules=self._rules,
            clock=self._clock,
            capacity=self._capacity,
            migrates=self._migrates,
        )
        another._is_prepared = self._is_prepared  # the check takes longer than any verb
        return another

    async def close(self) -> None:
        await self._per_loop.close()

    async def drop_namespace(self) -> None:
        """Delete the schema with everything that it holds. Nothing may use it at the same time."""
        await self._per_loop.here().pool.fetch(f'DROP SCHEMA IF EXISTS "{self._namespace}" CASCADE', within=DROPPED_WITHIN)

    # --- migrations: see taskflow.broker.migrations.Migrating -------------------------------------------------------

    async def pending(self) -> Upgrade:
        return await schema.pending(self._per_loop.here().pool, self._namespace)

    async def migrate(self) -> Upgrade:
        return await schema.migrate(self._per_loop.here().pool, self._namespace, self._rules)

    async def sql(self) -> str:
        return script(await self.pending(), self._namespace, self._rules)

    # --- calls ------------------------------------------------------------------------------------------------------

    async def call(self, name: str, *arguments: Any, columns: str = "*", within: float = ANSWER_WITHIN) -> list[asyncpg.Record]:
        """Call one of our SQL functions and return its rows. The first call prepares the schema. `columns` lists the
        columns to return, in SQL."""
        connections = self._per_loop.here()
        if not self._is_prepared:
            await self._prepare(connections)
        statement = self._statement(name, len(arguments), columns)
        try:
            return await connections.fetch(statement, *arguments, within=within)
        except BrokerError as error:
            if was_dropped(error):
                self._is_prepared = False
                await self._prepare(connections)
            elif not was_overtaken(error):
                raise
        return await connections.fetch(statement, *arguments, within=within)

    def _statement(self, name: str, arguments: int, columns: str = "*") -> str:
        places = ", ".join(f"${number}" for number in range(1, arguments + 1))
        return f'SELECT {columns} FROM "{self._namespace}".{name}({places})'

    async def _prepare(self, connections: LoopConnections) -> None:
        """Prepare the schema, but only once if several calls arrive together, because each check needs a connection."""
        async with connections.preparing:
            if not self._is_prepared:
                await schema.prepare(connections.pool, self._namespace, self._rules, migrates=self._migrates)
                self._is_prepared = True

    async def call_one(self, name: str, *arguments: Any) -> asyncpg.Record:
        """Call a function that returns one row, and return the row. Also wake
        listeners: those in this process immediately, others with a notification."""
        began_at = time.monotonic()
        [row] = await self.call(name, *arguments)
        wakeups = row.get("wakeups")
        if wakeups:
            self._per_loop.here().notify(parse_wakeups(wakeups))
            self._per_loop.here().late_commits.after(time.monotonic() - began_at)
        return row

    async def _call_adding(self, name: str, *arguments: Any) -> asyncpg.Record:
        """Call a function that adds jobs."""
        try:
            return await self.call_one(name, self.wall(), self._capacity, *arguments)
        except NoRoom as error:
            raise StoreFull(str(error)) from error

    def tell_ended(self, ids: Set[bytes], *, are_awaited: bool) -> None:
        """Wake the waiters for these jobs, those in this process immediately. Waiters in other
        processes are notified immediately if any are known (`are_awaited`), otherwise after a delay."""
        connections = self._per_loop.here()
        connections.listener.flag.wake(map(names.job, ids))
        connections.notifier.add_ended(ids, are_awaited=are_awaited)

    async def transactional(self) -> PostgresTransactional:
        [row] = await self.call(DESCRIBING)
        return PostgresTransactional(
            f"the schema {self._namespace!r} at {self.server}", self._namespace, name_in(row[DESCRIBING]), self.wall, self._capacity
        )

    async def trouble_with_listening(self) -> str | None:
        return await trouble_with_listening(self._per_loop.here().pool)

    def wall(self) -> int | None:
        return None if self._clock is None else self._clock.wall()

    def times(self) -> tuple[int | None, int | None]:
        return (None, None) if self._clock is None else (self._clock.wall(), self._clock.steady())

    async def _note_waiting(self, listener: str, topics: list[str], ids: list[bytes]) -> None:
        await self.call("note_waiting", self.wall(), listener, topics, ids, to_microseconds(AWAITED_FOR))

    async def _look(self, topics: list[str], ids: list[bytes]) -> tuple[list[str], list[bytes], bool]:
        [row] = await self.call("look_for", topics, ids)
        return row["available"], row["ended"], row["may_have_missed"]

    async def _notify(self, topics: Mapping[str, int], ended: list[bytes], passed_on_by: str | None = None) -> None:
        await self.call("notify", self.wall(), list(topics), list(topics.values()), ended, passed_on_by)

    def _loop_connections(self) -> LoopConnections:
        notifier = Notifier(self._notify)

        async def before_the_end() -> None:
            await listener.close()
            await notifier.close()

        pool = ConnectionPool(self.server, before_the_end, schema=self._namespace)
        listener = PostgresListener(pool, self._namespace, Notes(self._note_waiting, self._look, self._notify))
        connections = LoopConnections(pool, listener, notifier)

        async def look() -> None:
            """Check the low-water marks, and wake listeners for jobs found behind them. It also works during `close`."""
            [row] = await connections.fetch(self._statement("check_marks", 1), self.wall(), within=LOOKED_WITHIN)
            if row["wakeups"]:
                connections.notify(parse_wakeups(row["wakeups"]))

        connections.late_commits = LateCommits(look)
        connections.forget = lambda listener: connections.fetch(self._statement("forget_listener", 1), listener, within=CLOSE_TIMEOUT)
        return connections
