"""Group commit without a timer: while one round trip is under way, what comes gathers into the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")

MAX_ITEMS = 1_000
MAX_BYTES = 1 << 20


class Coalescer(Generic[Q, A]):
    """Turns single questions of one event loop into calls with many; answers come one for one, in order.

    Alone, a question goes out at once. A question whose asker has been cancelled may have gone out.
    """

    def __init__(self, call: Callable[[list[Q]], Awaitable[Sequence[A]]], *, size_of: Callable[[Q], int] | None = None) -> None:
        self._call = call
        self._size_of = size_of
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._flushing: asyncio.Task[None] | None = None

    async def __call__(self, question: Q) -> A:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[A] = loop.create_future()
        self._waiting.append((question, answer))
        if self._flushing is None:
            self._flushing = loop.create_task(self._flush())
        return await answer

    async def _flush(self) -> None:
        try:
            while self._waiting:
                batch = self._take()
                try:
                    answers = await self._call([question for question, _ in batch])
                except Exception as error:
                    _fail(batch, error)
                else:
                    for (_, future), answer in zip(batch, answers, strict=True):
                        if not future.done():
                            future.set_result(answer)
        finally:
            self._flushing = None
            _fail(self._waiting, asyncio.CancelledError())  # only a closing loop cancels this task

    def _take(self) -> list[tuple[Q, asyncio.Future[A]]]:
        """As much as one call may carry, at least one; what nobody waits for any more is left out."""
        batch: list[tuple[Q, asyncio.Future[A]]] = []
        size = 0
        while self._waiting and len(batch) < MAX_ITEMS:
            question, future = self._waiting[0]
            size += self._size_of(question) if self._size_of else 0
            if batch and size > MAX_BYTES:
                break
            self._waiting.popleft()
            if not future.done():
                batch.append((question, future))
        return batch


def _fail(batch: Sequence[tuple[Q, asyncio.Future[A]]] | deque[tuple[Q, asyncio.Future[A]]], error: BaseException) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
