"""The Redis broker. Each verb calls one Lua script, which the server runs atomically. The scripts contain the rules.

A verb's Lua file has the same name as the Python file that packs its arguments, such as enqueue.lua and enqueue.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from taskflow.broker import topics as names
from taskflow.broker.listener import LISTENER_ID_BYTES
from taskflow.broker.per_loop import PerLoop
from taskflow.broker.protocol import Added, Refused, Upkept
from taskflow.broker.redis.claim import read_claim
from taskflow.broker.redis.connect.connection import Command
from taskflow.broker.redis.connect.pool import ConnectionPool
from taskflow.broker.redis.connect.server import RedisTarget
from taskflow.broker.redis.connect.server_info import ServerInfo
from taskflow.broker.redis.console import RedisConsole
from taskflow.broker.redis.enqueue import pack_envelopes, pack_plain
from taskflow.broker.redis.errors import WrongType, not_permitted
from taskflow.broker.redis.fields import LAYOUT
from taskflow.broker.redis.jobs import records_of
from taskflow.broker.redis.large_payloads import LargePayloads, is_large, is_large_result, is_reference
from taskflow.broker.redis.packing import pack
from taskflow.broker.redis.schedules import pack_definitions, pack_firings
from taskflow.broker.redis.scripts import Scripts, smallest_calls
from taskflow.broker.redis.session import beat_answer, pack_beat, pack_session
from taskflow.broker.redis.settle import PackedSettlements, is_possible, pack_settlements, portions, settled_of
from taskflow.broker.redis.upkeep import read_upkeep
from taskflow.broker.redis.wakeups import RedisListener, channel
from taskflow.broker.script_values import added_or_refused, fire_answers, settle_possible
from taskflow.broker.wakeups import Waiter
from taskflow.model import wording
from taskflow.model.clock import Clock
from taskflow.model.envelope import Envelope, Lease, check_namespace
from taskflow.model.errors import BrokerRefused, SessionLost, StoreFull
from taskflow.model.record import BY_CODE, Record, Status
from taskflow.model.rules import Rules
from taskflow.model.schedule import Definition, Firing
from taskflow.model.session import Beat, BeatAnswer, Session
from taskflow.model.verdict import Settled, Settlement

log: Final = logging.getLogger("taskflow")

REINDEXED_BY_OTHERS_IN: Final = 0.5
"""Seconds after a reindexing in which no other one may begin. A caller
that needs one waits this long instead, then sends its call again."""

MOST_REINDEXINGS: Final = 10
"""How many times one call waits for a reindexing, its own or another caller's, before it raises the error."""

REINDEXED_WITHIN: Final = 120.0
"""Seconds that reindexing may take, enough for about twelve million jobs."""

MOST_AT_ONCE: Final = 500
"""The maximum number of jobs that one claim or upkeep call moves, which takes the server about 4 ms. A caller that
reaches the limit calls again."""

_LOOKING: Final = frozenset(
    {"read", "holders", "queues", "workers", "schedules", "metrics", "page", "candidates", "failure_parts", "failure_cells", "acts"}
)
"""Scripts that only read. An application or a command that looks creates no store."""

_MISSING: Final = b"MISSING"
"""A script's reply if a payload or result that was sent ahead has disappeared."""


class RedisBroker:
    """Keeps jobs in a Redis or Valkey server. See `taskflow.broker.protocol.Broker`.

    `namespace`  every key begins with "{namespace:0}:", so that several applications can share a server
    `clock`      replaces the server's clock, for tests

    The first verb connects, and raises BrokerRefused or BrokerUnavailable if the server is unsuitable or does not answer.
    """

    def __init__(
        self, server: RedisTarget | None = None, *, namespace: str = "taskflow", rules: Rules | None = None, clock: Clock | None = None
    ) -> None:
        self.server = server or RedisTarget()
        self._namespace = check_namespace(namespace)
        self.prefix = f"{{{namespace}:0}}:"
        self._rules = rules or Rules()
        self._clock = clock
        self._scripts = Scripts(self._rules)
        self._per_loop = PerLoop(self._in_this_loop)
        self._server_info: ServerInfo | None = None
        self.large_payloads = LargePayloads(lambda: self._per_loop.here().pool, self.prefix)

    def __repr__(self) -> str:
        return f"<RedisBroker {self.server} {self._namespace!r}>"

    @property
    def console(self) -> RedisConsole:
        return RedisConsole(self)

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        try:
            answers = await self._add(envelopes)
            if answers == _MISSING:  # the call was resent, and its job ended after the payload was sent: send both again
                answers = await self._add(envelopes)
            if answers == _MISSING:
                raise (await self.server_info()).payload_lost(str(self.server))
        except StoreFull:
            if not await self._are_known(envelopes):
                raise
            answers = [b"i"] * len(envelopes)  # the call was resent, and its jobs are stored
        if answers is None:  # all were added without conflicts
            return [Added(envelope.id) for envelope in envelopes]
        known = {envelope.id for envelope, answer in zip(envelopes, answers, strict=True) if answer == b"i"}
        records = await self._read([*known], self._per_loop.here().listener) if known else {}
        return [
            Refused.as_known(envelope, records.get(envelope.id)) if answer == b"i" else added_or_refused(envelope, answer)
            for envelope, answer in zip(envelopes, answers, strict=True)
        ]

    async def _add(self, envelopes: Sequence[Envelope]) -> Any:
        """Add jobs with the script `enqueue` if all are plain and none is stored yet, else with `add`. Return the script's answer."""
        plain = pack_plain(envelopes)
        if plain is not None:
            answer = await self.call("enqueue", plain.packed, ahead=self.large_payloads.ahead(plain.large), on_disk=self.server.fsync)
            if answer != b"KNOWN":
                return answer
        ahead = self.large_payloads.ahead(envelope for envelope in envelopes if is_large(envelope.payload))
        return await self.call("add", pack_envelopes(envelopes), ahead=ahead, on_disk=self.server.fsync)

    async def register(self, session: Session) -> None:
        if await self.call("register", pack_session(session)) == b"LOST":
            raise SessionLost(wording.session_reaped(session.name))

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        listener = self._per_loop.here().listener
        times, topics = listener.times, [names.queue(queue) for queue in queues] or [names.ANY_QUEUE]
        asked = [session, request, list(queues), min(limit, MOST_AT_ONCE), listener.id, *listener.standing(topics)]
        reply = await self.call("claim", pack(asked))
        if reply == b"LOST":
            raise SessionLost(wording.SESSION_LOST)
        leases, is_armed = read_claim(reply)
        if is_armed:
            listener.armed(topics, times)
        else:  # more jobs may be ready, and an earlier wake-up may be used up: the next waiter asks the server
            listener.forget(topics)
            listener.want([topic for topic in topics if topic in listener.waited])  # another worker in this loop
        return await self.large_payloads.with_payloads(leases)

    async def beat(self, beat: Beat) -> BeatAnswer:
        reply = await self.call("beat", pack_beat(beat))
        if reply == b"LOST":
            raise SessionLost(wording.SESSION_LOST)
        return beat_answer(beat, reply)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """Settle in portions, so that no call occupies the server for long. A settlement that fails does not affect the others."""
        return await settle_possible(self._settle, settlements, is_possible)

    async def _settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        answers: list[Settled] = []
        for portion in portions(settlements):
            packed = pack_settlements(portion, is_large_result)
            reply = await (self._settle_large(portion, packed) if packed.ahead else self.call("settle", packed.packed))
            answers += settled_of(reply, packed.order)
        return answers

    async def _settle_large(self, portion: Sequence[Settlement], packed: PackedSettlements) -> bytes:
        """Settle a portion, sending large results ahead. If the server is full or has lost
        a result, send the results within the call, which even a full server accepts."""
        ahead = self.large_payloads.results_ahead(packed.ahead)
        try:
            reply: bytes = await self.call("settle", packed.packed, ahead=ahead)
        except StoreFull:
            reply = _MISSING
        if reply == _MISSING:
            inline = pack_settlements(portion, is_reference)
            again = [("UNLINK", *(key for _, key, *_ in ahead)), *self.large_payloads.results_ahead(inline.ahead)]
            reply = await self.call("settle", inline.packed, ahead=again)
        if reply == _MISSING:
            raise (await self.server_info()).payload_lost(str(self.server))
        return reply

    async def cancel(self, ids: Sequence[bytes]) -> list[Status | None]:
        return [BY_CODE.get(code) for code in await self.call("cancel", pack([list(ids)]))]

    async def read(self, ids: Sequence[bytes]) -> list[Record | None]:
        """Read jobs. If a job has not ended and this loop is listening for its end, the same call also requests that wake-up."""
        listener = self._per_loop.here().listener
        ended = {job_id: record for job_id in ids if (record := listener.take_ended(job_id)) is not None}
        records = ended | await self._read([job_id for job_id in ids if job_id not in ended], listener) if len(ended) < len(ids) else ended
        return [*map(records.get, ids)]

    async def _read(self, ids: list[bytes], listener: RedisListener) -> dict[bytes, Record]:
        times, hears = listener.times, listener.flag.hears
        awaited = {job_id: topic for job_id in ids if hears(topic := names.job(job_id))}
        reply = await self.call("read", pack([ids, list(awaited), listener.id]))
        found, texts = records_of(reply)
        records = await self.large_payloads.in_records(found)
        going_on = [job_id for job_id in awaited.keys() & records.keys() if not records[job_id].status.is_ended]
        for job_id in going_on:
            listener.note_names(job_id, texts)
        listener.armed(map(awaited.__getitem__, going_on), times)
        return records

    async def holders(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [job_id or None for job_id in await self.call("holders", pack([list(keys)]))]

    async def upkeep(self, limit: int, *, ends: bool = False) -> Upkept:
        listener = self._per_loop.here().listener
        times = listener.times
        reply = await self.call("upkeep", pack([min(int(limit), MOST_AT_ONCE), listener.id, ends]))
        upkept = read_upkeep(reply, self.prefix)
        listener.armed([names.DUE], times)
        return upkept

    async def define(self, definitions: Sequence[Definition], session: bytes | None = None, age: float = 0.0) -> list[bool]:
        reply = await self.call("define", pack_definitions(definitions, session, age), on_disk=self.server.fsync)
        if reply == b"LOST":
            raise SessionLost(wording.SESSION_LOST)
        return [*map(bool, reply)]

    async def fire(self, firings: Sequence[Firing]) -> list[Added | Refused | None]:
        envelopes = [firing.envelope for firing in firings if firing.envelope is not None]
        ahead = self.large_payloads.ahead(envelope for envelope in envelopes if is_large(envelope.payload))
        try:
            answers = await self.call("fire" if envelopes else "advance", pack_firings(firings), ahead=ahead, on_disk=self.server.fsync)
        except StoreFull:
            await self._are_known(envelopes)  # deletes the payloads that were sent ahead
            raise
        if answers == _MISSING:  # nothing has fired, and the schedules will be offered again
            raise (await self.server_info()).payload_lost(str(self.server))
        return fire_answers(firings, answers)

    def listen(self, topics: Sequence[str]) -> Waiter:
        return self._per_loop.here().listener.listen(topics)

    def sibling(self) -> RedisBroker:
        """Return another broker on the same server, with separate connections."""
        another = RedisBroker(self.server, namespace=self._namespace, rules=self._rules, clock=self._clock)
        another._scripts, another._server_info = self._scripts, self._server_info  # the sibling reuses them
        return another

    async def close(self) -> None:
        await self._per_loop.close()

    async def drop_namespace(self) -> None:
        """Delete everything that this namespace holds. Nothing may use it at the same time."""
        cursor: Any = 0
        while True:
            cursor, keys = await self.ask("SCAN", cursor, "MATCH", f"{self.prefix}*", "COUNT", 1_000)
            if keys:
                await self.ask("UNLINK", *keys)
            if int(cursor) == 0:
                return

    async def server_info(self) -> ServerInfo:
        """Return the server's current INFO."""
        return ServerInfo.of(await self.ask("INFO"))

    async def _are_known(self, envelopes: Sequence[Envelope]) -> bool:
        """Return True if all of these jobs are stored. Payloads that were sent ahead, but belong to no job, are deleted."""
        ids = [envelope.id for envelope in envelopes]
        return bool(await self.call("known", pack([ids]), on_disk=self.server.fsync) == len(ids))

    # --- calls ------------------------------------------------------------------------------------------------------

    def call(self, name: str, arguments: bytes, *, ahead: Sequence[Command] = (), on_disk: bool = False) -> Coroutine[Any, Any, Any]:
        """Run a script and return its reply. The first call checks the server. If a key has the wrong type, all indexes are rebuilt
        and the script runs again."""
        return (self._check_and_run if self._server_info is None else self._run_and_reindex)(name, arguments, ahead, on_disk)

    async def _check_and_run(self, name: str, arguments: bytes, ahead: Sequence[Command], on_disk: bool) -> Any:
        await self._check_server(creates=name not in _LOOKING)
        return await self._run_and_reindex(name, arguments, ahead, on_disk)

    async def _run_and_reindex(self, name: str, arguments: bytes, ahead: Sequence[Command] = (), on_disk: bool = False) -> Any:
        for _ in range(MOST_REINDEXINGS):
            try:
                return await self._run(name, arguments, ahead, on_disk)
            except WrongType as error:
                await self._reindex(error)
        return await self._run(name, arguments, ahead, on_disk)

    async def _reindex(self, error: WrongType) -> None:
        """Rebuild all indexes, which takes a long time. If another caller has just done so, only wait briefly."""
        spared = pack([int(1_000 * REINDEXED_BY_OTHERS_IN)])
        pool = self._per_loop.here().pool
        aside = await pool.run(self._scripts["reindex"], self.prefix, self._time(), spared, within=REINDEXED_WITHIN)
        if aside is None:
            await asyncio.sleep(REINDEXED_BY_OTHERS_IN)
            return
        log.error("%s; moved %d key(s) to %sbad:, and rebuilt all indexes from the jobs", error, aside, self.prefix)

    def _run(self, name: str, arguments: bytes, ahead: Sequence[Command] = (), on_disk: bool = False) -> Coroutine[Any, Any, Any]:
        pool = self._per_loop.here().pool
        return pool.run(self._scripts[name], self.prefix, self._time(), arguments, ahead=ahead, on_disk=on_disk)

    async def ask(self, *command: Any) -> Any:
        """Send a command, and return its reply."""
        return await self._per_loop.here().pool.ask(*command)

    async def _check_server(self, *, creates: bool) -> None:
        """Check the server and the layout. If nothing is stored yet and `creates` is False, nothing is written, and the next call checks
        again."""
        server_info = await self.server_info()
        server_info.check(str(self.server), may_evict=self.server.evicting)
        if self.server.fsync and not server_info.has_aof:
            raise BrokerRefused(
                f"{server_info.name} at {self.server} has no append-only file, which durability=fsync requires: set appendonly yes"
            )
        own = [channel(self.prefix, "0" * 2 * LISTENER_ID_BYTES).decode()] * 3
        if denied := await self._run("permitted", pack([smallest_calls(own)])):
            raise not_permitted(f"{b', '.join(denied).decode()} with keys and channels under {self.prefix}", str(self.server))
        layout = await self._run_and_reindex("layout", pack([LAYOUT, creates]))
        if layout is None:
            return
        if int(layout) != LAYOUT:
            raise BrokerRefused(
                f"{server_info.name} at {self.server} has jobs of another version of taskflow under {self.prefix}: their layout is "
                f"{int(layout)}, but this version reads {LAYOUT}. Use that version, or another ?namespace= in the broker URL"
            )
        self._server_info = server_info

    def _time(self) -> str:
        return "" if self._clock is None else f"{self._clock.wall()}:{self._clock.steady()}"

    def _in_this_loop(self) -> LoopConnections:
        pool = ConnectionPool(self.server)
        listener = RedisListener(pool, self.prefix, self.call)
        pool.before_the_end = listener.close
        return LoopConnections(pool, listener)


class LoopConnections:
    """A broker's connections and listener in one event loop."""

    def __init__(self, pool: ConnectionPool, listener: RedisListener) -> None:
        self.pool = pool
        self.listener = listener

    async def close(self) -> None:
        await self.listener.close()
        await self.pool.close()
