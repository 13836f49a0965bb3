"""Sends the session's heartbeat from a separate thread and connection: a job that blocks the loop keeps its lease."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec

from taskflow.broker.nudges import Nudges, WakeUpFlag
from taskflow.broker.protocol import Broker
from taskflow.model.envelope import ClaimId
from taskflow.model.errors import BrokerError, BrokerUnavailable, SessionLost
from taskflow.model.retry import Pauses, Retries
from taskflow.model.seams import StartThread
from taskflow.model.session import Beat, BeatAnswer, Report, Session
from taskflow.worker.lease_table import LeaseTable

BEATS_PER_TTL: Final = 4
IDLE_BEATS_PER_TTL: Final = 3
"""Of a session that holds nothing: each is also its look at what there is to do."""

PAUSES: Final = Pauses(0.1, 0.5)

PROGRESS_EVERY: Final = 1.0
"""Seconds between two beats for the sake of progress."""

STOPS_WITHIN: Final = 5.0
# What a loop's selector says when its number has been closed, and when it stands for something else since.
LOST_DESCRIPTORS: Final = (errno.EBADF, errno.EINVAL)


class BeatListeners(msgspec.Struct, frozen=True):
    """Who hears what the keeper hears. It calls from its own thread.

    `answer`   every beat's answer, and when it was asked
    `lost`     the session is dead, or has not beaten for its whole ttl and must be taken for dead
    `trouble`  a beat has not reached the broker, with how many in a row
    `broken`   the thread's own file descriptors are gone
    `dropped`  the report of that claim cannot be written, and why
    """

    answer: Callable[[BeatAnswer, float], None]
    lost: Callable[[str], None]
    trouble: Callable[[str, int], None]
    broken: Callable[[str], None]
    dropped: Callable[[ClaimId, str], None]


class Keeper:
    """Beats until it is stopped. `seen` tells the highest claim request that has been answered.

    `beaten_at` is when a beat was answered last, None before the first; `tried_at` when one was tried last, whatever came of it:
    both of the monotonic clock, for any thread to read.
    """

    def __init__(
        self,
        broker: Broker,
        session: Session,
        lease_table: LeaseTable,
        *,
        seen: Callable[[], int],
        beat_listeners: BeatListeners,
        start_thread: StartThread,
    ) -> None:
        self._broker = broker
        self._session = session
        self._lease_table = lease_table
        self._seen = seen
        self._beat_listeners = beat_listeners
        self._start_thread = start_thread
        self._stopping = threading.Event()
        self._nudges = Nudges(WakeUpFlag(), ())
        self._is_urgent = False
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self.beaten_at: float | None = None
        self.tried_at = time.monotonic()

    def start(self) -> None:
        self._start_thread(self._keep, "taskflow-keeper")

    async def stop(self) -> None:
        """Ends the thread; a beat that is under way is waited for, a store that is away is not waited for long.

        Not by the loop's own threads (`asyncio.to_thread`): jobs may have taken all of them.
        """
        self.fall_silent()
        await asyncio.wait([self._ended], timeout=STOPS_WITHIN)

    def fall_silent(self) -> None:
        """Beats no more, from any thread; waits for nothing."""
        self._stopping.set()
        self.beat_now()

    def beat_now(self) -> None:
        """There may be something to hear; from any thread."""
        self._is_urgent = True
        self._nudges.nudge()

    def beat_soon(self) -> None:
        """There is progress to tell: beat now, but not within `PROGRESS_EVERY` seconds of the last beat. From any thread."""
        self._nudges.nudge()

    def _keep(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # whatever ends the thread: a session without a keeper must not go on
            if isinstance(error, OSError) and error.errno in LOST_DESCRIPTORS:
                self._beat_listeners.broken(str(error))
            self._beat_listeners.lost(f"nobody beats for it any more: {type(error).__name__}: {error}")
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the worker is gone
                self._loop.call_soon_threadsafe(self._note_end)

    def _note_end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    async def _main(self) -> None:
        try:
            await self._beat_on()
        finally:
            await self._broker.close()

    async def _beat_on(self) -> None:
        interval = self._session.ttl / BEATS_PER_TTL
        beaten_at, retries = time.monotonic(), Retries(PAUSES.at_most(interval))  # registered just now
        while not self._stopping.is_set():
            if self._loop.is_closed():
                await self._leave()
                return
            try:
                asked_at, beat = time.monotonic(), self._a_beat()
                self._beat_listeners.answer(await self._send(beat, self._lease_table.reports()), asked_at)
                beaten_at = self.beaten_at = self.tried_at = time.monotonic()
                retries.succeeded()
                pause = self._session.ttl / IDLE_BEATS_PER_TTL if beat.looks else interval
            except SessionLost as error:
                self._beat_listeners.lost(str(error))
                return
            except Exception as error:  # a refusal too: a right that was taken away, a migration; or a bug
                if isinstance(error, OSError) and error.errno in LOST_DESCRIPTORS:
                    raise
                why = str(error) if isinstance(error, BrokerError) else f"{type(error).__name__}: {error}"
                self.tried_at = time.monotonic()
                if self.tried_at - beaten_at > self._session.ttl:
                    self._beat_listeners.lost(f"no beat has reached the broker for {self._session.ttl:g} s: {why}")
                    return
                pause = retries.failed()
                self._beat_listeners.trouble(why, retries.failures)
            await self._rest(pause)

    async def _rest(self, pause: float) -> None:
        rested_at = time.monotonic()
        await self._nudges.wait(pause)
        while not self._is_urgent and (left := min(pause, PROGRESS_EVERY) - (time.monotonic() - rested_at)) > 0:
            await self._nudges.wait(left)
        self._is_urgent = False

    def _a_beat(self) -> Beat:
        seen = self._seen()  # first: a claim that is answered between the two is then younger than what was seen
        claims = self._lease_table.claims()
        return Beat(session=self._session.id, claims=claims, seen=seen, looks=not claims)

    async def _send(self, beat: Beat, reports: tuple[Report, ...]) -> BeatAnswer:
        """Send the beat with the reports. A report that cannot be written is dropped, and costs no other job its report or its lease."""
        try:
            answer = await self._broker.beat(msgspec.structs.replace(beat, reports=reports) if reports else beat)
        except (BrokerUnavailable, SessionLost):
            raise
        except Exception as error:
            if not reports:
                raise
            if half := len(reports) // 2:
                await self._send(beat, reports[:half])
                return await self._send(beat, reports[half:])
            answer = await self._broker.beat(beat)
            self._beat_listeners.dropped(reports[0].claim, f"{type(error).__name__}: {error}")
        self._lease_table.reported(reports)
        return answer

    async def _leave(self) -> None:
        """The loop that the runs were in is closed, without a winding down: their jobs go to others now, not when this process ends."""
        with contextlib.suppress(BrokerError):
            await self._broker.beat(Beat(session=self._session.id, leaving=True))
