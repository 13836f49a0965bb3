"""The PostgreSQL broker: runs the engine on the records in a schema."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Final, TypeVar

from taskflow.broker import topics as names
from taskflow.broker.admin import Finding, Rebuilt
from taskflow.broker.engine.broker import EngineBroker
from taskflow.broker.engine.contention import Contention, advance
from taskflow.broker.engine.job import Job
from taskflow.broker.engine.seam import Apply, Claimed, Effect, Operation, Ref
from taskflow.broker.migrations import Upgrade
from taskflow.broker.postgres import examination, schema
from taskflow.broker.postgres.connect.pool import ConnectionPool
from taskflow.broker.postgres.connect.server import ANSWER_TIMEOUT, PostgresTarget
from taskflow.broker.postgres.errors import was_about_a_value, was_dropped
from taskflow.broker.postgres.listen_connection import trouble_with_listening
from taskflow.broker.postgres.loop_connections import CLOSE_TIMEOUT, READ_TIMEOUT, LoopConnections, Notifier
from taskflow.broker.postgres.store import Hooks, PostgresStore
from taskflow.broker.postgres.transactional import DESCRIBING, PostgresTransactional, name_in
from taskflow.broker.postgres.wakeups import UNHEARD, UNNOTED, Notes, PostgresListener, parse_wakeups
from taskflow.broker.tasks import PerLoop
from taskflow.broker.wakeups import Waiter
from taskflow.model.clock import Clock, to_microseconds
from taskflow.model.envelope import check_namespace
from taskflow.model.errors import BrokerError, BrokerRefused, ConfigurationError, SessionLost
from taskflow.model.record import Record
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, BeatAnswer
from taskflow.model.verdict import Settled, Settlement

T = TypeVar("T")

MAX_NAME_BYTES: Final = 63
"""The maximum length of a schema's name in PostgreSQL, in bytes."""

AWAITED_TTL: Final = 3600.0
"""Seconds for which the server remembers that a caller awaits a job's
end. A caller that waits longer relies on polling every few seconds."""

MIN_LATE: Final = 0.25
"""Seconds after which an operation counts as slow: its jobs may be behind the low-water marks, which trail the clock by half a second."""

MARKS_INTERVAL: Final = 10.0
"""Seconds after which an idle worker asks again whether it should check the low-water marks."""

CHECK_TIMEOUT: Final = 60.0
"""Seconds that a check of the low-water marks may take: see low_water_marks.sql. It reads all dead rows that can't be vacuumed yet."""

DROP_TIMEOUT: Final = 60.0
"""Seconds that deleting the schema may take."""


class PostgresBroker(EngineBroker):
    """Keeps jobs in a schema of a PostgreSQL database. See `taskflow.broker.protocol.Broker`.

    `namespace`  the name of the schema, so that several applications can share a database
    `clock`      replaces the server's clock, for tests
    `capacity`   the maximum number of live jobs; None for no limit
    `migrates`   True: the first operation creates or migrates the schema if necessary. False: it raises BrokerRefused instead

    The first operation connects, and raises BrokerRefused or BrokerUnavailable if the server is unsuitable or does not answer.
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
        if len(check_namespace(namespace)) > MAX_NAME_BYTES:
            raise ConfigurationError(f"namespace {namespace!r} is too long for a schema: at most {MAX_NAME_BYTES} characters")
        self.server = server or PostgresTarget()
        self._namespace = namespace
        super().__init__(rules or Rules())
        self._clock = clock
        self._capacity = capacity
        self._migrates = migrates
        self._per_loop = PerLoop(self._loop_connections)
        self._is_prepared = False
        self._asked_at = time.monotonic()
        self._contention = Contention()
        hooks = Hooks(self._tell_readied, self._tell_ended, self._tell_woken, self._check_marks)
        self.store = PostgresStore(self._fetch, namespace, self.wall, self._steady, capacity, hooks)

    def __repr__(self) -> str:
        return f"<PostgresBroker {self.server} {self._namespace!r}>"

    @property
    def listener(self) -> PostgresListener:
        """The listener of the running event loop."""
        return self._per_loop.here().listener

    async def run(self, operation: Operation[T]) -> T:
        """Run an operation, and return its answer. Each store call is one statement, unless other clients keep changing the records that it
        needs: see `_run_locked`."""
        return await self._contention.run(operation, self.store.perform, self._run_locked)

    async def _run_locked(self, contested: Sequence[Ref], operation: Operation[T], effect: Effect) -> tuple[Effect, Any]:
        """Perform `effect`, and continue the operation up to its next change of records, in a transaction that first locks `contested`.

        Return that change, and its answer. If a statement of the transaction fails, the last store call runs again without a transaction.
        """
        connections, notices = self._per_loop.here(), list[Callable[[], None]]()
        async with connections.turn:
            began_at = time.monotonic()
            try:
                async with connections.pool.transaction() as fetch:
                    store = self.store.within(fetch, notices)
                    await store.lock(contested)
                    answer = await store.perform(effect)
                    while not isinstance(effect, Apply):
                        effect = advance(operation, answer)
                        answer = await store.perform(effect)
            except BrokerError:
                return effect, await self.store.perform(effect)
        for tell in notices:
            tell()
        if notices and time.monotonic() - began_at >= MIN_LATE:  # the calls in `notices` didn't measure the commit
            connections.check_marks()
        return effect, answer

    async def claim_records(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> Claimed | None:
        connections = self._per_loop.here()
        listener = connections.listener
        claiming = listener.begin_claim([names.queue(queue) for queue in queues] or [names.ANY_QUEUE])
        try:
            claimed, news = await self.store.claim(session, request, queues, limit, UNHEARD if claiming is None else claiming.arguments)
        except BrokerError as error:
            if claiming is not None:
                listener.fail_claim(claiming)
            if isinstance(error, SessionLost):
                return None
            raise
        if news != [UNNOTED]:
            connections.notifier.add(dict.fromkeys(news, 1))
        if claiming is not None:
            if news == [UNNOTED]:
                listener.fail_claim(claiming)
            else:
                listener.end_claim(claiming, is_full=len(claimed.records) >= limit)
        return claimed

    async def beat(self, beat: Beat) -> BeatAnswer:
        """Send a heartbeat. Because an idle worker may go up to a minute without calling upkeep, its heartbeats also ask from time to
        time whether to check the low-water marks."""
        answer = await super().beat(beat)
        if beat.looks and time.monotonic() - self._asked_at >= MARKS_INTERVAL:
            self._asked_at = time.monotonic()
            with contextlib.suppress(BrokerError):  # the heartbeat has taken effect
                [row] = await self.call("may_check_marks", self.wall())
                if row["may_check_marks"]:
                    self._check_marks()
        return answer

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """Settle runs. If one of the settlements cannot be stored, raises ValueError; the caller then sends the others without it."""
        try:
            return await super().settle(settlements)
        except BrokerRefused as error:
            if was_about_a_value(error):
                raise ValueError(str(error)) from error
            raise

    async def read(self, ids: Sequence[bytes]) -> list[Record | None]:
        """Read jobs. If a job has not ended and this loop is listening for its end, the
        same call also records that the listener is waiting, so that it is notified."""
        listener = self.listener
        ended = {job_id: record for job_id in ids if (record := listener.take_ended(job_id)) is not None}
        missing = [job_id for job_id in ids if job_id not in ended]
        if awaited := listener.unnoted(missing):
            records = ended | await self._read_awaiting(missing, awaited)
            return [records.get(job_id) for job_id in ids]
        rest = dict(zip(missing, await super().read(missing), strict=True)) if missing else {}
        return [ended.get(job_id) or rest.get(job_id) for job_id in ids]

    async def _read_awaiting(self, ids: list[bytes], awaited: list[bytes]) -> dict[bytes, Record]:
        listener = self.listener
        times, began_at = listener.times, time.monotonic()
        found, now = await self.store.load_awaiting(ids, awaited, listener.id, to_microseconds(AWAITED_TTL))
        jobs = {job_id: Job.of_record(record) for job_id, record in found.items()}
        records = {job_id: job.to_record() for job_id, job in jobs.items() if job.is_kept(now)}
        if time.monotonic() - began_at < READ_TIMEOUT:  # the notifier announces an unawaited end later than that
            listener.armed([names.job(each) for each in awaited if each in records and not records[each].status.is_ended], times)
        return records

    async def examine(self) -> list[Finding]:
        [row] = await self.call("server_info")
        trouble = await trouble_with_listening(self._per_loop.here().pool)
        risk = next((risk for setting, risk in _RISKS.items() if row[setting] == "off"), None)
        return [
            Finding("server", "ok", f"PostgreSQL {row['version']}"),
            Finding(
                "persistence",
                "ok" if risk is None else "problem",
                "changes are on disk before they are acknowledged" if risk is None else risk,
            ),
            Finding("wake-ups", "ok", "notifications arrive") if trouble is None else Finding("wake-ups", "note", trouble),
            Finding("room", "ok", f"the tables take {row['size']:,} bytes"),
            await examination.examine(self._per_loop.here().pool, self._namespace),
        ]

    async def rebuild(self) -> Rebuilt:
        return await examination.rebuild(self._per_loop.here().pool, self._namespace)

    def listen(self, topics: Sequence[str]) -> Waiter:
        return self.listener.listen(topics)

    def sibling(self) -> PostgresBroker:
        """Return another broker on the same database, with separate connections."""
        another = PostgresBroker(
            self.server,
            namespace=self._namespace,
            rules=self.rules,
            clock=self._clock,
            capacity=self._capacity,
            migrates=self._migrates,
        )
        another._is_prepared = self._is_prepared  # the check takes longer than any operation
        return another

    async def close(self) -> None:
        await self._per_loop.close()

    async def drop_namespace(self) -> None:
        """Delete the schema with everything that it holds. Nothing else may use the schema at the same time."""
        await self._per_loop.here().pool.fetch(f'DROP SCHEMA IF EXISTS "{self._namespace}" CASCADE', within=DROP_TIMEOUT)

    # --- migrations: see taskflow.broker.migrations.Migrating -------------------------------------------------------

    async def pending(self) -> Upgrade:
        return await schema.pending(self._per_loop.here().pool, self._namespace)

    async def migrate(self) -> Upgrade:
        return await schema.migrate(self._per_loop.here().pool, self._namespace)

    async def sql(self) -> str:
        return schema.script(await self.pending(), self._namespace)

    # --- calls ------------------------------------------------------------------------------------------------------

    async def call(self, name: str, *arguments: Any, within: float = ANSWER_TIMEOUT) -> list[Any]:
        """Call one of our SQL functions and return its rows."""
        return await self._fetch(self._statement(name, len(arguments)), *arguments, within=within)

    async def _fetch(self, statement: str, *arguments: Any, within: float = ANSWER_TIMEOUT) -> list[Any]:
        """Run a statement that calls our SQL functions, and return its rows. Prepare the schema first if it's unchecked or was dropped."""
        connections = self._per_loop.here()
        if not self._is_prepared:
            await self._prepare(connections)
        try:
            return await connections.pool.fetch(statement, *arguments, within=within)
        except BrokerError as error:
            if not was_dropped(error):
                raise
            self._is_prepared = False
            await self._prepare(connections)
        return await connections.pool.fetch(statement, *arguments, within=within)

    def _statement(self, name: str, arguments: int) -> str:
        places = ", ".join(f"${number}" for number in range(1, arguments + 1))
        return f'SELECT * FROM "{self._namespace}".{name}({places})'

    async def _prepare(self, connections: LoopConnections) -> None:
        """Prepare the schema, but only once if several calls arrive together, because each check needs a connection."""
        async with connections.preparing:
            if not self._is_prepared:
                await schema.prepare(connections.pool, self._namespace, migrates=self._migrates)
                self._is_prepared = True

    def _tell_readied(self, wakeups: str, seconds: float) -> None:
        """Wake listeners: those in this process directly, others by a notification. After a slow operation, check the low-water marks."""
        connections = self._per_loop.here()
        connections.notify(parse_wakeups(wakeups))
        if seconds >= MIN_LATE:
            connections.check_marks()

    def _tell_ended(self, ids: Set[bytes], are_awaited: bool) -> None:
        """Wake the waiters for these jobs, those in this process immediately. Waiters in other
        processes are notified immediately if any are known (`are_awaited`), otherwise after a delay."""
        connections = self._per_loop.here()
        connections.listener.flag.wake(map(names.job, ids))
        connections.notifier.add_ended(ids, are_awaited=are_awaited)

    def _tell_woken(self, woken: Set[str]) -> None:
        self._per_loop.here().notify(dict.fromkeys(woken, 1))

    def _check_marks(self) -> None:
        self._per_loop.here().check_marks()

    async def transactional(self) -> PostgresTransactional:
        [row] = await self.call(DESCRIBING)
        return PostgresTransactional(
            f"the schema {self._namespace!r} at {self.server}", self._namespace, name_in(row[DESCRIBING]), self.wall, self._capacity
        )

    def wall(self) -> int | None:
        return None if self._clock is None else self._clock.wall()

    def _steady(self) -> int | None:
        return None if self._clock is None else self._clock.steady()

    async def _record_waiting(self, listener: str, former: list[int], note: int, topics: list[str], ids: list[bytes]) -> None:
        await self.call("record_waiting", self.wall(), listener, former, note, topics, ids, to_microseconds(AWAITED_TTL))

    async def _look(self, topics: list[str], ids: list[bytes]) -> tuple[list[str], list[bytes], bool]:
        [row] = await self.call("look_for", topics, ids)
        return row["available"], row["ended"], row["may_have_missed"]

    async def _notify(self, topics: Mapping[str, int], ended: list[bytes]) -> None:
        await self.call("notify", self.wall(), list(topics), list(topics.values()), ended)

    def _loop_connections(self) -> LoopConnections:
        notifier = Notifier(self._notify)

        async def before_the_end() -> None:
            await listener.close()
            await notifier.close()

        pool = ConnectionPool(self.server, before_the_end, schema=self._namespace)
        listener = PostgresListener(pool, self._namespace, Notes(self._record_waiting, self._look))
        connections = LoopConnections(pool, listener, notifier)

        async def look() -> None:
            """Check the low-water marks, and wake listeners for jobs found behind them."""
            [row] = await connections.pool.fetch(self._statement("check_marks", 1), self.wall(), within=CHECK_TIMEOUT)
            if row["wakeups"]:
                connections.notify(parse_wakeups(row["wakeups"]))

        connections.look = look
        connections.forget = lambda listener: connections.pool.fetch(self._statement("forget_listener", 1), listener, within=CLOSE_TIMEOUT)
        return connections


_RISKS: Final = {
    "fsync": "fsync is off: a crash of the machine may lose or damage everything",
    "full_page_writes": "full_page_writes is off: a crash of the machine may damage everything, unless its file system writes whole pages",
    "synchronous_commit": "synchronous_commit is off: a crash of the server may lose the latest changes, although they were acknowledged",
}
