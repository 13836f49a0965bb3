"""LISTEN and NOTIFY: one listening connection for each event loop, and notifications of committed changes.

A pooler in transaction mode accepts a LISTEN and loses every notification. So a listener counts as open only after it has received one of
its test notifications. Until then it polls once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from taskflow.broker import topics as names
from taskflow.broker.listener import Listener, Standing, job_ids
from taskflow.broker.postgres import rows
from taskflow.broker.postgres.connect.link import Link
from taskflow.broker.postgres.listening import POLL_EVERY, ListenConnection, deaf, in_vain
from taskflow.broker.postgres.refusals import ERRORS
from taskflow.model.record import Record

log: Final = logging.getLogger("taskflow")

EVERYTHING: Final = "*"
"""Replaces a notification that is too long: every waiter checks."""

TEST_AGAIN: Final = 30.0
"""Seconds after which a route that loses notifications is tried again."""

MISSES: Final = 2
"""Failed attempts to listen, at a server that otherwise answers, before a warning."""

NOTE_AGAIN: Final = 60.0
"""Seconds after which a listener writes its notes again. They count for 90 s: see bounds.NOTED_FOR."""

NUDGE_STANDS: Final = 0.2
"""Seconds in which a claim that follows a nudge finds the listener's note, which others remove after PASSED_ON_AFTER."""

LOOKS_AGAIN: Final = (0.0, 0.01, 0.05, 0.25, 1.0, 2.0, 4.0)
"""Pauses before each look while a transaction is open that may not have seen a note. Afterwards the job is found as after a lost nudge."""

UNNOTED: Final = "unnoted"
"""The news of a claim that could not note its listener: see claim.sql."""

AGAIN: Final = "again"
"""A line of a message: other transactions commit at the same time, and send no message."""

_JOB: Final = names.job(b"")
_QUEUE: Final = names.queue("")
_SESSION: Final = names.session(b"")


class Notes(NamedTuple):
    """The calls by which a listener notes itself, looks, and passes a nudge on. See wakeups.sql."""

    note: Callable[[str, list[str], list[bytes]], Awaitable[None]]
    look: Callable[[list[str], list[bytes]], Awaitable[tuple[list[str], list[bytes], bool]]]
    tell: Callable[[Mapping[str, int], list[bytes], str], Awaitable[None]]


class PostgresListener(Listener):
    """Listens for notifications. While they do not arrive, it polls for all waiters in one query and wakes those that have something to do.

    A session's own topic is not polled, because the next heartbeat brings its news.
    """

    def __init__(self, link: Link, schema: str, notes: Notes) -> None:
        super().__init__(self._note_and_look, ERRORS)
        self._link = link
        self._schema = schema
        self._notes = notes
        self._is_off = asyncio.Event()
        self._is_off.set()
        self._has_looked = False
        self._misses = 0
        self._trouble: str | None = None
        self._has_said = False
        self._claims = 0
        self._to_pass_on = Counter[str]()
        self._told_during_claim = Counter[str]()
        self._again: set[str] = set()
        self._has_again = asyncio.Event()
        self._is_looking_again = False
        self._is_asking = False
        self.nudged_at = 0.0
        self.has_noted = False

    async def hear(self, goes_on: Callable[[], None]) -> None:
        # The time of the last answered poll: if the whole server is away, the listener is not the problem.
        server_is_there = self._has_looked
        try:
            async with ListenConnection(self._link, {self.id: self._take, self._schema: self._take_shared}) as listener:
                if await listener.hears():
                    self._hears_again()
                    goes_on()
                    await listener.stay()
                    return
        except self._errors as error:
            self._misses += server_is_there
            if self._misses >= MISSES:
                self._trouble = in_vain(self._link.server, error)
            raise
        finally:
            self._is_off.set()
        self._trouble = deaf(self._link.server)
        await asyncio.sleep(_about(TEST_AGAIN))

    def stays_armed(self, topic: str) -> bool:
        """Return True if the server has a note even though something is there. The end of a job is announced once."""
        return not topic.startswith(_JOB)

    @property
    def is_at_rest(self) -> bool:
        """Return True if it hears of what happens from now on, and of nothing that happened before."""
        return not (self._has_wants.is_set() or self._is_asking or self._is_looking_again)

    def unnoted(self, ids: Iterable[bytes]) -> list[bytes]:
        """Return the jobs that have waiters here of which the server does not know."""
        if not self.is_on or not self.flag.is_heard:
            return []
        return [job_id for job_id in ids if self.flag.hears(topic := names.job(job_id)) and topic not in self._armed]

    def claiming(self, topics: Sequence[str]) -> Claiming:
        return Claiming(self, topics)

    def begin_claim(self, topics: Sequence[str]) -> Standing | None:
        """Return None if no worker waits here for such jobs, or no notification would arrive."""
        if not self.is_on or not all(map(self.flag.hears, topics)):
            return None
        self._claims += 1
        self.has_noted = True
        return self.standing(topics)

    def end_claim(self, topics: Sequence[str], times: int, standing: Standing, *, is_full: bool, was_late: bool) -> None:
        self._claims -= 1
        told, self._told_during_claim = self._told_during_claim, Counter()
        if not is_full:
            self.armed(topics, times)
            if was_late or not (standing.is_listed or standing.was_nudged):
                self._look_again(topics)
            return
        self.forget(topics)
        self._pass_on_later(told)
        self.want(topic for topic in topics if topic in self.waited)  # others in this process, whose note is gone

    def fail_claim(self, topics: Sequence[str], standing: Standing) -> None:
        """It is unknown whether the listener is noted."""
        self._claims -= 1
        self._was_nudged |= standing.was_nudged
        self.forget(topics)

    async def pass_on(self, nudges: int) -> None:
        told, self._to_pass_on = self._to_pass_on, Counter()
        gone = [*told, names.ANY_QUEUE]
        self.forget(gone)
        await self._notes.tell(told, [], self.id)
        self.want(topic for topic in gone if topic in self.waited)

    def _pass_on_later(self, told: Mapping[str, int]) -> None:
        if told:
            self._to_pass_on.update(told)
            self._unheard += 1
            self._has_wants.set()

    async def _note_and_look(self, topics: list[str], ids: list[bytes]) -> tuple[list[str], list[bytes]]:
        self.has_noted = self._is_asking = True
        try:
            await self._notes.note(self.id, topics, ids)
            there, ended, is_crossing = await self._notes.look(topics, ids)
        finally:
            self._is_asking = False
        if is_crossing:
            self._look_again(topics)
        return there, ended

    def _duties(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        return [*super()._duties(), self._keep_polling, self._keep_looking_again, self._keep_noted]

    async def _keep_noted(self) -> None:
        """Write the notes of waiters again before they are too old."""
        while True:
            await asyncio.sleep(NOTE_AGAIN)
            noted = [topic for topic in self._armed if not topic.startswith((_JOB, _SESSION))]
            self.forget(topic for topic in noted if topic not in self.waited)
            if waited := [topic for topic in noted if topic in self.waited]:
                with contextlib.suppress(*self._errors):
                    await self._notes.note(self.id, waited, [])

    # --- messages -------------------------------------------------------------------------------------------------

    def _take(self, words: str) -> None:
        if words == EVERYTHING:
            self._armed.clear()
            self.flag.wake_all()
            return
        lines = words.split("\n")
        ended = dict(_ended_in(line) for line in lines if line.startswith(_JOB))
        if ended:
            self.told_ended(ended)
        for topic in lines:
            if topic.startswith(_QUEUE):
                self._take_nudge(topic)
        if AGAIN in lines:
            self._look_again(topic for topic in lines if not topic.startswith(_JOB) and topic != AGAIN)
        self.told((topic for topic in lines if not topic.startswith((_JOB, _QUEUE))), disarms=False)

    def _take_shared(self, words: str) -> None:
        """Take news of a transaction that could not see who waits."""
        heard = [topic for topic in [*words.split("\n"), names.ANY_QUEUE] if self.flag.hears(topic)]
        self.flag.wake(heard)
        self._look_again(topic for topic in heard if not topic.startswith(_JOB))

    def _take_nudge(self, topic: str) -> None:
        heard = {each for each in (topic, names.ANY_QUEUE) if self.flag.hears(each)}
        if not heard or (self._armed.isdisjoint(heard) and not self._was_nudged and not self._claims):  # no worker waits, or has room
            self._pass_on_later({topic: 1})
        elif self._claims:
            self._told_during_claim[topic] += 1
        self.nudged_at = time.monotonic()
        self.told(heard, disarms=True)

    def _hears_again(self) -> None:
        self._is_off.clear()
        if self._has_said:
            log.info("PostgreSQL at %s: notifications arrive again; polling has stopped", self._link.server)
        self._has_looked, self._misses, self._trouble, self._has_said = False, 0, None, False

    # --- jobs that came while this listener noted itself ----------------------------------------------------------

    def _look_again(self, topics: Iterable[str]) -> None:
        self._again.update(topics)
        self._is_looking_again = True
        self._has_again.set()

    async def _keep_looking_again(self) -> None:
        """Look until no transaction is open that may not have seen the note of this listener."""
        while True:
            self._is_looking_again = self._has_again.is_set()
            await self._has_again.wait()
            topics, self._again = list(self._again), set()
            self._has_again.clear()
            for pause in LOOKS_AGAIN:
                await asyncio.sleep(pause)
                try:
                    there, _, is_crossing = await self._notes.look(topics, [])
                except self._errors:
                    break
                self.flag.wake([*there, *([names.ANY_QUEUE] if any(map(_is_queue, there)) else [])])
                if not is_crossing:
                    break

    # --- instead of hearing ---------------------------------------------------------------------------------------

    async def _keep_polling(self) -> None:
        while True:
            await self._is_off.wait()
            await asyncio.sleep(_about(POLL_EVERY))
            topics = [topic for topic in self.waited if not topic.startswith(_SESSION)]
            if topics and not self.is_on:
                await self._poll(topics)

    async def _poll(self, topics: list[str]) -> None:
        try:
            there, ended, _ = await self._notes.look([topic for topic in topics if not topic.startswith(_JOB)], job_ids(topics))
            self.flag.wake([*there, *map(names.job, ended)])
        except self._errors:
            self._has_looked, self._misses = False, 0
            return
        self._has_looked = True
        if self._trouble is not None and not self._has_said:
            self._has_said = True
            log.warning(self._trouble)


class Claiming:
    """A claim under way, with what it says of the listener."""

    def __init__(self, listener: PostgresListener, topics: Sequence[str]) -> None:
        self._listener = listener
        self._topics = topics
        self._times = listener.times
        self._nudged_at = listener.nudged_at
        self._standing = listener.begin_claim(topics)

    @property
    def standing(self) -> tuple[str | None, bool, bool]:
        if self._standing is None:
            return None, False, False
        return self._listener.id, self._standing.is_listed, self._standing.was_nudged

    def end(self, *, is_full: bool) -> None:
        if self._standing is not None:
            was_late = self._standing.was_nudged and time.monotonic() - self._nudged_at > NUDGE_STANDS
            self._listener.end_claim(self._topics, self._times, self._standing, is_full=is_full, was_late=was_late)

    def fail(self) -> None:
        if self._standing is not None:
            self._listener.fail_claim(self._topics, self._standing)


def _about(seconds: float) -> float:
    """Return a pause of about this length, so that workers that started together do not poll together."""
    return seconds * (0.75 + 0.5 * random.random())


def told_in(wakeups: str) -> dict[str, int]:
    """Return the topics that a verb announces, and of how many jobs. The number is 0 if no listener is noted for them."""
    if wakeups == EVERYTHING:
        return {EVERYTHING: 1}
    lines = (line.partition(" ") for line in wakeups.split("\n"))
    return {topic: int(number) for number, _, topic in lines}


def _ended_in(line: str) -> tuple[bytes, Record | None]:
    topic, _, packed = line.partition(" ")
    return bytes.fromhex(topic.removeprefix(_JOB)), rows.record_told(b64decode(packed)) if packed else None


def _is_queue(topic: str) -> bool:
    return topic.startswith(_QUEUE)
