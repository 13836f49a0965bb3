"""Delivers wake-ups with LISTEN and NOTIFY: each event loop has one listening connection, and changes are announced once
committed. Each listener leaves a note on the server about what it is waiting for, so that other listeners need not be notified.

A pooler in transaction mode accepts LISTEN but loses every notification. So a listener counts as subscribed only once one of its test
notifications has arrived. Until then it polls once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from base64 import b64decode
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, NamedTuple

from taskflow.broker import topics as names
from taskflow.broker.engine.job import Job
from taskflow.broker.listener import Listener
from taskflow.broker.postgres.connect.pool import ConnectionPool
from taskflow.broker.postgres.errors import ERRORS
from taskflow.broker.postgres.listen_connection import POLL_INTERVAL, ListenConnection, listen_failed, notifications_lost
from taskflow.broker.postgres.rows import parse_row, record_of
from taskflow.broker.topics import job_ids
from taskflow.model.clock import SYSTEM_RANDOM
from taskflow.model.record import Record

log: Final = logging.getLogger("taskflow")

EVERYTHING: Final = "*"
"""Sent in place of topics that would be too long for a notification. Every waiter that receives it checks for itself."""

TEST_INTERVAL: Final = 30.0
"""Seconds before the next attempt to listen after notifications were lost."""

MAX_MISSES: Final = 2
"""How many attempts to listen must fail, on a server that answers queries, before a warning is logged."""

NOTE_INTERVAL: Final = 60.0
"""Seconds after which a listener renews its notes, which are valid for 90 s: see sql_files.NOTE_TTL."""

SEARCH_PAUSES: Final = (0.0, 0.01, 0.05, 0.25, 1.0, 2.0, 4.0)
"""A listener searches for jobs after each of these pauses, in seconds, while a transaction that may have missed its note is open. Jobs that
appear after the last search are found as if their nudge had been lost."""

UNNOTED: Final = "unnoted"
"""Returned with a claim that could not write its listener's note: see claim.sql."""

UNHEARD: Final[tuple[None, list[int], int, list[str]]] = (None, [], 0, [])
"""The arguments of a claim for which no listener waits."""

AGAIN: Final = "again"
"""A line in a message. It means that other transactions, which send no message themselves, are committing at the same time."""

_JOB: Final = names.job(b"")
_QUEUE: Final = names.queue("")
_SESSION: Final = names.session(b"")


class Notes(NamedTuple):
    """The calls that a listener makes to the server: `note` replaces the listener's notes with one that shows what it is waiting for, and
    `look` checks what has already happened. See wakeups.sql."""

    note: Callable[[str, list[int], int, list[str], list[bytes]], Awaitable[None]]
    look: Callable[[list[str], list[bytes]], Awaitable[tuple[list[str], list[bytes], bool]]]


class PostgresListener(Listener):
    """Listens for notifications. While they do not arrive, it polls for all waiters in one query and wakes those for
    which something has happened.

    It does not poll for a session's own topic, because the answer to the next heartbeat reports the same events.
    """

    def __init__(self, pool: ConnectionPool, schema: str, notes: Notes) -> None:
        super().__init__(self._record_and_look, ERRORS)
        self._pool = pool
        self._schema = schema
        self._notes = notes
        self._is_off = asyncio.Event()
        self._is_off.set()
        self._has_looked = False
        self._misses = 0
        self._trouble: str | None = None
        self._has_said = False
        self._noted = set[int]()
        self._noting = frozenset[str]()
        self._last_note = 0
        self._nudges = 0
        self._again: set[str] = set()
        self._has_again = asyncio.Event()
        self._is_looking_again = False
        self._is_noting = False
        self.has_noted = False

    async def receive(self, on_subscribed: Callable[[], None]) -> None:
        # If polls fail too, the whole server is unavailable, and listening is not the problem.
        server_is_there = self._has_looked
        try:
            async with ListenConnection(self._pool, {self.id: self._take, self._schema: self._take_shared}) as listener:
                if await listener.hears():
                    self._hears_again()
                    on_subscribed()
                    await listener.stay()
                    return
        except self._errors as error:
            self._misses += server_is_there
            if self._misses >= MAX_MISSES:
                self._trouble = listen_failed(self._pool.server, error)
            raise
        finally:
            self._is_off.set()
        self._trouble = notifications_lost(self._pool.server)
        await asyncio.sleep(_about(TEST_INTERVAL))

    def stays_armed(self, topic: str) -> bool:
        """Return False for a job's topic, because a job's end is announced only once. The server keeps any other note even if something has
        already happened."""
        return not topic.startswith(_JOB)

    @property
    def is_at_rest(self) -> bool:
        """Return True if this listener is neither writing notes nor searching for jobs, so that it misses nothing from now on."""
        return not (self._has_wants.is_set() or self._is_noting or self._is_looking_again)

    def unnoted(self, ids: Iterable[bytes]) -> list[bytes]:
        """Return the ids of the jobs that have waiters in this loop, but no note on the server."""
        if not self.is_on or not self.flag.is_heard:
            return []
        return [job_id for job_id in ids if self.flag.hears(topic := names.job(job_id)) and topic not in self._armed]

    def begin_claim(self, topics: Sequence[str]) -> Claiming | None:
        """Return a claim for the workers that wait for these topics. Return None if no worker is waiting here for such jobs, or if no
        notification would arrive."""
        if not self.is_on or not all(map(self.flag.hears, topics)):
            return None
        self.has_noted = True
        every = [*topics, *(topic for topic in self.waited if _is_of_jobs(topic) and topic not in topics)]
        is_noted = bool(self._noted) and (self._armed | self._noting).issuperset(topics)  # or about to be noted: one note is enough
        note = max(self._noted) if is_noted else self._next_note()
        return Claiming(self, topics, every, sorted(self._noted), note, self.times, self._nudges)

    def end_claim(self, claiming: Claiming, *, is_full: bool) -> None:
        if is_full or claiming.note not in claiming.former:
            self._noted.difference_update(claiming.former)
        if is_full:
            self._disarm()
            self.want(topic for topic in claiming.every if topic in self.waited)  # the claim removed the note of other waiters here
            return
        self._noted.add(claiming.note)
        if self._nudges == claiming.nudges:
            self.armed(claiming.every, claiming.times)
        if not claiming.former:
            self._look_again(claiming.topics)

    def fail_claim(self, claiming: Claiming) -> None:
        """Make the next wait announce the topics again, because the failed claim may not have written the listener's note."""
        self._noted.add(claiming.note)
        self._disarm()

    def _next_note(self) -> int:
        self._last_note += 1
        return self._last_note

    def _disarm(self) -> None:
        self.forget([topic for topic in self._armed if _is_of_jobs(topic)])

    async def _note(self, topics: Iterable[str], ids: list[bytes]) -> None:
        """Write a note of what this listener is waiting for, including every queue named in its earlier notes."""
        of_jobs = {topic for topic in (*topics, *self._armed) if _is_of_jobs(topic)}
        others = [topic for topic in topics if not _is_of_jobs(topic)]
        former, note = sorted(self._noted), self._next_note() if of_jobs else 0
        if note:
            self._noted.add(note)
        self._noting = frozenset(of_jobs)
        try:
            await self._notes.note(self.id, former, note, [*of_jobs, *others], ids)
        finally:
            self._noting = frozenset()
        if note:
            self._noted.difference_update(former)

    async def _record_and_look(self, topics: list[str], ids: list[bytes]) -> tuple[list[str], list[bytes]]:
        self.has_noted = self._is_noting = True
        try:
            await self._note(topics, ids)
            available, ended, may_have_missed = await self._notes.look(topics, ids)
        finally:
            self._is_noting = False
        if may_have_missed:
            self._look_again(topics)
        return available, ended

    def _duties(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        return [*super()._duties(), self._keep_polling, self._keep_looking_again, self._keep_noted]

    async def _keep_noted(self) -> None:
        """Renew the notes that waiters need, before these notes expire, and forget the others."""
        while True:
            await asyncio.sleep(NOTE_INTERVAL)
            noted = [topic for topic in self._armed if not topic.startswith((_JOB, _SESSION))]
            self.forget(topic for topic in noted if topic not in self.waited)
            if waited := [topic for topic in noted if topic in self.waited]:
                with contextlib.suppress(*self._errors):
                    await self._note(waited, [])

    # --- messages -------------------------------------------------------------------------------------------------

    def _take(self, words: str) -> None:
        if words == EVERYTHING:
            self._armed.clear()
            self.flag.wake_all()
            return
        lines = words.split("\n")
        ended = dict(_parse_end(line) for line in lines if line.startswith(_JOB))
        if ended:
            self.received_ends(ended)
        for topic in lines:
            if topic.startswith(_QUEUE):
                self._take_nudge(topic)
        if AGAIN in lines:
            self._look_again(topic for topic in lines if not topic.startswith(_JOB) and topic != AGAIN)
        self.received((topic for topic in lines if not topic.startswith((_JOB, _QUEUE))), disarms=False)

    def _take_shared(self, words: str) -> None:
        """Process a message on the shared channel. Such messages come from transactions that could not see the listeners' notes."""
        heard = [topic for topic in [*words.split("\n"), names.ANY_QUEUE] if self.flag.hears(topic)]
        self.flag.wake(heard)
        self._look_again(topic for topic in heard if not topic.startswith(_JOB))

    def _take_nudge(self, topic: str) -> None:
        self._nudges += 1
        self._disarm()  # the server sends no more nudges for this note
        self.received({each for each in (topic, names.ANY_QUEUE) if self.flag.hears(each)}, disarms=True)

    def _hears_again(self) -> None:
        self._is_off.clear()
        if self._has_said:
            log.info("PostgreSQL at %s: notifications arrive again; polling has stopped", self._pool.server)
        self._has_looked, self._misses, self._trouble, self._has_said = False, 0, None, False

    # --- jobs that arrived while this listener was writing its note -----------------------------------------------

    def _look_again(self, topics: Iterable[str]) -> None:
        self._again.update(topics)
        self._is_looking_again = True
        self._has_again.set()

    async def _keep_looking_again(self) -> None:
        """Look for jobs repeatedly, as long as a transaction that may not have seen this listener's note is open."""
        while True:
            self._is_looking_again = self._has_again.is_set()
            await self._has_again.wait()
            topics, self._again = list(self._again), set()
            self._has_again.clear()
            for pause in SEARCH_PAUSES:
                try:
                    await asyncio.sleep(pause)
                    available, _, may_have_missed = await self._notes.look(topics, [])
                except self._errors:
                    break
                except asyncio.CancelledError:
                    self._look_again(topics)
                    raise
                self.flag.wake([*available, *([names.ANY_QUEUE] if any(map(_is_queue, available)) else [])])
                if not may_have_missed:
                    break

    # --- polling while notifications do not arrive ----------------------------------------------------------------

    async def _keep_polling(self) -> None:
        while True:
            await self._is_off.wait()
            await asyncio.sleep(_about(POLL_INTERVAL))
            topics = [topic for topic in self.waited if not topic.startswith(_SESSION)]
            if topics and not self.is_on:
                await self._poll(topics)

    async def _poll(self, topics: list[str]) -> None:
        try:
            available, ended, _ = await self._notes.look([topic for topic in topics if not topic.startswith(_JOB)], job_ids(topics))
            self.flag.wake([*available, *map(names.job, ended)])
        except self._errors:
            self._has_looked, self._misses = False, 0
            return
        self._has_looked = True
        if self._trouble is not None and not self._has_said:
            self._has_said = True
            log.warning(self._trouble)


class Claiming(NamedTuple):
    """A claim in progress. If it gets fewer jobs than its limit, the note with the number `note` replaces the listener's `former` notes.

    The note names `every` topic of jobs for which a worker waits here, not just the `topics` of the claim. `times` and `nudges` are the
    listener's numbers of subscriptions and nudges when the claim began.
    """

    listener: PostgresListener
    topics: Sequence[str]
    every: list[str]
    former: list[int]
    note: int
    times: int
    nudges: int

    @property
    def arguments(self) -> tuple[str, list[int], int, list[str]]:
        return self.listener.id, self.former, self.note, self.every


def _about(seconds: float) -> float:
    """Return about this many seconds, varied at random so that workers that start together do not poll together."""
    return seconds * (0.75 + 0.5 * SYSTEM_RANDOM.random())


def parse_wakeups(wakeups: str) -> dict[str, int]:
    """Parse the wake-ups that an operation returned into the number of jobs for each topic. The number is 0 if
    no listener is waiting for them. If the topics were too many to list, the only key is EVERYTHING."""
    if wakeups == EVERYTHING:
        return {EVERYTHING: 1}
    lines = (line.partition(" ") for line in wakeups.split("\n"))
    return {topic: int(number) for number, _, topic in lines}


def _parse_end(line: str) -> tuple[bytes, Record | None]:
    topic, _, packed = line.partition(" ")
    return bytes.fromhex(topic.removeprefix(_JOB)), _parse_record(packed) if packed else None


def _parse_record(packed: str) -> Record | None:
    """Return the record that a notification contains, or None if it cannot be decoded."""
    try:
        return Job.of_record(record_of(parse_row(b64decode(packed)))).to_record()
    except Exception:  # decoders may raise anything
        return None


def _is_queue(topic: str) -> bool:
    return topic.startswith(_QUEUE)


def _is_of_jobs(topic: str) -> bool:
    return topic.startswith(_QUEUE) or topic == names.ANY_QUEUE
