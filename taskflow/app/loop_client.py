"""Sends the calls of one event loop to the broker. Calls that arrive during a round trip share the next one, without a timer."""

from __future__ import annotations

import asyncio
import copy
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import msgspec

from taskflow.broker.protocol import Added, Broker, Refused
from taskflow.broker.retry import retry
from taskflow.broker.tasks import Deadline, started
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.pauses import Pauses, Retries
from taskflow.model.record import Record

if TYPE_CHECKING:
    from taskflow.app.bulk_actions import CallBroker

Q = TypeVar("Q")
A = TypeVar("A")
T = TypeVar("T")

MAX_ITEMS: Final = 1_000
MAX_BYTES: Final = 1 << 20
MAX_FLOW_TIMEOUT: Final = 50.0  # seconds

NO_ANSWER: Final = "the request timed out"


def pauses_within(timeout: float) -> Pauses:
    """Return pauses short enough to allow several attempts within `timeout` seconds."""
    return Pauses(0.02, 0.5).at_most(timeout / 4)


def gave_up(timeout: float, why: str) -> BrokerUnavailable:
    return BrokerUnavailable(
        f"the broker has not answered for {timeout:g} s: {why}; the last request may have taken effect anyway. "
        "Check that the broker is running and reachable, or raise enqueue_timeout="
    )


class _Pending(msgspec.Struct, Generic[Q, A]):
    question: Q
    answer: asyncio.Future[A]
    give_up_at: float


class Coalescer(Generic[Q, A]):
    """Bundles the questions of callers in one event loop (envelopes to add, or ids to read) into shared calls to the store.

    While the store is unavailable, questions are sent again, together with new ones. Each question fails with BrokerUnavailable `timeout`
    seconds after it was asked. If a caller is cancelled, its question may already have been sent.
    """

    def __init__(
        self, call: Callable[[list[Q]], Awaitable[Sequence[A]]], *, timeout: float, size_of: Callable[[Q], int] = lambda question: 0
    ) -> None:
        self._call = call
        self._timeout = timeout
        self._size_of = size_of
        self._waiting: deque[_Pending[Q, A]] = deque()
        self._flushing: asyncio.Task[None] | None = None
        self._deadline = Deadline(self._give_up)
        self._is_late = False
        self._retries = Retries(pauses_within(timeout))
        self._last_error = ""  # the last error while the store is unavailable
        self._is_start_due = False

    def __call__(self, question: Q) -> asyncio.Future[A]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[A] = loop.create_future()
        self._waiting.append(_Pending(question, answer, time.monotonic() + self._timeout))
        if self._flushing is None:
            self._start_soon(loop)
        return answer

    def _start_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start a flush once all tasks that are ready in this iteration of the loop have run."""
        if not self._is_start_due:
            self._is_start_due = True
            loop.call_soon(self._start, loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_start_due = False
        if self._flushing is not None:
            return  # that flush takes the waiting questions
        flushing = started(loop, self._flush())
        if flushing.done():
            self._go_on(flushing)
        else:
            self._flushing = flushing
            flushing.add_done_callback(self._go_on)

    def _go_on(self, flushing: asyncio.Task[None]) -> None:
        """Start another flush if a caller is still waiting. If all tasks of the loop were cancelled, no caller is."""
        self._flushing = None
        while self._waiting and self._waiting[0].answer.done():
            self._waiting.popleft()
        if self._waiting:
            self._start_soon(flushing.get_loop())

    async def _flush(self) -> None:
        batch: list[_Pending[Q, A]] = []
        is_answered = False
        try:
            while self._waiting and not is_answered:
                if batch := self._take():
                    is_answered = await self._ask(batch)
        except Exception as error:  # a bug in taskflow or in the store: fail the callers, or they would wait forever
            _fail(batch or self._waiting, error)

    def _take(self) -> list[_Pending[Q, A]]:
        """Remove and return as many questions as one call may carry. Cancelled questions are skipped, so the batch may be empty."""
        batch: list[_Pending[Q, A]] = []
        size = 0
        while self._waiting and len(batch) < MAX_ITEMS:
            asked = self._waiting[0]
            if not asked.answer.done():
                size += self._size_of(asked.question)
                if batch and size > MAX_BYTES:
                    break
                batch.append(asked)
            self._waiting.popleft()
        return batch

    async def _ask(self, batch: list[_Pending[Q, A]]) -> bool:
        """Send the batch. Return True if the store answered; the flush then ends, so that callers can ask more before the next call."""
        flushing = asyncio.current_task()
        assert flushing is not None
        cancelled_before = flushing.cancelling()
        self._deadline.begin(max(0.0, batch[0].give_up_at - time.monotonic()))  # the first question has waited longest
        try:
            try:
                answers = await self._call([asked.question for asked in batch])
            finally:
                self._deadline.end()
                if self._is_late:  # like `asyncio.timeout`, which would need a timer for each call
                    self._is_late = False
                    is_cancelled = flushing.uncancel() > cancelled_before
                    if isinstance(error := sys.exception(), asyncio.CancelledError) and not is_cancelled:
                        raise TimeoutError from error
        except asyncio.CancelledError:
            self._waiting.extendleft(reversed(batch))
            raise
        except (TimeoutError, BrokerUnavailable) as error:
            await self._ask_again(batch, error)
            return False
        for asked, answer in zip(batch, answers, strict=True):
            if not asked.answer.done():
                asked.answer.set_result(answer)
        self._retries.succeeded()
        self._last_error = ""
        return True

    def _give_up(self) -> None:
        if self._flushing is not None:
            self._is_late = self._flushing.cancel()

    async def _ask_again(self, batch: list[_Pending[Q, A]], error: Exception) -> None:
        """Fail the questions whose time is up, put the others back at the front of the queue, then pause."""
        self._last_error = str(error) or self._last_error
        pause = self._retries.failed()
        again_at = time.monotonic() + pause
        too_late = gave_up(self._timeout, self._last_error or NO_ANSWER)
        too_late.__cause__ = error
        _fail((asked for asked in batch if asked.give_up_at <= again_at), too_late)
        self._waiting.extendleft(asked for asked in reversed(batch) if asked.give_up_at > again_at)
        if self._waiting:
            await asyncio.sleep(pause)


def _fail(batch: Iterable[_Pending[Q, A]], error: Exception) -> None:
    """Fail each question with a copy of the error. A shared error would collect the tracebacks of all tasks that raise it."""
    for asked in batch:
        if not asked.answer.done():
            own = error
            with suppress(Exception):  # some exceptions cannot be copied
                own = copy.copy(error).with_traceback(error.__traceback__)
                own.__cause__ = error.__cause__
            asked.answer.set_exception(own)


BLOCKED_GRACE: Final = 0.25
"""If a timer fires this many seconds late, something blocked its event loop."""


class LoopClient:
    """Sends the calls of one event loop to the broker, in shared round trips. After `timeout` seconds, a call raises BrokerUnavailable.

    Envelopes with a key, a tenant or limits are sent separately, sorted by key. So a lock that another program holds on a key does not
    delay calls without a key, and two senders cannot deadlock, because both lock keys in the same order.
    """

    def __init__(self, broker: Broker, *, timeout: float) -> None:
        self.broker = broker
        self._timeout = timeout

        def size_of(envelope: Envelope) -> int:
            return len(envelope.payload)

        self._plain = Coalescer[Envelope, Added | Refused](broker.enqueue, timeout=timeout, size_of=size_of)
        self._keyed = Coalescer[Envelope, Added | Refused](self._enqueue_by_key, timeout=timeout, size_of=size_of)
        self.read = Coalescer[bytes, Record | None](self._read, timeout=timeout)

    def send(self, envelope: Envelope) -> asyncio.Future[Added | Refused]:
        return (self._plain if envelope.key is None and envelope.fair is None and not envelope.limits else self._keyed)(envelope)

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        """Add envelopes in one step. Above `MAX_ITEMS`, the timeout grows in proportion, up to `MAX_FLOW_TIMEOUT`: repeats must be safe."""
        timeout = min(self._timeout * max(1.0, len(envelopes) / MAX_ITEMS), max(self._timeout, MAX_FLOW_TIMEOUT))
        return await retry_within(lambda: self.broker.enqueue(envelopes), timeout)

    async def call(self, operation: Callable[[Broker], Awaitable[T]]) -> T:
        """Call an operation that is safe to repeat, again and again until the store answers. Raises BrokerUnavailable after the timeout."""
        return await retry_within(lambda: operation(self.broker), self._timeout)

    async def call_on_flow(self, operation: Callable[[Broker], Awaitable[T]]) -> T:
        """Like `call`, but with enough time for an operation on all jobs of a large flow, or on many that wait for a rate."""
        return await retry_within(lambda: operation(self.broker), max(self._timeout, MAX_FLOW_TIMEOUT))

    def call_for(self, action: str) -> CallBroker:
        """Return the method that calls the operations of an operator's action. A retry takes whole flows at a time."""
        return self.call_on_flow if action == "retry" else self.call

    async def _enqueue_by_key(self, envelopes: list[Envelope]) -> list[Added | Refused]:
        order = sorted(range(len(envelopes)), key=lambda index: envelopes[index].key or b"")
        answers = await self.broker.enqueue([envelopes[index] for index in order])
        by_index = dict(zip(order, answers, strict=True))
        return [by_index[index] for index in range(len(envelopes))]

    async def _read(self, ids: list[bytes]) -> list[Record | None]:
        """Read each id once, even if several callers asked for it."""
        distinct = list(dict.fromkeys(ids))
        records = dict(zip(distinct, await self.broker.read(distinct), strict=True))
        return [records[job_id] for job_id in ids]


async def retry_within(operation: Callable[[], Awaitable[T]], timeout: float) -> T:
    """Call `operation`, which must be safe to repeat, until the store answers, for at most `timeout` seconds; then raise BrokerUnavailable.

    If the event loop was blocked when the time ran out, an answer may have arrived without being read, so `operation` is called again.
    """
    why = NO_ANSWER

    def note(error: Exception, failures: int) -> None:
        nonlocal why
        why = str(error)

    while True:
        give_up_at = time.monotonic() + timeout
        try:
            async with asyncio.timeout(timeout):
                return await retry(operation, pauses_within(timeout), on=BrokerUnavailable, note=note, give_up_at=give_up_at)
        except TimeoutError as error:
            if time.monotonic() < give_up_at + BLOCKED_GRACE:
                raise gave_up(timeout, why) from error
        except BrokerUnavailable as error:
            raise gave_up(timeout, why) from error
