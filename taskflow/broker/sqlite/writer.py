"""The one thread that a broker's connection belongs to, and group commit.

Callers of any loop and thread put verbs into a queue. The thread takes all that is there, runs it in one transaction, and answers all at
once; while a commit is under way, the next ones gather. Nobody waits for a timer: idle, a group is one verb, busy, it is many.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from taskflow.broker.sqlite import forks
from taskflow.broker.sqlite.transactions import Durability, Transactions, Work
from taskflow.broker.sqlite.transitions import Transitions
from taskflow.model import wording
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.seams import StartThread

T = TypeVar("T")

MOST_IN_A_GROUP: Final = 128
"""Verbs that share a commit: more would not make it cheaper, and would keep the first one waiting."""


@dataclass(eq=False, slots=True)
class WriteCall(Work):
    """Work and who waits for it. Its outcome is the thread's until it is delivered."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class Writer:
    """Started by its first call. Belongs to one process: after a fork the child makes another one and leaves this alone."""

    def __init__(self, transactions: Transactions, start_thread: StartThread) -> None:
        self.pid = os.getpid()
        self._transactions = transactions
        self._start_thread = start_thread
        self._queue = queue.SimpleQueue[WriteCall | None]()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    async def call(self, durability: Durability, verb: Callable[[Transitions], T]) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._put(WriteCall(verb, durability, time.monotonic(), loop, future))
        return await future

    def _put(self, call: WriteCall) -> None:
        with self._lock:  # so that nothing comes after the None that ends the thread
            if self._is_closed:
                raise BrokerUnavailable(wording.CLOSED)
            if self._thread is None:
                self._thread = self._start_thread(self._work, "taskflow-sqlite-writer")
            self._queue.put(call)

    def close(self) -> threading.Thread | None:
        """What was accepted is still done. The thread that ends then, if there is one."""
        if self.pid != os.getpid():
            return None
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._queue.put(None)
        return self._thread

    def close_and_wait(self) -> None:
        """For the interpreter's end, and a broker that is forgotten without being closed."""
        thread = self.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=self._transactions.store.timeout)

    # --- the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while group := self._next_group():
                self._run(group)
                _deliver(group)
                del group  # not to be kept while there is nothing to do: verbs hold payloads, and their broker
        finally:
            with forks.transactions:
                self._transactions.close()

    def _run(self, group: list[WriteCall]) -> None:
        try:
            with forks.transactions:
                self._transactions.run(group)
        except Exception as error:  # a bug, or no memory: nobody is to wait for ever because of it
            for call in group:
                call.error = error

    def _next_group(self) -> list[WriteCall]:
        """All that waits, once there is something; nothing when it is time to go."""
        group = list[WriteCall]()
        call = self._queue.get()
        while call is not None:
            group.append(call)
            if len(group) == MOST_IN_A_GROUP:
                return group
            try:
                call = self._queue.get_nowait()
            except queue.Empty:
                return group
        if group:
            self._queue.put(None)  # for the next time: nothing else comes after it
        return group


def _deliver(group: list[WriteCall]) -> None:
    """One message to each loop, whatever the number of its calls."""
    by_loop: dict[asyncio.AbstractEventLoop, list[WriteCall]] = {}
    for call in group:
        by_loop.setdefault(call.loop, []).append(call)
    for loop, calls in by_loop.items():
        try:
            loop.call_soon_threadsafe(_answer, calls)
        except RuntimeError:  # the loop was closed meanwhile: nobody waits for the answers
            continue


def _answer(calls: list[WriteCall]) -> None:
    for call in calls:
        if call.future.done():  # cancelled
            continue
        if call.error is not None:
            call.future.set_exception(call.error)
        else:
            call.future.set_result(call.answer)
