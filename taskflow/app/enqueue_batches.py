"""Calls of an `enqueue`, in the bounded portions that one verb carries."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from typing import Any, Final, Generic, TypeVar

from taskflow.app.call import Call
from taskflow.app.coalesce import MAX_BYTES, MAX_ITEMS
from taskflow.app.handle import JobHandle

R = TypeVar("R")


class Batch(Generic[R]):
    """At most 1,000 calls or, but for a single one, 1 MiB. `error` is what the iterable raised after them."""

    def __init__(self) -> None:
        self.calls: list[Call[R]] = []
        self.error: Exception | None = None
        self._size = 0

    def add(self, call: Call[R]) -> bool:
        """Whether there was room for it."""
        if not isinstance(call, Call):
            raise TypeError(f"enqueue() got {call!r} among its calls: it takes what .bind(...) makes")
        size = self._size + len(call.envelope.payload)
        if self.calls and (size > MAX_BYTES or len(self.calls) >= MAX_ITEMS):
            return False
        self.calls.append(call)
        self._size = size
        return True

    @property
    def is_of_use(self) -> bool:
        return bool(self.calls) or self.error is not None


class Sent(Generic[R]):
    """What has come of an `enqueue` so far."""

    def __init__(self) -> None:
        self.handles: list[JobHandle[R]] = []
        self.conflicts: list[JobHandle[R]] = []


AHEAD_FOR: Final = 0.05
"""Seconds. When an iterable takes longer over a batch the rest of it waits until the one that is under way has been answered."""


class Batches(Generic[R]):
    """They are taken from the iterable as they are sent, one ahead: a generator may be endless. What it raises ends the last batch."""

    def __init__(self, calls: Iterable[Call[R]]) -> None:
        check_calls(calls)
        self._calls = iter(calls)
        self._batch = Batch[R]()
        self._follows: Call[R] | None = None
        self._has_ended = False

    def __iter__(self) -> Iterator[Batch[R]]:
        return self

    def __next__(self) -> Batch[R]:
        self._gather(math.inf)
        batch = self._batch
        if not batch.is_of_use:
            raise StopIteration
        self._batch = Batch()
        if self._follows is not None:
            self._batch.add(self._follows)
            self._follows = None
        return batch

    @property
    def has_ended(self) -> bool:
        """Nothing follows."""
        return self._has_ended and not self._batch.is_of_use

    def gather_ahead(self) -> None:
        """Takes what there is for the next one, or a part of it."""
        self._gather(time.monotonic() + AHEAD_FOR)

    def _gather(self, until: float) -> None:
        try:
            while self._follows is None and not self._has_ended and time.monotonic() < until:
                call = next(self._calls)
                if not self._batch.add(call):
                    self._follows = call
        except StopIteration:
            self._has_ended = True
        except Exception as error:
            self._has_ended = True
            self._batch.error = error


async def async_batches(calls: AsyncIterable[Call[R]]) -> AsyncGenerator[Batch[R], None]:
    """The batches of `calls`. An async generator that is not exhausted is closed: nobody else can take it up."""
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
        if batch.is_of_use:
            yield batch
    finally:
        if isinstance(taken, AsyncGenerator):
            await taken.aclose()


def check_calls(calls: Any) -> None:
    if not isinstance(calls, Iterable):
        hint = "[...] round a single one, or .delay(...)" if isinstance(calls, Call) else "job.bind(...) for each call"
        raise TypeError(f"enqueue() got {calls!r}: it takes an iterable of calls; write {hint}")
