"""The Redis broker: each verb one script call, atomic on the server. The scripts in lua/ are where the rules are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from taskflow.broker import topics as names
from taskflow.broker import wording
from taskflow.broker.console import Finding
from taskflow.broker.fence_validation import settle_possible
from taskflow.broker.nudges import Nudges
from taskflow.broker.per_loop import PerLoop
from taskflow.broker.protocol import Added, Refused, Upkept
from taskflow.broker.redis import packing, plain
from taskflow.broker.redis.connect.connection import Command
from taskflow.broker.redis.connect.pool import Link
from taskflow.broker.redis.connect.server import Server
from taskflow.broker.redis.connect.server_info import ServerInfo
from taskflow.broker.redis.console import RedisConsole
from taskflow.broker.redis.errors import WrongType, not_permitted
from taskflow.broker.redis.fields import LAYOUT
from taskflow.broker.redis.jobs import column_of, records_of
from taskflow.broker.redis.large_payloads import LargePayloads, is_large
from taskflow.broker.redis.scripts import Scripts, smallest_calls
from taskflow.broker.redis.wakeups import RedisListener
from taskflow.model.clock import Clock, to_microseconds, to_seconds
from taskflow.model.envelope import Envelope, Lease, check_queue
from taskflow.model.errors import BrokerRefused, SessionLost, StoreFull
from taskflow.model.ids import id_text
from taskflow.model.record import BY_CODE, Record, Status
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, BeatAnswer, Session
from taskflow.model.verdict import Settled, Settlement

log: Final = logging.getLogger("taskflow")

AWAITED_FOR: Final = 3600.0
"""Seconds for which the server knows that somebody waits for a job's end; who waits longer looks for itself every few seconds."""


MENDED_BY_OTHERS_IN: Final = 0.5
"""Seconds. The server answers nobody meanwhile, so that others ask only when it is done, or nearly."""

MOST_MENDINGS: Final = 10
"""Of one call, by itself or by others that it waits for, before what is wrong is told."""

REINDEXED_WITHIN: Final = 120.0
"""Seconds: about twelve millions of jobs."""

LONGEST_NAME: Final = 250
"""Characters of a worker's name that are kept: it stands in each of its jobs."""

MOST_AT_ONCE: Final = 500
"""Jobs that one claim or one upkeep moves: four milliseconds or so in which the server does nothing else. Who gets so many comes again."""


class RedisBroker:
    """Jobs in a Redis or Valkey server. See `taskflow.broker.protocol.Broker`.

    `namespace`  the keys begin with "{namespace:0}:": several applications may share a server
    `clock`      instead of the server's own, for tests

    Nothing is opened before the first verb, whose errors say what is wrong with the server: BrokerRefused, BrokerUnavailable.
    """

    def __init__(
        self, server: Server | None = None, *, namespace: str = "taskflow", rules: Rules | None = None, clock: Clock | None = None
    ) -> None:
        self.server = server or Server()
        self._namespace = check_queue(namespace)
        self._prefix = f"{{{namespace}:0}}:"
        self._rules = rules or Rules()
        self._clock = clock
        self._scripts = Scripts(self._rules)
        self._per_loop = PerLoop(self._a_line)
        self._server_info: ServerInfo | None = None
        self._large_payloads = LargePayloads(lambda: self._per_loop.here().link, self._prefix)

    def __repr__(self) -> str:
        return f"<RedisBroker {self.server} {self._namespace!r}>"

    @property
    def console(self) -> RedisConsole:
        return RedisConsole(self.call, self._ask, self._prefix, self._examine, self._large_payloads)

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        try:
            answers = await self._add(envelopes)
            if answers == b"LACKING":  # of a call that was sent before, and whose job has ended between the payload and this: once more
                answers = await self._add(envelopes)
            if answers == b"LACKING":
                raise (await self.server_info()).lacking(str(self.server))
        except StoreFull:
            if not await self._are_known(envelopes):
                raise
            return [Refused(envelope.id, envelope.id, "id") for envelope in envelopes]  # sent again: what filled it up is there
        if answers is None:  # all were simply added
            return [Added(envelope.id) for envelope in envelopes]
        return [packing.added_or_refused(*pair) for pair in zip(envelopes, answers, strict=True)]

    async def _add(self, envelopes: Sequence[Envelope]) -> Any:
        """What add.lua answers."""
        calls = plain.pack_plain(envelopes)
        if calls is not None:
            answer = await self.call("enqueue", calls.packed, ahead=self._large_payloads.ahead(calls.large), on_disk=self.server.fsync)
            if answer != b"KNOWN":
                return answer
        ahead = self._large_payloads.ahead(envelope for envelope in envelopes if is_large(envelope.payload))
        return await self.call("add", packing.pack_envelopes(envelopes), ahead=ahead, on_disk=self.server.fsync)

    async def register(self, session: Session) -> None:
        about = packing.pack([session.queues, session.concurrency])
        ttl = to_microseconds(session.ttl)
        if await self.call("register", packing.pack([session.id, session.name[:LONGEST_NAME], ttl, about])) == b"LOST":
            raise SessionLost(wording.session_reaped(session.name))

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        listener = self._per_loop.here().listener
        times = listener.times
        reply = await self.call("claim", packing.pack([session, request, list(queues), min(limit, MOST_AT_ONCE)]))
        if reply == b"LOST":
            raise SessionLost(wording.SESSION_LOST)
        leases, is_armed = plain.claimed(reply)
        topics = [names.queue(queue) for queue in queues] or [names.ANY_QUEUE]
        if is_armed:
            listener.armed(topics, times)
        else:  # there may be more, and whoever waits next is to ask: what was asked before may have been told while this was under way
            listener.forget(topics)
        return await self._large_payloads.with_payloads(leases)

    async def beat(self, beat: Beat) -> BeatAnswer:
        reply = await self.call("beat", packing.pack_beat(beat))
        if reply == b"LOST":
            raise SessionLost(wording.SESSION_LOST)
        ghosts, *packed = reply[:3]
        lost, stopping = (packing.tails_in(tails, beat.session) for tails in packed)
        return BeatAnswer(
            lost=tuple(claim for claim in beat.claims if claim in lost or not packing.can_be(claim, beat.session)),
            stopping=tuple(claim for claim in beat.claims if claim in stopping),
            ghosts=ghosts,
            outlook=packing.outlook_of(*reply[3:]) if reply[3:] else None,
        )

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """In portions, none of which holds the server for long; each item is for itself."""
        return await settle_possible(self._settle, settlements, packing.is_possible)

    async def _settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        answers: list[Settled] = []
        for portion in packing.portions(settlements):
            packed, order = plain.pack_settlements(portion)
            answers += plain.settled_of(await self.call("settle", packed), order)
        return answers

    async def cancel(self, ids: Sequence[bytes]) -> list[Status | None]:
        return [BY_CODE.get(code) for code in await self.call("cancel", packing.pack([list(ids)]))]

    async def read(self, ids: Sequence[bytes]) -> list[Record | None]:
        """The server tells from now on of those whose ends are listened for here: who finds one under way would ask for that next."""
        listener = self._per_loop.here().listener
        times, hears = listener.times, listener.flag.hears
        awaited = {job_id: topic for job_id in ids if hears(topic := names.job(job_id))}
        asked = packing.pack([list(ids), list(awaited), to_microseconds(AWAITED_FOR)])
        records = await self._large_payloads.in_records(records_of(await self.call("read", asked)))
        listener.armed([awaited[job_id] for job_id in awaited.keys() & records.keys() if not records[job_id].status.is_ended], times)
        return [*map(records.get, ids)]

    async def upkeep(self, limit: int) -> Upkept:
        listener = self._per_loop.here().listener
        times = listener.times
        reply = await self.call("upkeep", packing.pack([min(int(limit), MOST_AT_ONCE)]))
        readied, reaped, released, expired, dropped, next_in, aside = reply
        for i in range(0, len(aside), 3):
            log.error(
                "the record of job %s cannot be read (%s: %s): it has failed; its bytes are kept under %sbad:j: until it is purged",
                id_text(aside[i]),
                column_of(aside[i + 1]),
                aside[i + 2].decode(errors="replace"),
                self._prefix,
            )
        listener.armed([names.DUE], times)
        return Upkept(readied=readied, reaped=reaped, released=released, expired=expired, dropped=dropped, next_in=to_seconds(next_in))

    def listen(self, topics: Sequence[str]) -> Nudges:
        return self._per_loop.here().listener.listen(topics)

    def sibling(self) -> RedisBroker:
        """Another broker on the same server, with connections of its own."""
        another = RedisBroker(self.server, namespace=self._namespace, rules=self._rules, clock=self._clock)
        another._scripts, another._server_info = self._scripts, self._server_info  # what was made, and looked at, need not be again
        return another

    async def close(self) -> None:
        await self._per_loop.close()

    async def server_info(self) -> ServerInfo:
        """What the server tells of itself now."""
        return ServerInfo.of(await self._per_loop.here().link.ask("INFO"))

    async def _are_known(self, envelopes: Sequence[Envelope]) -> bool:
        """Nothing that was sent ahead of them is left, when they are not."""
        ids = [envelope.id for envelope in envelopes]
        return bool(await self.call("known", packing.pack([ids]), on_disk=self.server.fsync) == len(ids))

    # --- calls ------------------------------------------------------------------------------------------------------

    def call(self, name: str, arguments: bytes, *, ahead: Sequence[Command] = (), on_disk: bool = False) -> Coroutine[Any, Any, Any]:
        """A script's reply, from a server that was looked at first, and whose keys are put in order when they are found not to be."""
        return (self._look_and_run if self._server_info is None else self._run_in_order)(name, arguments, ahead, on_disk)

    async def _look_and_run(self, name: str, arguments: bytes, ahead: Sequence[Command], on_disk: bool) -> Any:
        await self._look_at_server()
        return await self._run_in_order(name, arguments, ahead, on_disk)

    async def _run_in_order(self, name: str, arguments: bytes, ahead: Sequence[Command] = (), on_disk: bool = False) -> Any:
        for _ in range(MOST_MENDINGS):
            try:
                return await self._run(name, arguments, ahead, on_disk)
            except WrongType as error:
                await self._put_in_order(error)
        return await self._run(name, arguments, ahead, on_disk)

    async def _put_in_order(self, error: WrongType) -> None:
        """By one of all who have come upon it: it takes long, and the others come again when it is done."""
        spared = packing.pack([int(1_000 * MENDED_BY_OTHERS_IN)])
        link = self._per_loop.here().link
        aside = await link.run(self._scripts["reindex"], self._prefix, self._time(), spared, within=REINDEXED_WITHIN)
        if aside is None:
            await asyncio.sleep(MENDED_BY_OTHERS_IN)
            return
        log.error("%s; %d key(s) put aside under %sbad:, and all indexes made anew from the jobs", error, aside, self._prefix)

    def _run(self, name: str, arguments: bytes, ahead: Sequence[Command] = (), on_disk: bool = False) -> Coroutine[Any, Any, Any]:
        link = self._per_loop.here().link
        return link.run(self._scripts[name], self._prefix, self._time(), arguments, ahead=ahead, on_disk=on_disk)

    async def _ask(self, *command: Any) -> Any:
        return await self._per_loop.here().link.ask(*command)

    async def _examine(self) -> list[Finding]:
        settings = dict[str, str]()
        with contextlib.suppress(BrokerRefused):  # hosts that rent servers out let nobody see them
            told = await self._ask("CONFIG", "GET", "append*", "save")
            settings = {told[i].decode(): told[i + 1].decode() for i in range(0, len(told), 2)}
        return (await self.server_info()).findings(str(self.server), settings=settings, is_fsync=self.server.fsync)

    async def _look_at_server(self) -> None:
        server_info = await self.server_info()
        server_info.check(str(self.server), may_evict=self.server.evicting)
        if self.server.fsync and not server_info.has_aof:
            raise BrokerRefused(
                f"{server_info.name} at {self.server} has no append-only file, which durability=fsync asks to wait for: set appendonly yes"
            )
        names = [f"{self._prefix}{name}" for name in ("nudges", "ended", "nudges")]
        if denied := await self._run("permitted", packing.pack([smallest_calls(names)])):
            raise not_permitted(f"{b', '.join(denied).decode()} with keys and channels under {self._prefix}", str(self.server))
        layout = await self._run_in_order("layout", packing.pack([LAYOUT]))
        if int(layout) != LAYOUT:
            raise BrokerRefused(
                f"{server_info.name} at {self.server} has jobs of another version of taskflow under {self._prefix}: they have layout "
                f"{int(layout)}, and this version reads {LAYOUT}. Use that version, or another ?namespace= in the broker URL"
            )
        self._server_info = server_info

    def _time(self) -> str:
        return "" if self._clock is None else f"{self._clock.wall()}:{self._clock.steady()}"

    async def _arm(self, topics: list[str], ids: list[bytes]) -> tuple[list[str], list[bytes]]:
        there, ended = await self.call("arm", packing.pack([topics, ids, to_microseconds(AWAITED_FOR)]))
        return [topic.decode() for topic in there], packing.ids_in(ended)

    def _a_line(self) -> _Line:
        link = Link(self.server)
        return _Line(link, RedisListener(link, self._prefix, self._arm))


class _Line:
    """What a broker has in one event loop."""

    def __init__(self, link: Link, listener: RedisListener) -> None:
        self.link = link
        self.listener = listener

    async def close(self) -> None:
        await self.listener.close()
        await self.link.close()
