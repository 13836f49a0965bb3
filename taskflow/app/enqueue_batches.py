"""Splits the calls of one `enqueue()` into batches of limited size."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from typing import Final, Generic, TypeVar

from taskflow.app.handle import JobHandle
from taskflow.app.job_type import Call
from taskflow.app.loop_client import MAX_BYTES, MAX_ITEMS

R = TypeVar("R")


class Batch(Generic[R]):
    """A batch of at most 1,000 calls and 1 MiB, or of one larger call. `error` is the
    exception that the iterable raised after these calls, or None."""

    def __init__(self) -> None:
        self.calls: list[Call[R]] = []
        self.error: Exception | None = None
        self._size = 0

    def add(self, call: Call[R]) -> bool:
        """Add the call, or return False if the batch is full. Raises TypeError for anything that is not a call."""
        if not isinstance(call, Call):
            raise TypeError(f"enqueue() got {call!r}: expected calls made by .bind(...)")
        size = self._size + len(call.envelope.payload)
        if self.calls and (size > MAX_BYTES or len(self.calls) >= MAX_ITEMS):
            return False
        self.calls.append(call)
        self._size = size
        return True

    @property
    def is_worth_sending(self) -> bool:
        return bool(self.calls) or self.error is not None


class Sent(Generic[R]):
    """The handles that one `enqueue()` has collected so far. `conflicts` lists
    the handles of live jobs that already had a call's key."""

    def __init__(self) -> None:
        self.handles: list[JobHandle[R]] = []
        self.conflicts: list[JobHandle[R]] = []


READ_AHEAD_TIMEOUT: Final = 0.05
"""Seconds to spend on reading calls for the next batch while the current one is being sent. The rest is read after the store's answer."""


class Batches(Generic[R]):
    """Splits an iterable of calls into batches. The iterable may be endless, because at most one batch is
    read ahead. If it raises, the last batch holds the error."""

    def __init__(self, calls: Iterable[Call[R]]) -> None:
        given: object = calls
        if not isinstance(given, Iterable):
            hint = "[...] around a single one, or .delay(...)" if isinstance(given, Call) else "job.bind(...) for each call"
            raise TypeError(f"enqueue() got {given!r}: expected an iterable of calls; write {hint}")
        self._calls = iter(calls)
        self._batch = Batch[R]()
        self._next_call: Call[R] | None = None
        self._has_ended = False

    def __iter__(self) -> Iterator[Batch[R]]:
        return self

    def __next__(self) -> Batch[R]:
        self._gather(math.inf)
        batch = self._batch
        if not batch.is_worth_sending:
            raise StopIteration
        self._batch = Batch()
        if self._next_call is not None:
            self._batch.add(self._next_call)
            self._next_call = None
        return batch

    @property
    def has_ended(self) -> bool:
        """Return True if there are no more batches."""
        return self._has_ended and not self._batch.is_worth_sending

    def gather_ahead(self) -> None:
        """Read calls for the next batch while the current one is being sent, for at most `READ_AHEAD_TIMEOUT` seconds."""
        self._gather(time.monotonic() + READ_AHEAD_TIMEOUT)

    def _gather(self, until: float) -> None:
        try:
            while self._next_call is None and not self._has_ended and time.monotonic() < until:
                call = next(self._calls)
                if not self._batch.add(call):
                    self._next_call = call
        except StopIteration:
            self._has_ended = True
        except Exception as error:
            self._has_ended = True
            self._batch.error = error


async def async_batches(calls: AsyncIterable[Call[R]]) -> AsyncGenerator[Batch[R], None]:
    """Yield the calls in batches. An async generator is closed even if it is not exhausted, because no other code can close it."""
    batch = Batch[R]()
    taken = aiter(calls)
    try:
        try:
            async for call in taken:
                if not batch.add(call):
                    yield batch
                    batch = Batch()
                    batch.add(call)
        except Exception as error:
            batch.error = error
        if batch.is_worth_sending:
            yield batch
    finally:
        if isinstance(taken, AsyncGenerator):
            await taken.aclose()
