"""Runs operations in a separate thread, in groups: all queued operations share a transaction, and thus one flush to the disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from taskflow.broker.sqlite.store import SqliteStore
from taskflow.broker.sqlite.transactions import Durability, ExpectedCommit, QueuedOperation, Transactions
from taskflow.model import wording
from taskflow.model.clock import StartThread
from taskflow.model.errors import BrokerUnavailable

T = TypeVar("T")

MAX_GROUP_SIZE: Final = 128
"""The maximum number of operations that share a commit. A larger group would save no more time, and would delay the first operation."""

MAX_WAIT: Final = 5.0
"""How many seconds a fork waits for transactions to end. This is longer than a transaction waits for another process's lock."""


class _Gate:
    """A gate that transactions in any thread pass through. A fork waits until no other thread is inside, for at most `MAX_WAIT` seconds.

    SQLite keeps a process's file locks in a table in memory. A child forked during a transaction inherits the entry, and then finds the
    file locked forever. See https://sqlite.org/howtocorrupt.html, section 2.6.
    """

    def __init__(self) -> None:
        self.reset()

    def __enter__(self) -> None:
        with self._changed:
            while self._is_forking:
                self._changed.wait()
            self._inside.add(threading.get_ident())

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._inside.discard(threading.get_ident())  # does nothing in a child that was forked inside the gate
            if self._is_forking:
                self._changed.notify_all()

    def before_fork(self) -> None:
        with self._changed:
            self._is_forking = True
            self._changed.wait_for(lambda: self._inside <= {threading.get_ident()}, MAX_WAIT)

    def after_in_parent(self) -> None:
        with self._changed:
            self._is_forking = False
            self._changed.notify_all()

    def reset(self) -> None:
        """Open the gate with a new lock. In a forked child, the threads that held the lock or were inside do not exist."""
        self._changed = threading.Condition()
        self._inside = set[int]()
        self._is_forking = False


no_fork: Final = _Gate()
os.register_at_fork(before=no_fork.before_fork, after_in_parent=no_fork.after_in_parent, after_in_child=no_fork.reset)


@dataclass(eq=False, slots=True)
class WriterCall(QueuedOperation):
    """An operation and its caller. Only the writer's thread uses the outcome until it is delivered."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class Writer:
    """Runs operations in a thread that the first call starts. A forked child creates its own writer, and leaves its parent's alone."""

    def __init__(self, transactions: Transactions, start_thread: StartThread) -> None:
        self.pid = os.getpid()
        self._transactions = transactions
        self._start_thread = start_thread
        self._queue = queue.SimpleQueue[WriterCall | ExpectedCommit | None]()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    @property
    def is_open(self) -> bool:
        return self._transactions.is_open

    async def call(self, durability: Durability, operation: Callable[[SqliteStore], T]) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._put(WriterCall(operation, durability, time.monotonic(), loop, future))
        return await future

    def expect(self, commit: ExpectedCommit) -> None:
        """Ask the writer to announce a caller's transaction once it has committed. Does nothing if the writer is closed."""
        with contextlib.suppress(BrokerUnavailable):
            self._put(commit)

    def _put(self, call: WriterCall | ExpectedCommit) -> None:
        with self._lock:  # so that nothing follows the None that ends the thread
            if self._is_closed:
                raise BrokerUnavailable(wording.CLOSED)
            if self._thread is None:
                self._thread = self._start_thread(self._work, "taskflow-sqlite-writer")
            self._queue.put(call)

    def close(self) -> threading.Thread | None:
        """Refuse further calls. Return the thread, which ends once the accepted calls have run, or None if this process has none."""
        if self.pid != os.getpid():
            return None
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._queue.put(None)
        return self._thread

    def abandon(self) -> None:
        """In a forked child, leave the file and the sockets to the parent."""
        self._transactions.abandon()

    def close_and_wait(self) -> None:
        """Close, and wait until the accepted calls have run, but no longer than the store's timeout."""
        thread = self.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=self._transactions.store.timeout)

    # --- the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (group := self._next_group()) is not None:
                self._run(group)
                _deliver(group)
                del group  # operations hold payloads and their broker, so an idle thread must not keep them
        finally:
            with no_fork:
                self._transactions.look_for_commits()
                self._transactions.end()

    def _run(self, group: list[WriterCall]) -> None:
        try:
            with no_fork:
                if group:
                    self._transactions.run(group)
                self._transactions.look_for_commits()
        except Exception as error:  # a bug, or no memory: fail the callers, so that none waits forever
            for call in group:
                call.error = error

    def _next_group(self) -> list[WriterCall] | None:
        """Wait for operations. Return all queued ones, an empty list if it's time to check for a commit, or None if the thread must end."""
        group = list[WriterCall]()
        while len(group) < MAX_GROUP_SIZE:
            try:
                call = self._queue.get(timeout=0 if group else self._transactions.pause)
            except queue.Empty:
                return group
            if isinstance(call, WriterCall):
                group.append(call)
            elif call is not None:
                self._transactions.expect(call)
            elif group:
                self._queue.put(None)  # put back, so that the next call ends the thread
                return group
            else:
                return None
        return group


def _deliver(group: list[WriterCall]) -> None:
    """Deliver the outcomes, with one message to each loop however many calls it has made."""
    by_loop: dict[asyncio.AbstractEventLoop, list[WriterCall]] = {}
    for call in group:
        by_loop.setdefault(call.loop, []).append(call)
    for loop, calls in by_loop.items():
        try:
            loop.call_soon_threadsafe(_answer, calls)
        except RuntimeError:  # the loop is closed, so nothing waits for the answers
            continue


def _answer(calls: list[WriterCall]) -> None:
    for call in calls:
        if call.future.done():  # the caller was cancelled
            continue
        if call.error is not None:
            call.future.set_exception(call.error)
        else:
            call.future.set_result(call.answer)
