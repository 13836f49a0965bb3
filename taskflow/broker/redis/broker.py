"""The Redis broker: runs the engine on the records under one key prefix. Each method of the store is a Lua script, which is atomic."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar

from taskflow.broker import topics as names
from taskflow.broker.admin import Finding, Rebuilt
from taskflow.broker.engine import maintenance
from taskflow.broker.engine.broker import EngineBroker
from taskflow.broker.engine.contention import Contention, advance
from taskflow.broker.engine.examination import EXAMINE_TIMEOUT, finding
from taskflow.broker.engine.job import Job
from taskflow.broker.engine.jobs import compare_known
from taskflow.broker.engine.records import Kind
from taskflow.broker.engine.seam import Apply, Claimed, Effect, Fade, Faded, Operation, Promote, Query, Ref
from taskflow.broker.engine.sessions import leases_of
from taskflow.broker.listener import LISTENER_ID_BYTES
from taskflow.broker.protocol import Added, Refused, UpkeepResult
from taskflow.broker.redis.connections import Command, ConnectionPool
from taskflow.broker.redis.errors import not_permitted
from taskflow.broker.redis.examination import Comparison, keys_of
from taskflow.broker.redis.layout import DECLARED, LAYOUT, compare_declarations
from taskflow.broker.redis.packing import pack, plain_leases
from taskflow.broker.redis.records import Contents
from taskflow.broker.redis.scripts import Scripts, smallest_calls
from taskflow.broker.redis.server import RedisTarget, ServerInfo
from taskflow.broker.redis.store import RedisStore
from taskflow.broker.redis.wakeups import RedisListener, channel
from taskflow.broker.tasks import PerLoop
from taskflow.broker.wakeups import Waiter
from taskflow.model import wording
from taskflow.model.clock import Clock
from taskflow.model.envelope import Envelope, Lease, check_namespace, is_plain
from taskflow.model.errors import BrokerError, BrokerRefused, SessionLost, StoreFull
from taskflow.model.record import Record
from taskflow.model.rules import Rules
from taskflow.model.verdict import Settled, Settlement, Succeeded

T = TypeVar("T")

MAX_AT_ONCE: Final = 500
"""The maximum number of jobs that one claim or upkeep call moves, which takes the server about 4 ms. A caller that
reaches the limit calls again."""

TURN: Final = 1.0
"""Seconds after which a turn (a lock on contested records) expires if its client has died. Clients wait at most three times as long."""

_PAUSE: Final = (0.000_5, 0.004)
_CHANCE: Final = random.SystemRandom()  # an application may seed the global one

MAX_RESULT: Final = 60 * 1024 * 1024
"""The maximum size of a result in bytes. If the server's memory is full, the result must fit into the call that ends the run."""


class RedisBroker(EngineBroker):
    """Keeps jobs in a Redis or Valkey server. See `taskflow.broker.protocol.Broker`.

    `namespace`  every key begins with "{namespace:0}:", so that several applications can share a server
    `clock`      replaces the server's clock, for tests

    The first operation connects, and raises BrokerRefused or BrokerUnavailable if the server is unsuitable or does not answer.
    """

    def __init__(
        self, server: RedisTarget | None = None, *, namespace: str = "taskflow", rules: Rules | None = None, clock: Clock | None = None
    ) -> None:
        super().__init__(rules or Rules())
        self.server = server or RedisTarget()
        self._namespace = check_namespace(namespace)
        self.prefix = f"{{{namespace}:0}}:"
        self._clock = clock
        self._scripts = Scripts(self.rules)
        self._per_loop = PerLoop(self._in_this_loop)
        self._server_info: ServerInfo | None = None
        self._contention = Contention()
        contents = Contents(lambda: self._per_loop.here().pool, self.prefix)
        self.store = RedisStore(self._call, contents, self._steady, self._lost, on_disk=self.server.fsync)

    def __repr__(self) -> str:
        return f"<RedisBroker {self.server} {self._namespace!r}>"

    async def run(self, operation: Operation[T]) -> T:
        """Run an operation, and return its answer. Each store call that the operation yields is one script."""
        return await self._contention.run(operation, self.store.perform, self._run_in_turn)

    async def _run_in_turn(self, contested: Sequence[Ref], operation: Operation[T], effect: Effect) -> tuple[Effect, Any]:
        """Perform `effect`, and continue the operation up to its next change of records. Return that change, and its answer.

        Meanwhile, other clients that contend for these records wait for their turn.
        """
        key = f"{self.prefix}turn:".encode() + max(contested).id  # the id of a gate or a key, if there is one
        async with self._per_loop.here().turn:
            has_turn = await self._take_turn(key)
            try:
                answer = await self.store.perform(effect)
                while not isinstance(effect, Apply):
                    effect = advance(operation, answer)
                    answer = await self.store.perform(effect)
                return effect, answer
            finally:
                if has_turn:
                    with contextlib.suppress(BrokerError):
                        await self.ask("DEL", key)

    async def _take_turn(self, key: bytes) -> bool:
        """Wait for a turn, a key that expires. Return False if none comes: turns only avoid conflicts, so the caller can do without."""
        gives_up_at = time.monotonic() + 3 * TURN
        while time.monotonic() < gives_up_at:
            try:
                if await self.ask("SET", key, b"", "NX", "PX", int(TURN * 1_000)):
                    return True
            except BrokerError:
                return False
            await asyncio.sleep(_CHANCE.uniform(*_PAUSE))
        return False

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        try:
            if await self.store.add_plain(envelopes):
                return [Added(envelope.id) for envelope in envelopes]
            return await super().enqueue(envelopes)
        except StoreFull:
            if self.assumes_new and not all(map(is_plain, envelopes)):  # a job whose key is taken is refused, which needs no room
                self.assumes_new = False
                return await self.enqueue(envelopes)
            refs = {Ref(Kind.JOB, envelope.id) for envelope in envelopes}
            if None in (await self.store.query(Query(tuple(refs)))).records.values():
                raise
        known = [Refused(envelope.id, envelope.id, "id") for envelope in envelopes]  # the call was resent, and its jobs are stored
        return await self.run(compare_known(envelopes, known))

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        """Claim jobs. If all are stored in the fixed layout (see records.lua), they are decoded to leases directly. Raises SessionLost."""
        found = await self._claim(session, request, queues, limit)
        if found is None:
            raise SessionLost(wording.SESSION_LOST)
        leased, now = found
        leases = plain_leases(leased)
        return leases_of(await self.store.claimed(leased, now)) if leases is None else leases

    async def claim_records(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> Claimed | None:
        found = await self._claim(session, request, queues, limit)
        return None if found is None else await self.store.claimed(*found)

    async def _claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> tuple[list[bytes], int] | None:
        """Return the leased jobs' ids and records alternately, and the store's time. Return None if there is no such living session."""
        listener = self._per_loop.here().listener
        times, topics = listener.times, [names.queue(queue) for queue in queues] or [names.ANY_QUEUE]
        is_listed = listener.state(topics).is_listed
        found = await self.store.claim(session, request, queues, min(limit, MAX_AT_ONCE), listener.id, is_listed=is_listed)
        if found is None:
            return None
        leased, is_armed, now = found
        if is_armed:
            listener.armed(topics, times)
        else:  # more jobs may be ready, and an earlier wake-up may have been used up: the next waiter asks the server
            listener.forget(topics)
            listener.want([topic for topic in topics if topic in listener.waited])  # wakes another worker in this loop
        return leased, now

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """Settle runs. If a result is too large, raises ValueError and settles none; the caller then sends the others without that one."""
        for settlement in settlements:
            if isinstance(settlement.verdict, Succeeded) and len(settlement.verdict.result) > MAX_RESULT:
                raise ValueError(f"Redis allows results of at most {MAX_RESULT:,} bytes, got {len(settlement.verdict.result):,}")
        return await super().settle(settlements)

    async def read(self, ids: Sequence[bytes]) -> list[Record | None]:
        """Read jobs. If a job has not ended and this loop is listening for its end, the same call also requests a wake-up for it."""
        listener = self._per_loop.here().listener
        ended = {job_id: record for job_id in ids if (record := listener.take_ended(job_id)) is not None}
        missing = [job_id for job_id in ids if job_id not in ended]
        records = ended | await self._read(missing, listener) if missing else ended
        return [*map(records.get, ids)]

    async def _read(self, ids: list[bytes], listener: RedisListener) -> dict[bytes, Record]:
        times, hears = listener.times, listener.flag.hears
        awaited = {job_id: topic for job_id in ids if hears(topic := names.job(job_id))}
        query = Query(tuple([Ref(Kind.JOB, job_id) for job_id in dict.fromkeys(ids)]), with_content=True)
        seen = await self.store.query(query, list(awaited), listener.id)
        jobs = {ref.id: Job.of_record(stored) for ref, stored in seen.records.items() if stored is not None}
        records = {job_id: job.to_record() for job_id, job in jobs.items() if job.is_kept(seen.now)}
        listener.armed([awaited[each] for each in awaited.keys() & records.keys() if not records[each].status.is_ended], times)
        return records

    async def upkeep(self, limit: int, *, ends: bool = False) -> UpkeepResult:
        """Make the moves that have become necessary. The first query also requests a wake-up in case an earlier due time is added."""
        listener = self._per_loop.here().listener
        times, operation = listener.times, maintenance.upkeep(min(int(limit), MAX_AT_ONCE), ends, self.rules)
        look = next(operation)
        assert isinstance(look, Query)
        seen, has_faded = await self.store.look(look, listener=listener.id, max_kept=self.rules.kept_per_queue)
        is_due = bool(seen.scans[0]) and seen.scans[0][0].position[0] <= seen.now
        has_applied = False

        async def perform(effect: Effect) -> Any:  # most calls find nothing to do, and run a single script
            nonlocal has_applied
            if isinstance(effect, Promote) and not is_due:
                return 0, None
            if isinstance(effect, Fade) and not has_faded and not has_applied:
                return Faded(0, False, {})
            has_applied = has_applied or isinstance(effect, Apply)
            return await self.store.perform(effect)

        upkept = await self._contention.run(operation, perform, self._run_in_turn, seen)
        listener.armed([names.DUE], times)
        return upkept

    async def examine(self) -> list[Finding]:
        settings = dict[str, str]()
        with contextlib.suppress(BrokerRefused):  # managed servers may forbid it
            reply = await self.ask("CONFIG", "GET", "append*", "save")
            settings = {reply[i].decode(): reply[i + 1].decode() for i in range(0, len(reply), 2)}
        info = await self.server_info()
        findings = info.findings(str(self.server), settings=settings, is_fsync=self.server.fsync)
        with contextlib.suppress(BrokerRefused):  # the findings or the next commands show why
            findings.append(finding(await self._comparison(repairs=False, within=EXAMINE_TIMEOUT).run()))
        return findings

    async def rebuild(self) -> Rebuilt:
        found = await self._comparison(repairs=True).run()
        assert found is not None  # run() returns None only without `repairs` or at a time limit
        if stored := await self._declared():
            await self._declare(stored)
        return found

    def _comparison(self, *, repairs: bool, within: float = math.inf) -> Comparison:
        return Comparison(self.ask, self._call, self.prefix, repairs=repairs, within=within)

    def listen(self, topics: Sequence[str]) -> Waiter:
        return self._per_loop.here().listener.listen(topics)

    def sibling(self) -> RedisBroker:
        """Return another broker on the same server, with separate connections."""
        another = RedisBroker(self.server, namespace=self._namespace, rules=self.rules, clock=self._clock)
        another._scripts, another._server_info = self._scripts, self._server_info  # the sibling reuses them
        return another

    async def close(self) -> None:
        await self._per_loop.close()

    async def drop_namespace(self) -> None:
        """Delete everything that this namespace holds. Nothing else may use the namespace at the same time."""
        async for keys in keys_of(self.ask, self.prefix):
            if keys:
                await self.ask("UNLINK", *keys)

    async def server_info(self) -> ServerInfo:
        """Return the server's current INFO."""
        return ServerInfo.of(await self.ask("INFO"))

    async def _lost(self) -> BrokerError:
        return (await self.server_info()).payload_lost(str(self.server))

    # --- calls ------------------------------------------------------------------------------------------------------

    def _call(self, name: str, arguments: bytes, *, ahead: Sequence[Command] = (), on_disk: bool = False) -> Coroutine[Any, Any, Any]:
        """Run a script and return its reply. The first call checks the server."""
        return (self._check_and_run if self._server_info is None else self._run)(name, arguments, ahead, on_disk)

    async def _check_and_run(self, name: str, arguments: bytes, ahead: Sequence[Command], on_disk: bool) -> Any:
        await self._check_server(creates=name not in ("query", "compare"))  # an application or command that only reads creates no store
        return await self._run(name, arguments, ahead, on_disk)

    def _run(self, name: str, arguments: bytes, ahead: Sequence[Command] = (), on_disk: bool = False) -> Coroutine[Any, Any, Any]:
        pool = self._per_loop.here().pool
        return pool.run(self._scripts[name], self.prefix, self._time(), arguments, ahead=ahead, on_disk=on_disk)

    async def ask(self, *command: Any) -> Any:
        return await self._per_loop.here().pool.ask(*command)

    async def _check_server(self, *, creates: bool) -> None:
        """Raise BrokerRefused if the server or the stored layout is unsuitable. If nothing is stored yet and `creates` is False,
        nothing is written, and the next call checks again."""
        server_info = await self.server_info()
        server_info.check(str(self.server), may_evict=self.server.evicting)
        if self.server.fsync and not server_info.has_aof:
            raise BrokerRefused(
                f"{server_info.name} at {self.server} has no append-only file, which durability=fsync requires: set appendonly yes"
            )
        own = [channel(self.prefix, "0" * 2 * LISTENER_ID_BYTES).decode()] * 3
        if denied := await self._run("permitted", pack([smallest_calls(own)])):
            raise not_permitted(f"{b', '.join(denied).decode()} with keys and channels under {self.prefix}", str(self.server))
        meta = f"{self.prefix}meta"
        layout = await self.ask("HGET", meta, "layout")
        if layout is None and creates:
            await self.ask("HSETNX", meta, "layout", LAYOUT)
            layout = await self.ask("HGET", meta, "layout")
        if layout is None:
            return
        if layout != b"%d" % LAYOUT:
            raise BrokerRefused(
                f"{server_info.name} at {self.server} has jobs of another version of taskflow under {self.prefix}: their layout is "
                f"{layout.decode(errors='backslashreplace')}, but this version reads {LAYOUT}. Use the other version, or another "
                "?namespace= in the broker URL"
            )
        await self._check_indexes(server_info.name, creates=creates)
        self._server_info = server_info

    async def _check_indexes(self, server: str, *, creates: bool) -> None:
        """Raise BrokerRefused if the store's indexes differ, unless this broker is for a rebuild. If `creates`, add those of new kinds."""
        stored = await self._declared()
        if self.rebuilds or stored == DECLARED:
            return
        missing, unknown = compare_declarations(stored)
        where = f"{server} at {self.server} has jobs of another version of taskflow under {self.prefix}"
        if unknown:
            raise BrokerRefused(f"{where}, with the index {unknown[0]!r}, which this version does not know: use the other version")
        if missing and stored:
            raise BrokerRefused(
                f"{where}, without the index {missing[0]!r}: stop its workers and senders, and run `taskflow doctor --rebuild`"
            )
        if creates and not stored >= DECLARED:
            await self._declare(stored)

    async def _declared(self) -> frozenset[str]:
        stored = (await self.ask("HGET", f"{self.prefix}meta", "indexes") or b"").decode(errors="replace").split()
        return frozenset(name for name in stored if name.count(".") == 2)  # another program may have written any text

    async def _declare(self, stored: frozenset[str]) -> None:
        """Add this version's indexes, which are complete, to the store's list. Remove those that this version doesn't keep up to date."""
        _, unknown = compare_declarations(stored)
        kept = {name for name in stored if name.split(".")[1] not in unknown}
        await self.ask("HSET", f"{self.prefix}meta", "indexes", " ".join(sorted(DECLARED | kept)))

    def _time(self) -> str:
        return "" if self._clock is None else f"{self._clock.wall()}:{self._clock.steady()}"

    def _steady(self) -> int | None:
        return None if self._clock is None else self._clock.steady()

    def _in_this_loop(self) -> LoopConnections:
        pool = ConnectionPool(self.server)
        listener = RedisListener(pool, self.prefix, self._call)
        pool.before_the_end = listener.close
        return LoopConnections(pool, listener)


class LoopConnections:
    """A broker's connections and listener in one event loop."""

    def __init__(self, pool: ConnectionPool, listener: RedisListener) -> None:
        self.pool = pool
        self.listener = listener
        self.turn = asyncio.Lock()

    async def close(self) -> None:
        await self.listener.close()
        await self.pool.close()
